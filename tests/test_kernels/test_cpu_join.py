"""Operators of the engine as one call: the same bits as one by one, in memory that they share."""

import gc
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels import cpu
from bnn_kernels.cpu import available_isas, calls, engine
from bnn_kernels.cpu.calls import arrange
from bnn_kernels.geometry import Conv2dGeometry

from . import cases

pytestmark = [pytest.mark.sanitize,
              pytest.mark.skipif(bk.available_backends()['cpu'] != 'available', reason='the engine was not compiled')]


@pytest.fixture(autouse=True)
def on_the_engine():
    with bk.set_backend('cpu'):
        yield


class Chain:
    """Random operators, each of which reads what others made: values are numbers, 0 is the image."""

    def __init__(self, seed: int, length: int):
        self.rng = random.Random(seed)
        self.draw = torch.Generator().manual_seed(seed)
        dtype = self.rng.choice(cases.STREAMS)
        size = self.rng.randint(1, 3), self.rng.randint(1, 70), self.rng.randint(1, 9), self.rng.randint(1, 9)
        self.values = {0: torch.randn(size, generator=self.draw).to(dtype, memory_format=torch.channels_last)}
        self.operators, self.streams, self.words = [], [0], []
        self.pack(0)
        for _ in range(length):
            self.rng.choice([self.pack, self.block, self.block, self.block, self.sign, self.downsample])()
        made = [v for v in self.values if v]
        self.results = sorted(self.rng.sample(made, self.rng.randint(1, min(4, len(made)))), key=lambda _: self.rng.random())

    def add(self, op: str, fixed: dict, reads: dict, writes: tuple) -> None:
        self.operators.append((bk.PreparedOp(op, **fixed), bk.OpIO(reads, writes)))
        out = self.operators[-1][0](**{name: None if v is None else self.values[v] for name, v in reads.items()})
        for value, tensor in zip(writes, out if isinstance(out, tuple) else (out,), strict=True):
            if value is not None:
                self.values[value] = tensor

    def new(self) -> int:
        return len(self.values)

    def vector(self, size: int, *, maybe: bool = False) -> torch.Tensor | None:
        return None if maybe and self.rng.random() < 0.5 else torch.randn(size, generator=self.draw)

    def pack(self, stream: int | None = None) -> None:
        stream = self.rng.choice(self.streams) if stream is None else stream
        channels, value = self.values[stream].shape[1], self.new()
        self.add('pack_activations', dict(threshold=self.vector(channels, maybe=True), groups=1), {'x': stream}, (value,))
        self.words.append((value, channels))

    def convolution(self, channels: int, outputs: int) -> dict:
        kernel = self.rng.choice([1, 3])
        words = bk.pack_weight(torch.randn(outputs, channels, kernel, kernel, generator=self.draw))
        geometry = Conv2dGeometry(channels, outputs, kernel, padding=kernel // 2, pad_value=self.rng.choice([0, 1, -1]))
        return dict(w_words=words, geometry=geometry)

    def block(self) -> None:
        words, channels = self.rng.choice(self.words)
        place = self.values[words].shape[0], *self.values[words].shape[1:3]
        fits = [v for v in self.streams if (self.values[v].shape[0], *self.values[v].shape[2:]) == place]
        shortcut = self.rng.choice([*fits, None])
        outputs = self.rng.randint(1, 70) if shortcut is None else self.values[shortcut].shape[1]
        # In place: not over the image, and what the value was before is read by none that follows.
        in_place = bool(shortcut) and self.rng.random() < 0.5
        dtype = self.values[shortcut].dtype if in_place else self.rng.choice(cases.STREAMS)
        pack, keep = self.rng.choice([(True, True), (True, False), (False, True)]) if not in_place else (True, True)
        vectors = {name: self.vector(outputs) for name in ('scale', 'bias', 'slope')}
        vectors |= {name: self.vector(outputs, maybe=True) for name in ('gamma', 'zeta', 'threshold')}
        first = self.new()
        bits = first if pack else None
        stream = shortcut if in_place else first + pack if keep else None
        self.add('binary_block2d', self.convolution(channels, outputs) | dict(
            epilogue=bk.Epilogue(**vectors, act='prelu'), dtype=dtype, pack=pack, keep=keep),
            {'x_words': words, 'shortcut': shortcut, 'out': shortcut if in_place else None}, (bits, stream))
        self.words += [(bits, outputs)] if pack else []
        self.streams += [stream] if keep and not in_place else []

    def sign(self) -> None:
        (words, channels), outputs, value = self.rng.choice(self.words), self.rng.randint(1, 70), self.new()
        limit = torch.randint(-9, 9, (outputs,), generator=self.draw).int()
        self.add('binary_conv2d_sign', self.convolution(channels, outputs) | dict(
            threshold=limit, flip=self.rng.choice([limit % 2 == 0, None]), out_groups=1), {'x_words': words}, (value,))
        self.words.append((value, outputs))

    def downsample(self) -> None:
        stream, outputs, value = self.rng.choice(self.streams), self.rng.randint(1, 70), self.new()
        weight = torch.randn(outputs, self.values[stream].shape[1], generator=self.draw)
        self.add('downsample2d', dict(weight=weight, bias=self.vector(outputs), pool=self.rng.choice([1, 2])), {'x': stream},
                 (value,))
        self.streams.append(value)

    def join(self):
        calls = [op.choose({name: None if v is None else self.values[v] for name, v in io.reads.items()})
                 for op, io in self.operators]
        return bk.join(calls, [io for _, io in self.operators], [0], self.results)

    def one_by_one(self, x: torch.Tensor) -> list[torch.Tensor]:
        values = {0: x}
        for op, io in self.operators:
            out = op(**{name: None if v is None else values[v] for name, v in io.reads.items()})
            values.update(zip(io.writes, out if isinstance(out, tuple) else (out,), strict=True))
        return [values[v] for v in self.results]

    def image(self) -> torch.Tensor:
        old = self.values[0]
        return torch.randn(old.shape, generator=self.draw).to(old.dtype, memory_format=torch.channels_last)


def expect(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        assert torch.equal(one, other)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 12))
def test_results(seed, length):
    chain = Chain(seed, length)
    joined, results = chain.join(), []
    for _ in range(2):
        x = chain.image()
        before = x.clone()
        results.append((joined(x), chain.one_by_one(x)))
        assert torch.equal(x, before), 'it writes to the image'
    for one, other in results:  # the first results, too: memory is not theirs together
        expect(one, other)


@pytest.mark.parametrize('isa', ['portable', 'neon', 'avx2', 'avx512', 'amx-emulated'])
def test_settings_may_change(isa, monkeypatch):
    if isa not in available_isas():
        pytest.skip(f'this processor has no {isa}')
    chain, ran, run = Chain(3, 12), [], calls.run
    joined, x, threads = chain.join(), chain.image(), torch.get_num_threads()
    monkeypatch.setattr(calls, 'run', lambda code, *rest: (ran.append(list(code.records)), run(code, *rest)))

    def check():
        expect(joined(x), chain.one_by_one(x))
        code = max(ran, key=len)  # the joined one; it begins with the packing
        assert code[2:4] == [engine.isa_number(), torch.get_num_threads()]
        ran.clear()

    check()
    with engine.set_isa(isa):
        check()
        torch.set_num_threads(2)
        try:
            check()
        finally:
            torch.set_num_threads(threads)
    check()


def test_inference_mode():
    """Weights from outside of it stay as they are, whatever is made of them inside, or where there are none."""
    chain = next(chain for chain in (Chain(seed, 12) for seed in range(99))
                 if any(op.op == 'binary_conv2d_sign' and op.fixed['flip'] is None for op, _ in chain.operators))
    for op, _ in chain.operators:
        op.chosen.clear()
    with torch.inference_mode():
        x = chain.image()
        expected = chain.one_by_one(x)
        chain.values = {value: tensor.clone() for value, tensor in chain.values.items()}
        expect(chain.join()(x), expected)


def test_what_was_made_of_weights_stays_alive():
    """The operators by themselves have moved on to other settings, and their memory is asked for again."""
    chain = Chain(3, 1)
    chain.sign()
    chain.downsample()
    chain.results = list(chain.values)[-2:]
    joined, x = chain.join(), chain.image()
    joined(x)
    expected = chain.one_by_one(x)
    with engine.set_isa('portable'):
        chain.one_by_one(x)
    gc.collect()
    garbage = [torch.full((size,), 7, dtype=torch.int32) for size in range(1, 80) for _ in range(50)]
    expect(joined(x), expected)
    del garbage


def test_what_it_points_to_stays_alive():
    chain = Chain(5, 12)
    joined, x = chain.join(), chain.image()
    expected = chain.one_by_one(x)
    sizes = [value.shape for op, _ in chain.operators for value in op.fixed.values() if isinstance(value, torch.Tensor)]
    del chain
    gc.collect()
    garbage = [torch.full(shape, 7.0) for shape in sizes for _ in range(100)]
    expect(joined(x), expected)
    del garbage


def test_threads():
    chain = Chain(7, 12)
    joined, images, found = chain.join(), [chain.image() for _ in range(4)], {}

    def run(i):
        found[i] = [joined(images[i]) for _ in range(50)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(images):
        expected = chain.one_by_one(x)
        for results in found[i]:
            expect(results, expected)


def test_an_image_where_no_number_may_start_is_not_taken():
    chain = next(c for c in (Chain(seed, 4) for seed in range(99)) if c.values[0].dtype == torch.float32)
    x = chain.image()
    room = torch.zeros(4 * x.numel() + 64, dtype=torch.uint8)
    odd = torch.frombuffer(room.numpy()[1:4 * x.numel() + 1], dtype=torch.float32).as_strided(x.shape, x.stride())
    assert chain.join()(odd) is None


def test_what_ran_is_named():
    chain = Chain(3, 12)
    joined, x = chain.join(), chain.image()
    with bk.set_backend('reference'):
        bk.pack_activations(x)
    assert bk.last_backend('pack_activations') == 'reference'
    joined(x)
    assert bk.last_backend('pack_activations') == bk.last_backend() == 'cpu'


def test_runs_are_timed():
    chain = Chain(3, 12)
    joined, x = chain.join(), chain.image()
    with cpu.timed_runs(time.CLOCK_THREAD_CPUTIME_ID) as seconds:
        start = time.thread_time()
        for _ in range(20):
            joined(x)
        whole = time.thread_time() - start
        spent = seconds()
        assert 0 < spent < whole
        assert seconds() == 0, 'it was asked'
        chain.one_by_one(x)
        assert seconds() > 0
        joined(x)
    with cpu.timed_runs(time.CLOCK_MONOTONIC) as seconds:
        assert seconds() == 0, 'what ran before does not count'
    joined(x)
    with cpu.timed_runs(time.CLOCK_MONOTONIC) as seconds:
        assert seconds() == 0, 'outside of it nothing is timed'


def test_nothing_is_timed_without_an_engine(monkeypatch):
    def library():
        raise RuntimeError('not compiled')

    monkeypatch.setattr(engine, 'library', library)
    with cpu.timed_runs(time.CLOCK_MONOTONIC) as seconds:
        assert seconds() == 0


def test_what_cannot_be_joined():
    chain = Chain(3, 6)
    with bk.set_backend('reference'):
        assert chain.join() is None
    op = bk.PreparedOp('binary_conv2d', geometry=Conv2dGeometry(8, 3, 1))
    io = bk.OpIO({'x_words': 'x', 'w_words': 'w'}, ('y',))
    values = dict(x=torch.zeros(1, 2, 2, 1, dtype=torch.int32), w=torch.zeros(3, 1, 1, 1, dtype=torch.int32))
    call = op.choose(dict(x_words=values['x'], w_words=values['w']))
    assert bk.join([call], [io], ['x', 'w'], ['y']) is None, 'the weight is no bound tensor'


@given(uses=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=4), min_size=1, max_size=12),
       sizes=st.lists(st.integers(0, 300), min_size=9, max_size=9))
def test_values_that_live_together_do_not_overlap(uses, sizes):
    sizes = dict(enumerate(sizes[:7]))  # 7 and 8 lie elsewhere
    places, room = arrange(sizes, uses)
    assert set(places) == {value for values in uses for value in values} & set(sizes)
    life = {v: [n for n, values in enumerate(uses) if v in values] for v in places}
    for a in places:
        assert places[a] % 64 == 0
        assert 0 <= places[a] <= places[a] + sizes[a] <= room
        for b in places:
            if a < b and life[a][0] <= life[b][-1] and life[b][0] <= life[a][-1]:
                assert places[a] + sizes[a] <= places[b] or places[b] + sizes[b] <= places[a]


def test_memory_is_used_again():
    """A long chain of one size needs no more than two streams and their words."""
    sizes = dict.fromkeys(range(50), 1000)
    assert arrange(sizes, [[n, n + 1] for n in range(49)])[1] == 2 * 1024
