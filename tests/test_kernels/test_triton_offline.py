"""The Triton backends through Triton's own way to a launch, for GPUs that are not here; benchmarks.gpu.warm has all cases."""

import copy
import importlib
import inspect
import pkgutil
import re
from contextlib import contextmanager
from itertools import chain

import pytest
import torch
from torch import nn

pytest.importorskip('triton', reason='the Triton kernels need triton')

from triton.backends.amd.compiler import HIPOptions
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime.jit import JITFunction

import bnn_kernels as bk
import bnn_kernels.triton
import bnn_plugins
from benchmarks.gpu import exactness, warm
from bnn_kernels import dispatch
from bnn_kernels.triton.offline import compiling_for
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

ARCHITECTURES = 'sm_80', 'sm_89', 'sm_90'
CASES = [(f'{place} {op}', op, call) for place, (op, call) in enumerate(
    chain(exactness.cases(torch.device('cpu'), [exactness.SMALL]), exactness.sequences(torch.device('cpu'), True),
          exactness.real_layers(torch.device('cpu'), exactness.SMALL)))]


@pytest.fixture
def made():
    """What has been made from tensors, so far."""
    with warm.preparations() as made:
        yield made


def kernels():
    """Every kernel of the package, and what kernels call."""
    for module in pkgutil.iter_modules(bnn_kernels.triton.__path__, 'bnn_kernels.triton.'):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, JITFunction):
                yield value


def test_no_argument_of_a_kernel_is_a_word_of_triton():
    """Of the launch: `stream` was one, and no launch with it by name took place."""
    refused = re.findall(r"[\"'](\w+)[\"'] not in kwargs", inspect.getsource(JITFunction._pack_args))
    assert 'stream' in refused
    words = {*refused, *inspect.signature(JITFunction.run).parameters, *CUDAOptions.__dataclass_fields__,
             *HIPOptions.__dataclass_fields__, 'backend', 'options', 'specialize_impl'}  # the last three: of Triton's binder
    named = {kernel.__name__: kernel.arg_names for kernel in kernels()}
    assert {'convolve', 'convolve_int8', 'quantize', 'finish_apart', 'pack_signs', 'lstm', 'attend', 'pack_normalized',
            'conv_mma', 'conv_wgmma'} <= set(named)
    assert {name: words & set(arguments) for name, arguments in named.items() if words & set(arguments)} == {}


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('backend', exactness.BACKENDS)
def test_every_kind_of_call_is_launched(backend, architecture, made):
    """Some of the calls for each architecture; the second time, nothing is compiled or prepared."""
    place = ARCHITECTURES.index(architecture) + 3 * exactness.BACKENDS.index(backend)
    launched = 0
    with compiling_for(architecture) as gpu, bk.set_backend(backend):
        for name, op, call in CASES[place::18]:
            result = exactness.outcome(op, call, None, backend)
            if result.startswith('refused'):
                assert backend == 'triton-tensorcore', (name, result)
                continue
            assert result == 'ran', name
            count = len(gpu.kernels), len(gpu.launches), len(made)
            getattr(bk, op)(**call)
            assert (len(gpu.kernels), len(made)) == (count[0], count[2]), name
            assert len(gpu.launches) == count[1] + 1, name
            launched += 1
    assert launched


def network():
    conv = nn.Sequential(BinaryConv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
    layers = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.BatchNorm2d(64), *conv, *copy.deepcopy(conv), nn.AdaptiveAvgPool2d(1),
                           nn.Flatten(), BinaryLinear(64, 64, bias=False))
    return bnn_plugins.pack_(layers.eval())


@contextmanager
def preferred(name):
    """The backend comes before all others, which run what it cannot."""
    known = dict(dispatch.BACKENDS)
    for other in known:
        dispatch.BACKENDS.pop(other)
    dispatch.BACKENDS.update({name: known[name]} | known)
    try:
        yield
    finally:
        dispatch.BACKENDS.clear()
        dispatch.BACKENDS.update(known)


@torch.no_grad()
@pytest.mark.parametrize('fused', [False, True], ids=['packed', 'fused'])
@pytest.mark.parametrize('backend', exactness.BACKENDS)
def test_packed_models_prepare_and_compile_once(backend, fused, made):
    model, image = network(), torch.randn(1, 3, 16, 16)
    if fused:
        bnn_plugins.fuse_(model)
    launches = []
    with compiling_for('sm_90') as gpu, preferred(backend):
        for _ in range(3):
            counts = len(made), len(gpu.kernels), len(gpu.launches)
            model(image)
            launches.append(gpu.launches[counts[2]:])
    assert counts == (len(made), len(gpu.kernels), 2 * len(launches[0]))
    assert [launch.kernel for launch in launches[2]] == [launch.kernel for launch in launches[0]]


@torch.no_grad()
def test_real_layers_in_int8_run_as_on_the_cpu(made):
    """A stem whose largest sums are taken, a grouped and a 1x1 layer: one launch each, two where sums are pooled."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
              nn.Conv2d(64, 64, 3, 1, 1, groups=16), nn.ReLU(), nn.Conv2d(64, 40, 1),
              BinaryConv2d(40, 64, 3, padding=1, bias=False)]
    model, image = bnn_plugins.pack_(nn.Sequential(*layers).eval()), torch.randn(2, 3, 33, 40)
    bnn_plugins.quantize_rest_(model, [image])
    bnn_plugins.fuse_(model)
    with compiling_for('sm_90') as gpu, preferred('triton-bitplane'):
        for _ in range(2):
            counts = len(made), len(gpu.kernels)
            with dispatch.recorded() as ran:
                model(image)
    assert {op for op, name in ran.items() if name != 'triton-bitplane'} == {'to_planes'}  # a copy, by torch on a GPU
    assert (len(made), len(gpu.kernels)) == counts
    assert [one.kernel.metadata.name for one in gpu.launches[len(gpu.launches) // 2:]] == [
        'quantize', 'convolve_int8', 'finish_apart', 'convolve_int8', 'convolve_int8', 'convolve']


def test_one_compiled_kernel_whatever_the_address():
    """Words of an image within a batch begin anywhere: 7 x 7 pixels of 64 channels are 392 bytes."""
    words, weight = torch.zeros(3, 7, 7, 2, dtype=torch.int32), bk.pack_weight(torch.ones(64, 64, 3, 3))
    stream = torch.zeros(3, 7, 7, 64, dtype=torch.float16)[1:].permute(0, 3, 1, 2)
    odd = torch.zeros(1 + stream.numel(), dtype=torch.float16)[1:].view(2, 7, 7, 64).permute(0, 3, 1, 2)
    vectors = torch.ones(7, 65)[1:, 1:]
    call = dict(w_words=weight, channels=64, padding=1)
    for backend in exactness.BACKENDS:
        with compiling_for('sm_90') as gpu, bk.set_backend(backend):
            for x_words in words[:2], words[1:]:
                bk.binary_conv2d_sign(x_words, **call, threshold=torch.zeros(65, dtype=torch.int32)[1:65])
            assert len(gpu.kernels) == 1
            for out in stream, odd:
                bk.binary_block2d_(out, words[1:], **call, epilogue=bk.Epilogue(vectors[0], vectors[1]))
            assert len(gpu.kernels) == 2
            for launch in gpu.launches:
                tensors = [value for value in launch.arguments.values() if isinstance(value, torch.Tensor)]
                assert not any(tensor.data_ptr() % 16 for tensor in tensors)
