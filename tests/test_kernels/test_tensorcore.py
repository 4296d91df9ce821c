"""The tensor-core kernels without a GPU: their PTX, as ptxas gets it, is emulated and compared with the reference."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_kernels import Epilogue, layout, reference
from bnn_kernels.derived import Derived
from bnn_kernels.geometry import Conv2dGeometry

pytest.importorskip('triton', reason='the Triton kernels need triton')

from bnn_kernels.triton import tensorcore, tensorcore_rewrite, tensorcore_tables

from . import cases
from .oracle import SEEDS
from .ptx.block import EmulationError
from .ptx.device import Chip

CHIPS = {'sm_80': dict(capability=(8, 0)), 'sm_90a mma': dict(capability=(9, 0)),
         'sm_90a wgmma': dict(capability=(9, 0), wgmma=True, processors=2)}
CHANNELS = (64, 96, 128, 256, 512)
CONVOLUTIONS = [  # kernel, stride, padding, dilation, pad_value
    ((3, 3), (1, 1), (1, 1), (1, 1), 1), ((3, 3), (2, 2), (1, 1), (1, 1), 0), ((3, 3), (2, 1), (0, 1), (1, 1), -1),
    ((3, 3), (1, 1), (2, 1), (2, 1), 0), ((1, 1), (2, 2), (0, 0), (1, 1), 0), ((2, 3), (1, 2), (1, 0), (1, 1), 0),
    ((4, 5), (1, 1), (0, 0), (1, 1), 0)]
BLOCKS = [  # dtype, shortcut, act, replicas
    (torch.float16, True, 'prelu', 1), (torch.bfloat16, True, 'prelu', 2), (torch.float32, False, 'hardtanh', 1),
    (torch.float16, True, 'relu', 3), (torch.bfloat16, False, 'identity', 1)]


@pytest.fixture(params=CHIPS)
def chip(request):
    return Chip(**CHIPS[request.param])


def convolution(seed=0, batch=2, height=5, width=7, channels=64, outputs=64, kernel=(3, 3), stride=(1, 1), padding=(1, 1),
                dilation=(1, 1), pad_value=0):
    """Arguments of a convolution of random bits."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, channels, height, width, generator=draw)
    weight = torch.randn(outputs, channels, *kernel, generator=draw)
    geometry = Conv2dGeometry(channels, outputs, kernel, stride, padding, dilation, 1, pad_value)
    return dict(x_words=reference.pack_activations(image), w_words=layout.pack_weight(weight), geometry=geometry)


def signs(call, replicas=1, flip=True, out_groups=1, seed=0):
    """Thresholds around the sums, at their very values now and then, and beyond all of them."""
    draw = torch.Generator().manual_seed(seed)
    size = replicas * len(call['w_words'])
    threshold = torch.randint(-20, 20, (size,), generator=draw, dtype=torch.int32)
    threshold[:4] = torch.tensor([2**31 - 1, -2**31, 2**24, -2**24])
    flips = torch.rand(size, generator=draw) < .5
    return call | dict(threshold=threshold, flip=flips if flip else None, out_groups=out_groups)


def block(call, dtype=torch.float16, shortcut=True, act='prelu', replicas=1, seed=0, **changes):
    """Float epilogues with exact zeros, infinities and NaN in the shortcut, and thresholds that are met exactly."""
    draw = np.random.default_rng(seed)
    size = replicas * len(call['w_words'])

    def vector(*values):
        return torch.from_numpy(draw.choice(np.float32(values), size))

    shape = call['geometry'].shape(call['x_words'].shape)
    stream = torch.from_numpy(draw.choice(np.float32([-1.5, -.25, 0, 1, 3, np.inf, -np.inf, np.nan, 1e5]),
                                          (shape[0], size, *shape[2:]))).to(dtype) if shortcut else None
    prelu = act == 'prelu'
    epilogue = Epilogue(vector(-.3, 0, .001, .1, 7), vector(-1, 0, .3), act, vector(-.5, 0, .7) if prelu else None,
                        vector(-.3, 0, .25, 1.1) if prelu else None, vector(-.2, 0, .1) if prelu else None,
                        vector(-.5, 0, .3, 1))
    return call | dict(epilogue=epilogue, shortcut=stream, dtype=dtype, pack=True, keep=True) | changes


def agree(chip, op, call):
    """The emulated backend and the reference return the same bits."""
    backend = chip.backend()
    able, reason = backend.supports(op, **call)
    assert able, reason
    got, want = getattr(backend, op)(**call), getattr(reference, op)(**call)
    for result, expected in zip(*[value if isinstance(value, tuple) else (value,) for value in (got, want)], strict=True):
        assert (result.dtype, result.shape, result.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.allclose(result.double(), expected.double(), rtol=0, atol=0, equal_nan=True)
    return chip.executed[-1]


@pytest.mark.parametrize('channels', CHANNELS)
def test_signs(chip, channels):
    agree(chip, 'binary_conv2d_sign', signs(convolution(channels=channels, outputs=128 if channels == 256 else 64)))


@pytest.mark.parametrize('case', CONVOLUTIONS, ids=str)
def test_convolutions(chip, case):
    kernel, stride, padding, dilation, pad_value = case
    call = convolution(height=9, channels=40, outputs=32, kernel=kernel, stride=stride, padding=padding, dilation=dilation,
                       pad_value=pad_value)
    agree(chip, 'binary_conv2d', call)


@pytest.mark.parametrize('case', BLOCKS, ids=str)
def test_float_epilogues(chip, case):
    dtype, shortcut, act, replicas = case
    agree(chip, 'binary_block2d', block(convolution(outputs=32), dtype, shortcut, act, replicas))


def test_block_of_wide_layers(chip):
    agree(chip, 'binary_block2d', block(convolution(channels=256, outputs=128, batch=1)))


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11), SEEDS)
def test_any_image_with_one_compiled_kernel(batch, height, width, seed):
    for arguments in CHIPS.values():
        chip = Chip(**arguments)
        agree(chip, 'binary_conv2d_sign', signs(convolution(seed, batch, height, width)))


def test_tall_tiles():
    call = signs(convolution(height=12, width=13, channels=128))
    program = agree(Chip((8, 6)), 'binary_conv2d_sign', call)
    assert sum(i.op[0] == 'mma' for i in program.instructions) == 5 * 128 // 64 * 64 // 8


def test_sizes_are_no_part_of_a_kernel():
    programs = set()
    for batch, height, width in ((1, 1, 1), (1, 15, 16), (2, 5, 16), (3, 7, 2)):
        chip = Chip((8, 0))
        programs.add(id(agree(chip, 'binary_conv2d_sign', signs(convolution(batch=batch, height=height, width=width)))))
    assert len(programs) == 1


def test_what_is_not_asked_for(chip):
    call = convolution(outputs=32)
    agree(chip, 'binary_block2d', block(call, pack=False))
    agree(chip, 'binary_block2d', block(call, keep=False))
    call = block(call)
    agree(chip, 'binary_block2d', call | dict(epilogue=call['epilogue']._replace(gamma=None, zeta=None, threshold=None)))


def test_replicas_and_flips_of_signs(chip):
    agree(chip, 'binary_conv2d_sign', signs(convolution(outputs=32), replicas=4, out_groups=2))
    agree(chip, 'binary_conv2d_sign', signs(convolution(outputs=32), flip=False))


def test_in_place(chip):
    call = block(convolution(outputs=32))
    want, stream = reference.binary_block2d(**call)
    here = call['shortcut'].contiguous(memory_format=torch.channels_last)
    words, same = chip.backend().binary_block2d(**call | dict(shortcut=here, out=here))
    assert same is here
    assert torch.equal(words, want)
    assert torch.allclose(here, stream, rtol=0, atol=0, equal_nan=True)


def test_linear(chip):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 100, generator=draw), torch.randn(64, 100, generator=draw)
    agree(chip, 'binary_linear', dict(x_words=reference.pack_features(x), w_words=layout.pack_weight(weight), features=100))


def test_empty_batch(chip):
    call = convolution(batch=1)
    call['x_words'] = call['x_words'][:0]
    assert chip.backend().binary_conv2d(**call).shape == (0, 64, 5, 7)
    assert not chip.executed


MUTATIONS = {  # chip, what to find in the PTX, what to put there, how it is noticed; 'all ...' at all places, not the first
    'other operation': ('sm_80', r'\.xor\.popc', '.and.popc', AssertionError),
    'operands a1 and a2 change places':
        ('sm_80', r'(popc \{[^}]*\}, \{)(%\w+), (%\w+), (%\w+)', r'\1\2, \4, \3', AssertionError),
    'a tap less': ('sm_90a wgmma', r'wgmma\.mma_async[^;]*;', '', AssertionError),
    'fresh accumulators': ('sm_90a wgmma', r'(wgmma\.mma_async[^;]*), (?:1|%p\d+);(?![\s\S]*mma_async)', r'\1, 0;',
                           AssertionError),
    'a popcount less': ('sm_90a wgmma', r'popc\.b32 (c\d), %r\d+;', r'mov.b32 \1, 0;', AssertionError),
    'no wait for wgmma': ('sm_90a wgmma', r'wgmma\.wait_group[^;]*;', '', EmulationError),
    'all fences of registers gone': ('sm_90a wgmma', r'wgmma\.fence[^;]*;', '', EmulationError),
    'all commits gone': ('sm_90a wgmma', r'wgmma\.commit_group[^;]*;', '', EmulationError),
    'an operand overwritten in flight':
        ('sm_90a wgmma', r'(wgmma\.mma_async[^{}]*\{[^}]*\}, \{(%r\d+)[^;]*;)', r'\1 mov.b32 \2, 0;', EmulationError),
    'no proxy fence': ('sm_90a wgmma', r'fence\.proxy[^;]*;', '', EmulationError),
    'no wait for copies': ('sm_80', r'cp\.async\.wait_group[^;]*;', '', EmulationError),
    'all barriers gone': ('sm_80', r'bar\.sync[^;]*;', '', EmulationError),
    'a copy less': ('sm_80', r'cp\.async\.cg[^;]*;', '', EmulationError),
    'all pixels real': ('sm_80', r'min\.s32\s+(%r\d+), (%r\d+), %r\d+;', r'mov.b32 \1, \2;', EmulationError),
    'all signs shifted too far': ('sm_80', r'(shf\.l\.wrap\.b32 [^;]*), 1;', r'\1, 2;', AssertionError),
    'all loads unguarded': ('sm_80', r'@%p\d+ ld\.global', 'ld.global', (AssertionError, EmulationError)),
    'swizzle ignored': ('sm_90a wgmma', r'(or\.b64\s+%rd\d+, %rd\d+, )(-?\d+);',
                        lambda match: f'{match[1]}{int(match[2]) & ~(3 << 62) | 1 << 62};', (AssertionError, EmulationError)),
}


@pytest.mark.parametrize('name', MUTATIONS)
def test_mutations_of_the_ptx_are_noticed(name):
    chip, find, replace, error = MUTATIONS[name]
    changed = []

    def change(ptx):
        changed.append(re.subn(find, replace, ptx, count=0 if name.startswith('all') else 1))
        return changed[-1][0]

    with pytest.raises(error):
        # Sums of up to 64 channels are taken without popcounts.
        agree(Chip(**CHIPS[chip], change=change), 'binary_conv2d_sign',
              signs(convolution(batch=1, channels=128 if 'popcount' in name else 64)))
    assert changed[-1][1], 'nothing in the PTX was changed'


@pytest.mark.parametrize('name', ['MAGIC_BITS', 'BORDER_CLASSES'])
def test_mutations_of_the_tables_are_noticed(name, monkeypatch):
    monkeypatch.setattr(tensorcore_tables, name, getattr(tensorcore_tables, name) // 2)
    with pytest.raises((AssertionError, EmulationError)):
        agree(Chip((8, 0)), 'binary_block2d', block(convolution(outputs=32)))


def test_division():
    draw = np.random.default_rng(0)
    for value in itertools.chain(range(1, 300), draw.integers(1, 2**31, 300).tolist(), (2**31 - 1, 2**30, 2**30 + 1)):
        numbers = tensorcore.divisor('n', value)
        multiplier, shift = numbers['n_multiplier'] % 2**32, numbers['n_shift']
        for n in (0, 1, value - 1, value, min(value + 1, 2**31 - 1), 2**31 - 1, *draw.integers(0, 2**31, 20).tolist()):
            assert (2 * n * multiplier >> 32) >> shift == n // value


def test_prepared_parameters_follow_what_is_written_to_them():
    call, backend = signs(convolution(outputs=32)), Chip((8, 0)).backend()
    ready = lambda: tensorcore_tables.operands(call['w_words'], call['threshold'], call['flip'], call['geometry'],  # noqa: E731
                                               True, 'sign', 'xor', 32, False)
    backend.binary_conv2d_sign(**call)
    assert ready() is ready()
    first = ready()
    for name in ('w_words', 'threshold', 'flip'):
        call[name].logical_not_() if name == 'flip' else call[name].neg_()
        assert torch.equal(backend.binary_conv2d_sign(**call), reference.binary_conv2d_sign(**call))
        assert ready() is not first
        first = ready()
    call['threshold'] = call['threshold'].clone()
    assert ready() is not first


def test_prepared_parameters_go_with_their_weight():
    call = convolution(outputs=32)
    before = len(tensorcore_tables._operands.entries)
    tensorcore_tables.operands(call['w_words'], None, None, call['geometry'], True, 'sums', 'xor', 32, False)
    assert len(tensorcore_tables._operands.entries) == before + 1
    del call
    assert len(tensorcore_tables._operands.entries) == before


def test_views_made_anew_are_prepared_once(monkeypatch):
    """As the layers give them: `weight_bits` is iterated, a linear weight becomes that of a 1x1 convolution."""
    made, new = [], Derived.new
    monkeypatch.setattr(Derived, 'new', lambda self, *arguments: made.append(self.make) or new(self, *arguments))
    random = np.random.default_rng(0)
    backend, planes, x_words = Chip((8, 0)).backend(), cases.words(random, 2, 32, 64), cases.words(random, 3, 64)
    for _ in range(3):
        for w_words in planes:
            sums = backend.binary_linear(x_words=x_words, w_words=w_words, features=64)
            assert torch.equal(sums, reference.binary_linear(x_words, w_words, 64))
    assert len(made) == 2


def test_inference_tensors_are_prepared_every_time():
    with torch.inference_mode():
        call = convolution(outputs=32)
        backend = Chip((8, 0)).backend()
        for _ in range(2):
            assert torch.equal(backend.binary_conv2d(**call), reference.binary_conv2d(**call))
            call['w_words'].neg_()


@pytest.mark.parametrize(('changes', 'reason'), [
    (dict(outputs=48), 'a multiple of 32 output channels, got 48'),
    (dict(kernel=(5, 5), padding=(2, 2)), 'pads kernels of 2 and 3 taps by up to one tap, got padding=2 for 5 taps'),
    (dict(padding=(2, 2)), 'got padding=2 for 3 taps and dilation=1'),
    (dict(kernel=(6, 6), height=9), 'at most 30 taps, got a kernel of 6 x 6'),
    (dict(channels=60000, height=3, width=3, batch=1, outputs=32), 'do not fit into the shared memory'),
])
def test_refusals(changes, reason):
    able, why = Chip((8, 0)).backend().supports('binary_conv2d', **convolution(**changes))
    assert not able
    assert reason in why


def test_more_refusals():
    call = convolution()
    backend = Chip((8, 0)).backend()
    grouped = call | dict(geometry=call['geometry']._replace(groups=2))
    assert 'no groups, got groups=2' in backend.supports('binary_conv2d', **grouped)[1]
    assert 'whole words per output group, got 64 channels in 4 groups' in backend.supports(
        'binary_conv2d_sign', **signs(call, out_groups=4))[1]
    assert 'this GPU has 12.0' in Chip((12, 0)).backend().supports('binary_conv2d', **call)[1]
    assert 'needs CUDA tensors, got cpu' in tensorcore.TensorCore().supports('binary_conv2d', **call)[1]
    assert 'does not implement pack_features' in backend.supports('pack_features')[1]
    if not torch.cuda.is_available():
        assert tensorcore.TensorCore().available() == (False, 'triton-tensorcore needs an NVIDIA GPU, and torch sees none')


def test_rewriting():
    wgmma = 'wgmma.mma_async.sync.aligned.m64n64k{}.s32.{} {{}};'
    marked = f'{tensorcore_rewrite.MARKER} {wgmma.format(32, "s8.s8")}'
    assert tensorcore_rewrite.rewritten(marked).strip() == wgmma.format(256, 'b1.b1.and.popc')
    plain = wgmma.format(32, 's8.s8')
    assert tensorcore_rewrite.rewritten(plain) == plain
    for ptx in (tensorcore_rewrite.MARKER, f'{marked} {wgmma.format(32, "u8.s8")}',
                f'{marked} mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32'):
        with pytest.raises(RuntimeError, match='writes int8 MMAs that bnn_kernels does not know: set BNN_KERNELS_WGMMA=0'):
            tensorcore_rewrite.rewritten(ptx)
    assert tensorcore_rewrite.refusal('3.6.0') == ''
    assert 'not tested with Triton 3.5.1' in tensorcore_rewrite.refusal('3.5.1')


def test_a_hook_that_is_there_runs_first(monkeypatch):
    from triton import knobs
    seen = []

    def other(backend=None, stages=None, options=None, language=None, capability=None):
        if stages is None:
            return 'other', 'other'
        seen.append(sorted(stages))
        stages['ptx'] = lambda source, metadata: f'{tensorcore_rewrite.MARKER} {source}'

    monkeypatch.setattr(knobs.runtime, 'add_stages_inspection_hook', other)
    tensorcore_rewrite.install()
    tensorcore_rewrite.install()
    stages = {'ptx': None}
    knobs.runtime.add_stages_inspection_hook(None, stages, None, None, 90)
    assert seen == [['ptx']]
    assert 'k256.s32.b1.b1.and.popc' in stages['ptx']('wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8', {})
    assert all('other' in part and tensorcore_rewrite.KEY in part for part in knobs.runtime.add_stages_inspection_hook())
