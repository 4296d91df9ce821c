"""The training profiler: memory by hand, kinds of layers, ratios of interleaved steps."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint as cp
from torch import nn

from bnn_plugins.analysis.training_profile import (
    KINDS,
    StepTimes,
    Training,
    TrainingVariant,
    kind_of,
    make_row,
    measure_steps,
    profile_training,
    resident_peak,
    saved_bytes,
    share_of_kinds,
)
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU


def training(model, x, y=None):
    """Steps of ``model`` on one batch."""
    def loss(model, batch):
        out = model(batch[0])
        return out.square().mean() if y is None else nn.functional.mse_loss(out, batch[1])
    return Training(model, torch.optim.SGD(model.parameters(), 0.01), lambda: (x, y), loss, model)


def test_saved_bytes_by_hand():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    variant = TrainingVariant('toy', training(model, torch.randn(4, 3), torch.randn(4, 2)))
    # The input, the output of the ReLU once (it and the second layer keep the same), both operands of the loss; no weights.
    assert saved_bytes(variant) == 4 * (4 * 3 + 4 * 5 + 2 * (4 * 2))


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux counts it')
def test_resident_memory_counts_what_is_no_tensor():
    size = 64 << 20

    def call():
        b'x' * size
    call()
    assert resident_peak(call) == pytest.approx(size, rel=0.05)
    assert resident_peak(lambda: None) < size / 20


def test_checkpointing_keeps_less():
    body = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            return cp.checkpoint(self.body, x, use_reentrant=False)
    x = torch.randn(16, 8, requires_grad=True)
    plain, less = (saved_bytes(TrainingVariant('x', training(model, x))) for model in (body, Checkpointed()))
    assert plain == 4 * 16 * 8 * 5
    assert less == 4 * 16 * 8 * 2, 'the input and the output'


@pytest.mark.parametrize(('layer', 'kind'), [
    (BinaryConv2d(32, 32, 3, padding=1), 'binary'), (nn.Conv2d(32, 32, 3, padding=1), 'float'), (nn.BatchNorm2d(32), 'norm'),
    (RPReLU(32), 'activation'), (nn.AvgPool2d(3, 1, 1), 'other')], ids=lambda value: str(value).partition('(')[0])
def test_each_layer_is_charged_to_its_kind(layer, kind):
    """Forward and backward: next to a pooling that is next to nothing, the layer has most of both."""
    x = torch.randn(16, 32, 32, 32, requires_grad=True)
    variant = TrainingVariant('x', training(nn.Sequential(*[layer] * 8, nn.AvgPool2d(32), nn.Conv2d(32, 1, 1)), x))
    variant.step()
    shares = share_of_kinds(variant)
    for phase in ('forward', 'backward'):
        assert sum(shares[one, phase] for one in KINDS) == pytest.approx(1)
        assert shares[kind, phase] == max(shares[one, phase] for one in KINDS)
    absent = {'binary', 'norm', 'activation'} - {kind}
    assert all(shares[one, phase] == 0 for one in absent for phase in ('forward', 'backward'))


def test_kinds():
    assert kind_of(BinaryLinear(8, 8)) == 'binary'
    assert kind_of(nn.GroupNorm(2, 4)) == kind_of(nn.LayerNorm(4)) == 'norm'
    assert kind_of(nn.SiLU()) == kind_of(nn.PReLU()) == 'activation'
    assert kind_of(nn.Linear(2, 2)) == 'float'
    assert kind_of(nn.Sequential()) is kind_of(nn.MultiheadAttention(4, 2)) is None


def test_phases_and_rounds():
    """A clock that counts its readings: each phase is one tick, so a step of three takes three."""
    ticks = count()
    clock = SimpleNamespace(mark=lambda: next(ticks), between=lambda start, end: float(end - start))
    variants = [TrainingVariant(name, training(nn.Linear(2, 2), torch.randn(1, 2))) for name in 'ab']
    times = measure_steps(variants, clock, rounds=7, budget=1e9, warmup=1)
    assert [len(one.steps) for one in times] == [7, 7]
    assert set(times[0].steps) == {3.0}
    assert measure_steps(variants, clock, rounds=7, budget=0.0, warmup=1)[0].phases['data'] == [1.0] * 3


def test_ratios_are_of_one_round():
    """A machine that is slow in the second round is so for both."""
    model = nn.Sequential(BinaryConv2d(2, 2, 3, padding=1))
    names = ('float32', 'binary')
    variants = [TrainingVariant(name, training(model, torch.randn(1, 2, 4, 6))) for name in names]
    slow = [(1.0, 2.0), (8.0, 16.0), (2.0, 4.0)]
    times = [StepTimes({'data': [9.0] * 3, 'forward': [pair[place] for pair in slow], 'backward': [0.0] * 3,
                        'optimizer': [0.0] * 3}) for place in (0, 1)]
    row = make_row('toy', variants[1], variants, times, SimpleNamespace(name='test'), 1)
    assert (row.of_float32, row.of_float32_q1, row.of_float32_q3) == (2.0, 2.0, 2.0)
    assert row.of_bfloat16 == ''
    assert (row.step_ms, row.data_ms, row.images_per_s) == (4000, 9000, 1 / 13)
    assert (row.batch, row.height, row.width, row.path) == (1, 4, 6, '')
    assert sum(value for name, value in row.kinds.items() if "forward" in name) == pytest.approx(4000)


def test_a_profile_has_one_row_per_variant():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    one = training(model, torch.randn(2, 2, 5, 5))
    before = torch.get_num_threads()
    variants = [TrainingVariant('float32', one), TrainingVariant('bfloat16', one, torch.bfloat16)]
    rows = profile_training('toy', variants, rounds=1)
    assert torch.get_num_threads() == before
    assert [row.variant for row in rows] == ['float32', 'bfloat16']
    assert rows[0].of_float32 == 1.0
    assert rows[1].of_bfloat16 == 1.0
    assert rows[0].path == ''
    assert rows[0].peak_bytes >= rows[0].saved_bytes - 2 * 2 * 5 * 5 * 4, 'the input is there before the step'
    assert rows[1].line()['float_forward_ms'] > 0
