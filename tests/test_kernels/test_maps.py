"""Windows of maps, planes, maps side by side, the largest sums of int8 convolutions: every instruction set against torch."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import Epilogue, Pool2dGeometry, PreparedOp
from bnn_kernels.cpu import engine
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.epilogue import ACTS
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.map_ops import mean_of_neighbours, named
from bnn_kernels.reference import Reference

from . import cases
from .int8_cases import convolutions, pooled

pytestmark = pytest.mark.sanitize
CPU, REFERENCE = Cpu(), Reference()
WINDOWS = (2, 2, 0, True), (2, 2, 0, False), (3, 2, 1, True), (3, 2, 1, False), (1, 2, 0, True)
ISAS = engine.available_isas() if bk.available_backends()['cpu'] == 'available' else []


def maps(rng: random.Random) -> tuple[torch.Tensor, Pool2dGeometry, torch.Tensor | None]:
    """Any call of pool2d."""
    torch.manual_seed(rng.randrange(2**30))
    height, width, fold = rng.randint(1, 20), rng.randint(1, 20), 1
    window, stride = tuple(rng.randint(1, min(3, side)) for side in (height, width)), (rng.randint(1, 3), rng.randint(1, 3))
    padding, size = tuple(rng.randint(0, k // 2) for k in window), None
    kind = rng.choice(['max', 'mean', 'mean', 'nearest'])
    if kind != 'max':
        fold = rng.choice([1, 2, 3])
        size = (rng.randint(1, 30), rng.randint(1, 30)) if rng.random() < 0.5 else None
    if kind == 'nearest':
        padding = (0, 0)
    geometry = Pool2dGeometry(kind, window, stride, padding, rng.random() < 0.5, size, fold)
    channels = rng.choice([1, 3, 15, 16, 17, 64])
    x = torch.randn(rng.randint(1, 3), channels * fold, height, width).to(rng.choice(cases.STREAMS))
    x = torch.where(torch.rand(x.shape) < 0.02, rng.choice([0.0, torch.nan, -torch.inf]), x).to(x.dtype)
    x = x.contiguous(memory_format=torch.channels_last) if rng.random() < 0.8 else x
    shortcut = torch.randn(geometry.shape(x.shape)).to(x.dtype) if rng.random() < 0.5 else None
    return x, geometry, shortcut


@pytest.mark.parametrize('seed', range(300))
def test_windows_on_every_instruction_set(seed):
    x, geometry, shortcut = maps(random.Random(seed))
    expected = REFERENCE.pool2d(x, geometry, shortcut)
    for isa in ISAS:
        with engine.set_isa(isa):
            found = CPU.pool2d(x, geometry, shortcut)
            assert torch.equal(found.nan_to_num(7.25), expected.nan_to_num(7.25)), isa
            # An axis of one element has no stride that matters: torch and the engine write different ones there.
            assert all(a == b for a, b, n in zip(found.stride(), expected.stride(), found.shape, strict=True) if n > 1)
            assert torch.equal(CPU.to_planes(x).nan_to_num(7.25), x.nan_to_num(7.25))
            assert CPU.to_planes(x).is_contiguous()


def test_windows_are_those_of_torch():
    """Where its sums are exact, equal; mutations: a last window that begins behind the map; a mean that counts the padding."""
    torch.manual_seed(0)
    for height, width in (7, 9), (8, 8), (1, 5), (13, 6):
        x = torch.randint(-8, 9, (2, 5, height, width)).float()
        for window, stride, padding, ceil in WINDOWS:
            if min(height, width) + 2 * padding < window:
                continue
            pairs = (window, window), (stride, stride), (padding, padding), ceil
            most = F.max_pool2d(x, window, stride, padding, ceil_mode=ceil)
            assert torch.equal(bk.pool2d(x, Pool2dGeometry('max', *pairs)), most)
            torch.testing.assert_close(bk.pool2d(x, Pool2dGeometry('mean', *pairs)),
                                       F.avg_pool2d(x, window, stride, padding, ceil, count_include_pad=False))
        for size in (1, 1), (3, 2), (5, 16), (17, 29):
            assert torch.equal(bk.pool2d(x, Pool2dGeometry('nearest', size=size)), F.interpolate(x, size=size))
            torch.testing.assert_close(bk.pool2d(x, Pool2dGeometry('mean', size=size)), F.adaptive_avg_pool2d(x, size))
            y = torch.randn(2, 5, *size)
            assert torch.equal(bk.pool2d(x, Pool2dGeometry('nearest'), y), y + F.interpolate(x, size=size))
        assert torch.equal(bk.pool2d(x, Pool2dGeometry('nearest', window=(2, 3))), F.interpolate(x, scale_factor=(2.0, 3.0)))
    x = torch.randint(-8, 9, (2, 12, 3, 3)).float()
    assert torch.equal(bk.pool2d(x, Pool2dGeometry('mean', fold=4)), x.unflatten(1, (4, -1)).mean(1))


@cases.examples(200)
@given(call=convolutions(), seed=st.integers(0, 2**31))
def test_the_largest_sums_of_a_convolution(call, seed):
    call = pooled(call, seed)
    words, stream = REFERENCE.int8_pooled2d(**call)
    for isa in ISAS:
        with engine.set_isa(isa):
            found = CPU.int8_pooled2d(**call)
            assert torch.equal(found[0], words), isa
            assert cases.same(found[1], stream, torch.channels_last), isa


@pytest.mark.parametrize(('call', 'message'), [
    (dict(x=torch.randn(2, 3, 4)), r'pool2d takes x \[N, C, H, W\]'),
    (dict(x=torch.randn(1, 3, 4, 4), geometry=Pool2dGeometry('mean', fold=2)), 'a multiple of 2'),
    (dict(x=torch.randn(1, 3, 4, 4).double()), 'x must be float32'),
    (dict(geometry=Pool2dGeometry('median')), "Unknown kind 'median'"),
    (dict(geometry=Pool2dGeometry('max', fold=2)), 'not by their largest'),
    (dict(geometry=Pool2dGeometry('max', (2, 2), (1, 1), (2, 2))), 'at most half of the window'),
    (dict(geometry=Pool2dGeometry('max', (9, 9))), 'the output would be empty'),
    (dict(shortcut=torch.randn(1, 4, 4, 4).half()), 'shortcut must be torch.float32 as x'),
    (dict(shortcut=torch.randn(1, 4, 4, 5)), 'shortcut must have the shape of the output')])
def test_one_sentence_for_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        bk.pool2d(**(dict(x=torch.randn(1, 4, 4, 4), geometry=Pool2dGeometry('max')) | call))


@pytest.mark.parametrize('seed', range(200))
def test_maps_side_by_side_on_every_instruction_set(seed):
    """Mutations: a threshold of another map; a piece of a row that is not copied; words of a block at the wrong pixel."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    size, dtype = (rng.randint(1, 3), rng.randint(1, 13), rng.randint(1, 13)), rng.choice(cases.STREAMS)
    widths = [rng.choice([1, 3, 8, 16, 24, 31, 32, 64, 65]) for _ in range(rng.randint(1, 8))]
    maps = [torch.randn(size[0], width, *size[1:]).to(dtype) for width in widths]
    maps = [torch.where(torch.rand(x.shape) < 0.05, rng.choice([0.0, torch.nan, -torch.inf]), x).to(dtype) for x in maps]
    maps = [x.contiguous(memory_format=torch.channels_last) if rng.random() < 0.8 else x for x in maps]
    threshold = torch.randn(sum(widths)) if rng.random() < 0.5 else None
    groups = rng.choice([g for g in (1, 1, 2, 3) if sum(widths) % g == 0])
    stream = torch.cat(maps, 1)
    words = bk.pack_activations(stream, threshold, groups)
    for isa in ISAS:
        for pack, keep in (True, True), (True, False), (False, True):
            with engine.set_isa(isa):
                found = CPU.concat2d(threshold=threshold, groups=groups, pack=pack, keep=keep, **named(maps))
            expected = REFERENCE.concat2d(threshold=threshold, groups=groups, pack=pack, keep=keep, **named(maps))
            assert torch.equal(expected[0], words if pack else words.new_empty(0)), isa
            assert torch.equal(found[0], expected[0]), isa
            assert torch.equal(expected[1].nan_to_num(7.25), (stream if keep else stream.new_empty(0)).nan_to_num(7.25))
            values = found[1].nan_to_num(7.25), expected[1].nan_to_num(7.25)
            assert cases.same(*values, torch.channels_last if keep else torch.contiguous_format), isa


@pytest.mark.parametrize(('call', 'message'), [
    (dict(maps=[torch.ones(1, 1, 2, 2)] * 9), '8 maps at most, got 9'),
    (dict(maps=[torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 3)]), r'differ in C alone, got x \[1, 1, 2, 2\] and x1'),
    (dict(maps=[torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2).half()]), 'x torch.float32 and x1 torch.float16'),
    (dict(maps=[torch.ones(1, 1, 2, 2).double()]), 'all be float32'),
    (dict(threshold=torch.ones(5)), r'threshold must be \[2\]'),
    (dict(groups=3), 'does not divide'),
    (dict(keep=False), 'leave nothing to return')])
def test_one_sentence_for_bad_maps(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        bk.concat2d(**(dict(maps=[torch.ones(1, 1, 2, 2)] * 2) | call))


def values(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape)
    x = torch.where(torch.rand(shape) < 0.05, rng.choice([0.0, torch.inf, -torch.inf]), x).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if rng.random() < 0.8 and len(shape) == 4 else x


def epilogue_of(rng: random.Random, width: int) -> Epilogue:
    act, groups = rng.choice(ACTS), rng.choice([g for g in (1, 1, 2, 3) if width % g == 0])
    shifts = [torch.randn(width) if act == 'prelu' and rng.random() < 0.7 else None for _ in range(2)]
    return Epilogue(torch.randn(width), torch.randn(width), act, shifts[0], torch.randn(width) if act == 'prelu' else None,
                    shifts[1], torch.randn(width) if rng.random() < 0.5 else None, groups)


def same_results(found, expected, keep: bool, case: object) -> None:
    assert torch.equal(found[0], expected[0]), case
    both = [x.nan_to_num(7.25, 8.25, 9.25) for x in (found[1], expected[1])]
    assert cases.same(*both, torch.channels_last if keep else torch.contiguous_format), case


@pytest.mark.parametrize('seed', range(200))
def test_weighted_sums_on_every_instruction_set(seed):
    """Mutations: a gate behind the weight; the weight of another map; a pixel spread over columns alone; words of a block at
    the wrong pixel; the bias before the sum."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    size, dtype = (rng.randint(1, 13), rng.randint(1, 13)), rng.choice(cases.STREAMS)
    batch, width, count = rng.randint(1, 3), rng.choice([1, 3, 8, 24, 31, 32, 64, 65, 200]), rng.randint(1, 8)
    spread = (1, *[rng.choice([1, 1, 2, 3, 13]) for _ in range(count)])
    maps = [values(rng, batch, width, *[-(-side // s) for side in size], dtype=dtype) for s in spread]
    gate = maps.pop() if rng.random() < 0.5 else (maps.pop(), None)[1]
    weight = torch.randn(count, width) if rng.random() < 0.5 else None
    call = dict(epilogue=epilogue_of(rng, width), spread=spread, weight=weight, dtype=rng.choice(cases.STREAMS), gate=gate)
    for isa in ISAS:
        for pack, keep in (True, True), (True, False), (False, True):
            with engine.set_isa(isa):
                found = CPU.weighted_sum2d(**call, pack=pack, keep=keep, **named(maps))
            same_results(found, REFERENCE.weighted_sum2d(**call, pack=pack, keep=keep, **named(maps)), keep, isa)


@pytest.mark.parametrize('seed', range(200))
def test_folded_blocks_on_every_instruction_set(seed):
    """Mutations: neighbours that are added in another order; a shortcut whose channels are not repeated, or from the wrong
    one; words of the folded stream."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width = rng.choice([16, 40, 64, 128, 192, 256, 512])
    channels, size = rng.choice([7, 32, 65]), (rng.randint(1, 9), rng.randint(1, 9))
    geometry = Conv2dGeometry.of((width, 1, 1, -(-channels // 32)), channels)
    words = bk.pack_activations(torch.randn(2, channels, *size)), bk.pack_weight(torch.randn(width, channels, 1, 1))
    narrow = rng.choice([c for c in (1, 2, 4, 8) if width % c == 0])
    shortcut = values(rng, 2, width // narrow, *size, dtype=rng.choice(cases.STREAMS)) if rng.random() < 0.8 else None
    call = dict(x_words=words[0], w_words=words[1], geometry=geometry, epilogue=epilogue_of(rng, width), shortcut=shortcut,
                dtype=rng.choice(cases.STREAMS), fold=rng.choice([1, 2, 4, 8, 8, 16] if width > 40 else [1, 2, 8]))
    for isa in ISAS:
        for pack, keep in (True, True), (True, False), (False, True):
            with engine.set_isa(isa):
                found = CPU.folded_block2d(**call, pack=pack, keep=keep)
            same_results(found, REFERENCE.folded_block2d(**call, pack=pack, keep=keep), keep, isa)


def test_means_of_neighbours():
    x = torch.randn(2, 24, 3, 3)
    assert torch.allclose(mean_of_neighbours(x, 8), x.unflatten(1, (3, 8)).mean(2), atol=1e-6)


@pytest.mark.parametrize(('call', 'message'), [
    (dict(maps=[torch.ones(1, 2, 2, 2)] * 9), '8 maps at most, got 9'),
    (dict(spread=(1, 2)), r'x1 must be \[1, 2, 1, 1\] to be spread 2-fold'),
    (dict(spread=(2, 1)), 'spread must be 1 for x'),
    (dict(gate=torch.ones(1, 2, 1, 1)), r'gate must be \[1, 2, 2, 2\]'),
    (dict(maps=[torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2).half()]), 'x torch.float32 and x1 torch.float16'),
    (dict(weight=torch.ones(2)), r'weight must be .*\[2, 2\]'),
    (dict(epilogue=Epilogue(torch.ones(4), torch.ones(4))), r'one element per channel, \[2\]'),
    (dict(keep=False), 'leave nothing to return')])
def test_one_sentence_for_bad_sums(call, message):
    given = dict(maps=[torch.ones(1, 2, 2, 2)] * 2, epilogue=Epilogue(torch.ones(2), torch.ones(2))) | call
    with pytest.raises((TypeError, ValueError), match=message):
        bk.weighted_sum2d(**given)


@pytest.mark.parametrize(('call', 'message'), [
    (dict(fold=3), 'power of two'), (dict(fold=8), 'divides the 4 channels'),
    (dict(shortcut=torch.ones(1, 3, 2, 2)), 'divides the 4 channels'),
    (dict(shortcut=torch.ones(1, 2, 2, 3)), 'shortcut must have the shape')])
def test_one_sentence_for_bad_folds(call, message):
    words, weight = bk.pack_activations(torch.ones(1, 8, 2, 2)), bk.pack_weight(torch.ones(4, 8, 1, 1))
    epilogue = Epilogue(torch.ones(4), torch.ones(4))
    given = dict(geometry=Conv2dGeometry.of(weight.shape, 8), epilogue=epilogue, shortcut=None, dtype=torch.float32, pack=True,
                 keep=True, fold=2) | call
    with pytest.raises(ValueError, match=message):
        PreparedOp('folded_block2d', w_words=weight, **{k: v for k, v in given.items() if k != 'shortcut'})(
            x_words=words, shortcut=given['shortcut'])
