"""The profiler on tiny models and a clock of its own: order, arithmetic, checks, files, page."""

import copy
import csv
import html
import math
import re
import statistics
import time
from contextlib import contextmanager
from html.parser import HTMLParser
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip('jinja2')
pytest.importorskip('matplotlib')

import bnn_kernels
from bnn_plugins import fuse_, pack_
from bnn_plugins.analysis import throughput, throughput_report, throughput_run
from bnn_plugins.analysis.throughput import HostClock, Timing, make_clock, measure, torch_threads
from bnn_plugins.analysis.throughput_layers import OUTSIDE, Breakdown, LayerTime, break_down, measure_ceilings
from bnn_plugins.analysis.throughput_run import Check, Plan, Row, Throughput, check_part, profile
from bnn_plugins.analysis.throughput_variants import FORMS, Models, Part, Variant, check_forms, on_backend, peak_bytes
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

CPU = torch.device('cpu')


class FakeClock:
    """Time that passes only when somebody says so."""

    name = 'fake'

    def __init__(self):
        self.seconds = 0.0

    def mark(self):
        return self.seconds

    def between(self, start, end):
        return end - start

    def call(self, log, name, seconds):
        def run():
            log.append(name)
            self.seconds += next(seconds)
        return run


def forever(value):
    return (value for _ in count())


def test_calls_take_turns():
    clock, log, rounds = FakeClock(), [], []
    calls = {name: clock.call(log, name, forever(seconds)) for name, seconds in (('a', 0.004), ('b', 0.001), ('c', 1.0))}
    timings = measure(calls, clock, rounds=3, warmup=2, min_seconds=0.004, advance=lambda: rounds.append(len(log)))
    # One call before each sample is not timed; b is short: four calls are one sample.
    assert log == list('aabbcc') + list('aabbbbbcc') * 3
    assert rounds == [15, 24, 33]
    assert {name: timing.samples for name, timing in timings.items()} == {
        'a': pytest.approx([0.004] * 3), 'b': pytest.approx([0.001] * 3), 'c': pytest.approx([1.0] * 3)}


def test_what_a_neighbour_left_in_the_caches_is_not_timed():
    clock, log = FakeClock(), []

    def call(name):
        def run():
            clock.seconds += 1.0 if log and log[-1] == name else 7.0  # slow after somebody else
            log.append(name)
        return run

    timings = measure({'a': call('a'), 'b': call('b')}, clock, rounds=5)
    assert [timing.samples for timing in timings.values()] == [[1.0] * 5, [1.0] * 5]


@pytest.mark.parametrize(('budget', 'expected'), [(math.inf, 20), (16.0, 8), (0.1, 5)])
def test_a_budget_takes_rounds_away_but_not_below_five(budget, expected):
    clock = FakeClock()
    timing = measure({'a': clock.call([], 'a', forever(1.0))}, clock, rounds=20, budget=budget)['a']
    assert len(timing.samples) == expected


def test_fewer_rounds_than_five_stay():
    clock = FakeClock()
    assert len(measure({'a': clock.call([], 'a', forever(1.0))}, clock, rounds=2, budget=0.1)['a'].samples) == 2
    assert measure({}, clock) == {}


@given(st.lists(st.floats(1e-6, 10), min_size=2, max_size=12))
def test_spread(samples):
    timing = Timing(samples)
    ordered = sorted(samples)

    def quantile(share):
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])
    assert timing.minimum == ordered[0]
    assert timing.median == pytest.approx(quantile(0.5))
    assert timing.quartiles == pytest.approx((quantile(0.25), quantile(0.75)))


def test_one_sample_has_no_spread():
    assert Timing([2.0]).quartiles == (2.0, 2.0)


def test_clocks():
    assert HostClock(1).name == 'process CPU time'
    assert make_clock('cpu', 2).name == 'wall clock'
    before = torch.get_num_threads()
    with torch_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


# --- models ------------------------------------------------------------------------------------------------------------------

class Net(nn.Module):
    """A float stem, a binary block with a shortcut, a linear layer."""

    def __init__(self, conv=BinaryConv2d, linear=BinaryLinear):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.conv, self.norm = conv(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.act, self.head = nn.PReLU(32), linear(32, 8)

    def forward(self, x):
        x = self.stem(x)
        x = self.act(self.norm(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope='module')
def models() -> Models:
    torch.manual_seed(0)
    latent = Net().eval().requires_grad_(False)
    packed = pack_(copy.deepcopy(latent))
    fused = copy.deepcopy(packed)
    fuse_(fused)
    return Models(packed, fused, Net(nn.Conv2d, nn.Linear).eval().requires_grad_(False), latent)


def part(batch=1, size=(8, 12)) -> Part:
    return Part('net', whole_model, (torch.randn(batch, 3, *size),))


def whole_model(model):
    return model


EAGER = ('fused', 'packed', 'float32', 'float32-nchw', 'bfloat16')  # the first three are broken down


@pytest.fixture(scope='module')
def result(models) -> Throughput:
    plan = Plan(batches=(1, 2), sizes=((8, 12),), forms=EAGER, rounds=3)
    return profile('tiny', models, lambda batch, size: [part(batch, size)], plan, {'Weights': 'random & <few>'})


def test_rows(result):
    assert [(row.variant, row.batch) for row in result.rows] == [(name, batch) for batch in (1, 2) for name in EAGER]
    for row in result.rows:
        assert (row.config, row.part, row.height, row.width, row.threads, row.device) == ('tiny', 'net', 8, 12, 1, 'cpu')
        assert row.min_ms <= row.q1_ms <= row.median_ms <= row.q3_ms
        assert row.images_per_s == pytest.approx(row.batch / row.median_ms * 1e3)
        assert (row.rounds, row.clock) == (3, 'process CPU time')
        assert bool(row.backend) == (row.check == 'ok') == (row.variant in ('fused', 'packed'))
        assert row.x_float32_compiled == row.x_bfloat16_compiled == ''  # not measured
        assert row.peak_bytes > 0
    bytes_of = {row.variant: row.model_bytes for row in result.rows}
    floats = 4 * (32 * 27 + 32 + 32 * 32 * 9 + 4 * 32 + 32 + 32 * 8 + 8) + 8
    assert bytes_of['float32'] == floats
    assert bytes_of['packed'] < 0.25 * floats


def test_ratios_are_of_the_faster_layout(result):
    for batch in (1, 2):
        rows = {row.variant: row for row in result.rows if row.batch == batch}
        fastest = min(rows['float32'].median_ms, rows['float32-nchw'].median_ms)
        for row in rows.values():
            assert row.x_float32 == pytest.approx(fastest / row.median_ms)
            assert row.x_bfloat16 == pytest.approx(rows['bfloat16'].median_ms / row.median_ms)


def test_checks_come_first_and_are_ok(result):
    assert [check.ok for check in result.checks] == [True, True]
    assert 'bit by bit' in result.checks[0].text
    assert '0 violations' in result.checks[0].text


def test_a_red_check_takes_the_speed_ups_away(models):
    wrong = Models(copy.deepcopy(models.packed), models.fused, models.twin, models.latent)
    wrong.packed.conv.weight_bits ^= 1
    plan = Plan(sizes=((8, 12),), forms=('fused', 'packed', 'float32'), rounds=1)
    result = profile('tiny', wrong, lambda *_: [part()], plan)
    assert not result.ok
    assert result.checks[0].red == {'packed'}
    rows = {row.variant: row for row in result.rows}
    assert (rows['packed'].check, rows['packed'].x_float32) == ('red', '')
    assert rows['fused'].check == 'ok'
    assert rows['fused'].x_float32 > 0
    assert 'RED' in throughput_report.page(result)


def test_a_wrong_fused_model_is_red(models):
    wrong = copy.deepcopy(models.packed)
    wrong.norm.bias += 1
    fuse_(wrong)
    red = Models(models.packed, wrong, None, models.latent)
    assert check_part(red, part(), ('packed', 'fused')).red == {'fused'}
    assert check_part(red, part(), ('packed',)).ok


def test_without_a_latent_model_there_is_no_check(models):
    assert check_part(Models(models.packed, models.fused, models.twin), part(), ('packed',)) is None


def test_what_fails_is_named_and_the_others_are_measured(models, monkeypatch):
    def refuse(*_):
        raise RuntimeError('no bfloat16 here\nand more')
    monkeypatch.setattr(throughput_run, 'Variant',
                        lambda form, *rest: refuse() if form == 'bfloat16' else Variant(form, *rest))
    result = profile('tiny', models, lambda *_: [part()], Plan(sizes=((8, 12),), forms=('packed', 'bfloat16'), rounds=1))
    assert [row.variant for row in result.rows] == ['packed']
    assert result.skipped == [('net: bfloat16', 'RuntimeError: no bfloat16 here')]


def test_backends_are_swept_in_the_same_run(models):
    plan = Plan(sizes=((8, 12),), forms=('packed', 'float32'), backends=(None, 'reference'), rounds=1)
    rows = profile('tiny', models, lambda *_: [part()], plan).rows
    assert [row.variant for row in rows] == ['packed', 'packed [reference]', 'float32']
    assert rows[1].backend == 'reference'


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown variant 'fusd': did you mean 'fused'"):
        check_forms(['fusd'], CPU)
    with pytest.raises(ValueError, match='needs --device cuda'):
        check_forms(['fused-graph'], CPU)
    with pytest.raises(ValueError, match="only the backend 'cpu' has instruction sets"), on_backend('numba:avx2'):
        pass
    anchors = [form for form in FORMS if form.startswith(('openvino', 'onnxruntime'))]
    check_forms([form for form in FORMS if form not in anchors], torch.device('cuda'))
    with pytest.raises(ValueError, match='runs on the CPU, not with --device cuda'):
        check_forms(anchors, torch.device('cuda'))


def test_an_instruction_set_is_a_backend():
    if bnn_kernels.available_backends()['cpu'] != 'available':
        pytest.skip(bnn_kernels.available_backends()['cpu'])
    before = bnn_kernels.cpu.isa()
    with on_backend('cpu:portable'):
        assert bnn_kernels.cpu.isa() == 'portable'
    assert bnn_kernels.cpu.isa() == before


def test_whole_calls_surround_the_module(models):
    x = torch.randn(1, 3, 8, 12)
    seen = []

    def whole(run):
        out = run(x)
        seen.append(out.dtype)
        return out.float().argmax()
    inner = Variant('bfloat16', part(), models)
    assert inner.around(Part('whole', whole_model, (x,), whole))().dtype == torch.int64
    assert seen == [torch.bfloat16]
    assert inner.part.name == 'net'


@pytest.mark.slow
def test_compiled(models):
    """Once, with frozen weights, for the part and for what surrounds it: another compilation would be noted as skipped."""
    x = torch.randn(1, 3, 8, 12)
    around = Part('whole', whole_model, (x,), lambda run: run(x.clone()))
    plan = Plan(sizes=((8, 12),), forms=('fused', 'float32-compiled'), rounds=1)
    result = profile('tiny', models, lambda *_: [Part('net', whole_model, (x,)), around], plan)
    assert result.skipped == []
    assert [(row.part, row.variant) for row in result.rows] == [(p, form) for p in ('net', 'whole') for form in plan.forms]
    for fused, compiled in (result.rows[:2], result.rows[2:]):
        assert fused.x_float32_compiled == pytest.approx(compiled.median_ms / fused.median_ms)


def test_peak_bytes():
    x = torch.ones(1000)
    one = torch.ones(1)
    assert peak_bytes(lambda: x + one, CPU) == 4000
    assert peak_bytes(lambda: (x + one) + (x - one), CPU) == 12000
    assert peak_bytes(lambda: None, CPU) == 0


# --- layers ------------------------------------------------------------------------------------------------------------------

def test_layers_of_a_packed_model(models):
    x = torch.randn(2, 3, 8, 12)
    breakdown = break_down(lambda: models.packed(x), models.packed, HostClock(1), rounds=2, ceilings={'binary': 100.0})
    rows = {(row.layer, row.group): row for row in breakdown.rows}
    assert rows['conv', 'binary'].macs == 2 * 32 * 4 * 6 * 32 * 9
    assert rows['conv', 'binary'].operators == 'pack_activations, binary_conv2d'
    assert rows['head', 'binary'].macs == 2 * 8 * 32
    assert rows['stem', 'float'].macs == 2 * 32 * 4 * 6 * 27
    assert rows['norm', 'rest'].macs == 0
    assert rows['conv', 'binary'].ceiling == 100.0
    assert rows['stem', 'float'].backend == 'torch'
    assert len(breakdown.backends) == 1
    assert math.isclose(sum(breakdown.share(group) for group in ('binary', 'float', 'rest', 'between')), 1)


def test_layers_of_a_fused_model_stay_fused(models):
    x = torch.randn(1, 3, 8, 12)
    breakdown = break_down(lambda: models.fused(x), models.fused, HostClock(1), rounds=1)
    rows = {row.layer: row for row in breakdown.rows if row.macs}
    assert 'binary_block2d' in rows['conv'].operators
    assert rows['conv'].macs == 32 * 4 * 6 * 32 * 9
    assert sum(row.macs for row in breakdown.rows if row.group == 'binary') == 32 * 4 * 6 * 32 * 9 + 8 * 32


def test_operators_of_the_engine_time_themselves(models, monkeypatch):
    """By the clock of the measurement; what torch ran is timed from outside."""
    clocks = []

    @contextmanager
    def timed_runs(clock):
        clocks.append(clock)
        yield lambda: 3.0

    monkeypatch.setattr(bnn_kernels.cpu, 'timed_runs', timed_runs)
    x = torch.randn(1, 3, 8, 12)
    for threads, clock in ((1, time.CLOCK_PROCESS_CPUTIME_ID), (2, time.CLOCK_MONOTONIC)):
        rows = break_down(lambda: models.packed(x), models.packed, HostClock(threads), rounds=1).rows
        assert clocks.pop() == clock
        binary = [row for row in rows if row.group == 'binary']
        assert binary
        assert all(row.ms == 3e3 * (1 + row.operators.count(',')) for row in binary)
        assert all(row.ms < 3e3 for row in rows if row.group != 'binary')


def test_operators_outside_of_layers(models):
    x = torch.randn(1, 3, 8, 12)
    breakdown = break_down(lambda: models.twin(x).sort(), models.twin, HostClock(1), rounds=1)
    assert 'sort' in next(row for row in breakdown.rows if row.layer == OUTSIDE).operators
    assert breakdown.backends == []


def words(*shape):
    return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(('call', 'macs'), [
    (lambda: bnn_kernels.binary_conv2d(words(2, 5, 7, 2), words(6, 3, 3, 1), 40, 2, 1, groups=2), 2 * 3 * 4 * 6 * 9 * 20),
    (lambda: bnn_kernels.binary_conv_transpose2d(words(2, 5, 7, 2), words(6, 2, 2, 2), 40, 2), 2 * 5 * 7 * 6 * 4 * 40),
    (lambda: bnn_kernels.binary_linear(words(2, 3, 2), words(6, 2), 40), 2 * 3 * 6 * 40),
    (lambda: bnn_kernels.binary_conv2d_sign(words(2, 5, 7, 2), words(6, 1, 1, 2), 40, words(12)), 2 * 5 * 7 * 6 * 40),
    (lambda: bnn_kernels.binary_block2d(words(2, 5, 7, 2), words(6, 1, 1, 2), 40, bnn_kernels.Epilogue(
        torch.ones(12), torch.zeros(12)), keep=False), 2 * 5 * 7 * 6 * 40),
    (lambda: bnn_kernels.binary_block2d_(torch.zeros(2, 6, 5, 7).contiguous(memory_format=torch.channels_last),
                                         words(2, 5, 7, 2), words(6, 1, 1, 2), 40, bnn_kernels.Epilogue(
        torch.ones(6), torch.zeros(6)), pack=False), 2 * 5 * 7 * 6 * 40),
    (lambda: bnn_kernels.stem2d(torch.zeros(2, 3, 9, 8), torch.zeros(5, 3, 3, 3), bnn_kernels.Epilogue(
        torch.ones(10), torch.zeros(10)), stride=2, padding=1, window=2), 2 * 5 * 4 * 5 * 3 * 9),
    (lambda: bnn_kernels.downsample2d(torch.zeros(2, 6, 5, 7), torch.zeros(3, 6), torch.zeros(3), 2), 2 * 3 * 3 * 4 * 6),
])
def test_multiply_accumulates(call, macs):
    assert sum(row.macs for row in break_down(call, nn.Identity(), HostClock(1), rounds=1).rows) == macs


def test_speeds():
    row = LayerTime('a', 'Conv2d', 'float', 'convolution', 'torch', '', 2_000_000, 0.5, 8.0)
    assert (row.gmacs, row.of_ceiling) == (4.0, 0.5)
    assert LayerTime('a', '', 'rest', '', 'torch', '', 0, 0.0).of_ceiling == 0
    assert Breakdown([], 0.0).share('binary') == 0


def test_ceilings():
    one = measure_ceilings(CPU, 1)
    assert one['float'] > 1
    assert all(value > 0 for value in one.values())


# --- files -------------------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """Cells of tables; what does not close; addresses outside of the page."""

    VOID = ('meta', 'source', 'img', 'br')

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.addresses = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ('src', 'href', 'srcset')]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == 'td':
            self.cells.append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == 'td':
            self.cells[-1] += data


def test_csv_and_page_hold_the_same_numbers(result, tmp_path):
    table, layers, page = throughput_report.write_throughput(result, tmp_path / 'new' / 'folder')
    rows = list(csv.DictReader(table.open()))
    assert list(rows[0]) == [*Row.__dataclass_fields__, 'processor', 'cpu_flags', 'gpu', 'torch', 'python', 'mmdet',
                             'bnn_plugins', 'commit']
    assert rows[0]['torch'] == torch.__version__
    text = page.read_text()
    parsed = Page(text)
    assert parsed.addresses
    assert all(address.startswith('data:') for address in parsed.addresses)
    for line, row in zip(rows, result.rows, strict=True):
        assert float(line['median_ms']) == pytest.approx(row.median_ms, abs=5e-5)
        assert float(line['x_float32']) == pytest.approx(row.x_float32, abs=5e-5)
        assert f'{row.median_ms:.3f}' in parsed.cells
        assert f'{row.q1_ms:.3f} - {row.q3_ms:.3f}' in parsed.cells
        assert f'{row.x_float32:.3g}x' in parsed.cells
    assert html.escape('random & <few>') in text
    assert '<few>' not in text
    found = list(csv.DictReader(layers.open()))
    spent = [sum(float(line['ms']) for line in found if (line['variant'], line['batch']) == (name, '1')) for name in EAGER[:3]]
    assert all(value > 0 for value in spent)
    assert {line['group'] for line in found} == {'binary', 'float', 'rest', 'between'}


def test_terminal(result):
    from rich.console import Console
    console = Console(width=200, record=True, quiet=False, file=open('/dev/null', 'w'))  # noqa: SIM115
    throughput_report.print_throughput(result, console)
    text = console.export_text()
    assert re.search(r'net, batch 2, 8x12, 1 thread', text)
    assert f'{result.rows[0].median_ms:.3f}' in text


def test_small_layers_are_one_line():
    rows = [LayerTime(name, 'Conv2d', 'float', 'convolution', 'torch', '', 10, ms) for name, ms in
            (('big', 99.0), ('small', 0.2), ('tiny', 0.1))]
    lines = throughput_report.layer_lines(Breakdown(rows, 0.7))
    assert [(line[0], line[6]) for line in lines] == [('big', '99.000'), ('(the others)', '0.300'),
                                                      ('(between operators)', '0.700')]


def test_median_is_that_of_statistics():
    assert Timing([3.0, 1.0, 2.0]).median == statistics.median([3.0, 1.0, 2.0])
    assert throughput.MIN_SECONDS > 0
    assert Check('net', 1, 8, 8, frozenset({'fused'}), '').ok is False
