"""Every kind of launch of the plain Triton backends compiles, through Triton's own way to a launch, without spills."""

import re

import pytest
import torch

pytest.importorskip('triton')

from benchmarks.gpu import profile
from bnn_kernels import Epilogue, Recurrence
from bnn_kernels.attention import Planes
from bnn_kernels.geometry import Conv2dGeometry, Int8Conv2dGeometry, Pool2dGeometry, Stem2dGeometry
from bnn_kernels.triton.bitplane import Bitplane
from bnn_kernels.triton.offline import Launch, compiling_for
from bnn_kernels.triton.popcount import Popcount

BACKENDS = {'popcount': Popcount, 'bitplane': Bitplane}


def convolution(channels: int, outputs: int, kernel: int = 3, groups: int = 1, **changes):
    x_words = torch.zeros(2, 9, 8, groups * -(-channels // groups // 32), dtype=torch.int32)
    w_words = torch.zeros(outputs, kernel, kernel, -(-channels // groups // 32), dtype=torch.int32)
    numbers = dict(padding=kernel // 2, groups=groups) | changes
    return dict(x_words=x_words, w_words=w_words, geometry=Conv2dGeometry(channels, outputs, kernel, **numbers))


def block(channels: int, outputs: int, dtype=torch.float16, replicas: int = 1, shortcut=True, out_groups=1, **changes):
    call = convolution(channels, outputs, **changes)
    width = replicas * outputs
    vector = torch.zeros(width)
    epilogue = Epilogue(vector, vector, 'prelu', vector, vector, vector, vector, out_groups)
    stream = torch.zeros(2, width, 9, 8, dtype=dtype).contiguous(memory_format=torch.channels_last) if shortcut else None
    return call | dict(epilogue=epilogue, shortcut=stream, dtype=dtype, pack=True, keep=True, out=stream)


def sign(channels: int, outputs: int, out_groups: int = 1, **changes):
    threshold = torch.zeros(outputs, dtype=torch.int32)
    return convolution(channels, outputs, **changes) | dict(threshold=threshold, flip=threshold.bool(), out_groups=out_groups)


def int8(channels: int, outputs: int, kernel: int, dtype=torch.uint8, **numbers):
    """Bytes behind it and a ReLU, or floats and words behind an RPReLU."""
    weight = torch.zeros(outputs, channels // numbers.get('groups', 1), kernel, kernel, dtype=torch.int8)
    vector, one, zero = torch.zeros(outputs), torch.ones(1), torch.zeros(1, dtype=torch.uint8)
    coded = dtype == torch.uint8
    epilogue = Epilogue(vector, vector, 'relu') if coded else Epilogue(vector, vector, 'prelu', vector, vector, vector, vector)
    return dict(x=torch.zeros(2, channels, 33, 34, dtype=torch.uint8), x_zero=zero, weight=weight, epilogue=epilogue,
                geometry=Int8Conv2dGeometry.of(weight.shape, padding=kernel // 2, **numbers), shortcut=None, dtype=dtype,
                out_scale=one if coded else None, out_zero=zero if coded else None, pack=not coded, keep=True)


X = torch.zeros(2, 64, 9, 8, dtype=torch.float16)
CALLS = {
    'conv': ('binary_conv2d', convolution(40, 24, pad_value=1, stride=(2, 2))),
    'transposed': ('binary_conv_transpose2d', convolution(64, 32, 2, stride=2, output_padding=0)),
    'linear': ('binary_linear', dict(x_words=torch.zeros(50, 16, dtype=torch.int32),
                                     w_words=torch.zeros(1000, 16, dtype=torch.int32), features=512)),
    'block-64': ('binary_block2d', block(64, 64)),
    'block-128': ('binary_block2d', block(128, 128, torch.bfloat16)),
    'block-512': ('binary_block2d', block(512, 512, torch.float32)),
    'block-grouped': ('binary_block2d', block(96, 60, groups=3, out_groups=2, shortcut=False)),
    'block-replicas': ('binary_block2d', block(64, 64, replicas=4)),
    'sign-64': ('binary_conv2d_sign', sign(64, 64)),
    'sign-256': ('binary_conv2d_sign', sign(256, 256, pad_value=-1)),
    'pack': ('pack_activations', dict(x=X, threshold=torch.zeros(64), groups=1)),
    'pack-channels-last': ('pack_activations', dict(x=X.bfloat16().contiguous(memory_format=torch.channels_last),
                                                    threshold=None, groups=2)),
}
def lstm(units: int, **changes):
    words, vectors = units // 32, torch.zeros(3, 2, 4 * units)
    return dict(x=torch.zeros(2, 20, 2, 4 * units, dtype=torch.int32), cell=torch.zeros(2, 20, units),
                w_words=torch.zeros(2, 4 * units, words, dtype=torch.int32), pack=True, keep=True,
                recurrence=Recurrence(*vectors, torch.zeros(2, units)), lengths=torch.zeros(20, dtype=torch.int64),
                h_words=torch.zeros(2, 20, words, dtype=torch.int32)) | changes


ATTENTION = dict(q_words=torch.zeros(2, 50, 3, 2, dtype=torch.int32), k_words=torch.zeros(2, 50, 3, 2, dtype=torch.int32),
                 v_words=torch.zeros(2, 3, 64, 2, dtype=torch.int32), head_dim=64, mask_words=None,
                 planes=Planes(('bool',), torch.zeros(1, 3, dtype=torch.float64)))
PLANES = dict(mask_words=torch.zeros(2, 1, 2, dtype=torch.int32),
              planes=Planes(('elastic', 'max_relative'), torch.zeros(2, 3, dtype=torch.float64),
                            torch.zeros(1, 65, dtype=torch.int32), torch.zeros(2, 3)))
LSTM = lstm(512)
BINARY = LSTM['recurrence']._replace(gates='binary', candidate='sign', readout='cell', feedback='and')
CALLS |= {
    'downsample': ('downsample2d', dict(x=X, weight=torch.zeros(128, 64), bias=torch.zeros(128), pool=2)),
    'stem': ('stem2d', dict(x=torch.zeros(2, 3, 33, 34), weight=torch.zeros(64, 3, 7, 7),
                            geometry=Stem2dGeometry(3, 64, 7, 2, 3, 3, 2, 1), epilogue=block(64, 64)['epilogue'],
                            dtype=torch.float16, pack=True)),
    'int8-stem': ('int8_pooled2d', {name: value for name, value in int8(3, 64, 7, stride=2).items() if name not in (
        'shortcut', 'keep')} | dict(window=Pool2dGeometry('max', (3, 3), (2, 2), (1, 1)))),
    'int8-64': ('int8_conv2d', int8(64, 64, 3)),
    'int8-512': ('int8_conv2d', int8(512, 512, 3, torch.float16)),
    'int8-depthwise': ('int8_conv2d', int8(96, 96, 3, groups=96)),
    'int8-grouped': ('int8_conv2d', int8(128, 128, 3, groups=32)),
    'quantize': ('quantize', dict(x=X, scale=torch.ones(1), zero_point=torch.zeros(1, dtype=torch.uint8))),
    'lstm-soft': ('binary_lstm', LSTM),
    'lstm-64': ('binary_lstm', lstm(64)),
    'lstm-128': ('binary_lstm', lstm(128)),
    'lstm-256': ('binary_lstm', lstm(256)),
    'lstm-binary': ('binary_lstm', LSTM | dict(recurrence=BINARY, lengths=None,
                                               cell=torch.zeros(2, 20, 512, dtype=torch.int8), x=LSTM['x'].float())),
    'attention-bool': ('binary_attention', ATTENTION),
    'attention-planes': ('binary_attention', ATTENTION | PLANES),
    'normalized': ('pack_normalized', dict(x=torch.zeros(50, 384, dtype=torch.bfloat16), mean=torch.zeros(50),
                                           std=torch.zeros(50), threshold=torch.zeros(384), flip=torch.zeros(384).bool())),
}
# Each call once for an NVIDIA GPU, by turns of architecture, and the kernels that matter for all of them and for AMD.
CASES = [
    ('bitplane', 'sm_80', 'block-64'), ('bitplane', 'sm_89', 'block-128'), ('bitplane', 'sm_90', 'block-512'),
    ('bitplane', 'sm_90', 'sign-64'), ('bitplane', 'sm_80', 'sign-256'), ('bitplane', 'sm_100', 'sign-256'),
    ('bitplane', 'sm_89', 'conv'), ('bitplane', 'sm_90', 'transposed'), ('bitplane', 'sm_80', 'linear'),
    ('bitplane', 'sm_90', 'block-replicas'), ('bitplane', 'gfx942', 'block-128'), ('bitplane', 'gfx942', 'sign-64'),
    ('popcount', 'sm_75', 'block-64'), ('popcount', 'sm_90', 'block-128'), ('popcount', 'sm_80', 'sign-256'),
    ('popcount', 'sm_75', 'transposed'), ('popcount', 'sm_89', 'linear'), ('popcount', 'sm_80', 'block-grouped'),
    ('popcount', 'gfx942', 'block-64'), ('popcount', 'sm_80', 'pack'), ('popcount', 'sm_90', 'pack-channels-last'),
    ('popcount', 'gfx942', 'pack'),
    ('popcount', 'sm_80', 'downsample'), ('bitplane', 'sm_90', 'downsample'), ('popcount', 'gfx942', 'downsample'),
    *[('popcount', architecture, 'stem') for architecture in ('sm_80', 'sm_89', 'sm_90', 'gfx942')],
    *[('popcount', architecture, call) for architecture, calls in {
        'sm_80': ['lstm-soft', 'lstm-64', 'attention-planes', 'int8-64', 'int8-512', 'int8-stem', 'int8-grouped'],
        'sm_89': ['lstm-binary', 'lstm-128', 'attention-bool', 'int8-64', 'int8-512', 'int8-stem', 'int8-depthwise'],
        'sm_90': ['lstm-soft', 'lstm-128', 'lstm-256', 'attention-planes', 'normalized', 'int8-64', 'int8-512', 'int8-stem',
                  'int8-depthwise', 'int8-grouped', 'quantize'],
        'gfx942': ['lstm-soft', 'lstm-256', 'attention-planes', 'int8-512', 'int8-stem', 'quantize'],
    }.items() for call in calls],
]


SIZES = ('pixels', 'height', 'width', 'out_height', 'out_width', 'batch', 'steps', 'queries', 'keys')


def launches(backend: str, architecture: str, op: str, **call) -> list[Launch]:
    """What a backend launches for a call on a GPU of `architecture`, with CPU tensors in the place of its own."""
    with compiling_for(architecture) as gpu:
        getattr(BACKENDS[backend](), op)(**call)
    return gpu.launches


@pytest.mark.parametrize(('backend', 'architecture', 'call'), CASES)
def test_compiles_without_spills(backend, architecture, call):
    noted = launches(backend, architecture, CALLS[call][0], **CALLS[call][1])
    assert len(noted) == (2 if call in ('block-grouped', 'int8-stem', 'lstm-soft', 'lstm-binary') else 1)  # LSTM: per step
    for kernel in {launch.kernel for launch in noted}:
        compiled = kernel.compiled
        if architecture.startswith('sm_'):
            machine, assembly = profile.disassembled(compiled['cubin']), compiled['ptx']
            assert machine.stack == 0
            assert machine.registers < 255
        else:
            assembly = compiled['amdgcn']
            registers, spills = (int(re.search(rf'\.vgpr_{what}:\s*(\d+)', assembly)[1]) for what in ('count', 'spill_count'))
            assert spills == 0
            assert registers < 255
        # The contract forbids contraction: not one fused multiply-add, in the compiler's output or, with --fmad=false, later.
        if call == 'downsample':
            continue  # real-valued sums: their order is not part of the contract
        # A multiplication of float16 by float32 is one that adds -0, which rounds as it does.
        assert not re.search(r'\bfma\.|v_fma(?!_mix_f32 v\d+, v\d+, s\d+, neg\(0\))|v_mac_f|v_pk_fma', assembly)
        if 'pack' not in call:
            assert kernel.metadata.enable_fp_fusion is False
            parameters = {parameter.name: parameter for parameter in kernel.source.fn.params}
            assert all(parameters[name].do_not_specialize for name in SIZES if name in parameters)


@pytest.mark.parametrize(('backend', 'architecture', 'instruction', 'expected'), [
    ('bitplane', 'sm_80', r'mma\.sync\.aligned\.m16n8k32\S*s8\.s8', 8 * 8),  # 8 planes, 64 x 64 x 32 bytes on 4 warps
    ('bitplane', 'sm_90', r'wgmma\.mma_async\.sync\.aligned\.m64n64k32\.s32\.s8\.s8', 8),
    ('popcount', 'sm_80', r'popc\.b32', 16),  # two words, 32 x 32 on 4 warps
    ('bitplane', 'gfx942', 'v_mfma_i32', 32),
    ('int8', 'sm_80', r'mma\.sync\.aligned\.m16n8k32\S*s8\.s8', 16),  # 64 x 64 x 64 bytes on 4 warps
    ('int8', 'sm_90', r'wgmma\.mma_async\.sync\.aligned\.m64n64k32\.s32\.s8\.s8', 2),
    ('int8', 'gfx942', 'v_mfma_i32', 12),
    ('popcount', 'gfx942', 'v_bcnt_u32_b32', 8),
])
def test_the_matrix_and_popcount_units_are_used(backend, architecture, instruction, expected):
    call = CALLS['int8-64' if backend == 'int8' else 'sign-64']
    noted, = launches('bitplane' if backend == 'int8' else backend, architecture, call[0], **call[1])
    compiled = noted.kernel.compiled
    assert len(re.findall(instruction, compiled['ptx' if 'ptx' in compiled else 'amdgcn'])) == expected


def test_words_across_tiles_take_a_second_kernel():
    """One group of outputs does not end at a word: the sums are stored, and packed by a kernel of its own."""
    noted = launches('bitplane', 'sm_90', CALLS['block-grouped'][0], **CALLS['block-grouped'][1])
    assert [one.kernel.metadata.name for one in noted] == ['convolve', 'finish_apart']
    assert noted[0].arguments['sums'].shape == (2 * 9 * 8, 60)
    assert noted[0].arguments['words'] is None
    for call in 'block-64', 'block-replicas', 'sign-256':
        noted, = launches('bitplane', 'sm_90', CALLS[call][0], **CALLS[call][1])
        assert noted.arguments['sums'] is None


def test_steps_of_one_launch_wait_for_each_other():
    """A thread reads bits that others have stored: a barrier lies between a step's last store and the next step."""
    noted, = launches('popcount', 'sm_90', 'binary_lstm', **lstm(128))
    assert noted.arguments['count'] == 2
    assert noted.grid == (2 * 20 // 4, 1, 1)
    machine = profile.disassembled(noted.kernel.compiled['cubin'])
    names = [i.name for i in machine.instructions]
    stores, barriers = ([place for place, name in enumerate(names) if name.startswith(what)] for what in ('STG', 'BAR.SYNC'))
    back = max(place for place, i in enumerate(machine.instructions) if i.name == 'BRA' and any(
        int(target, 16) < machine.instructions[stores[0]].address for target in re.findall('0x([0-9a-f]+)', i.operands)))
    assert any(max(store for store in stores if store < back) < barrier < back for barrier in barriers)


def test_in_place_needs_no_copy():
    call = block(64, 64)
    noted, = launches('bitplane', 'sm_90', 'binary_block2d', **call)
    assert noted.arguments['out'].data_ptr() == noted.arguments['shortcut'].data_ptr() == call['out'].data_ptr()
