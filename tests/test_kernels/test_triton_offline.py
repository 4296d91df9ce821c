"""The Triton backends through Triton's own way to a launch, for GPUs that are not here; benchmarks.gpu.warm has all cases."""

import importlib
import inspect
import pkgutil
import re
from itertools import chain

import pytest
import torch

pytest.importorskip('triton', reason='the Triton kernels need triton')

from triton.backends.amd.compiler import HIPOptions
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime.jit import JITFunction

import bnn_kernels as bk
import bnn_kernels.triton
from benchmarks.gpu import exactness
from bnn_kernels.derived import Derived
from bnn_kernels.triton.offline import compiling_for

ARCHITECTURES = 'sm_80', 'sm_89', 'sm_90'
CASES = [(f'{place} {op}', op, call) for place, (op, call) in enumerate(
    chain(exactness.cases(torch.device('cpu'), [exactness.SMALL]), exactness.sequences(torch.device('cpu'), True)))]


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
    assert {'convolve', 'finish_apart', 'pack_signs', 'lstm_step', 'attend', 'pack_normalized', 'conv_mma',
            'conv_wgmma'} <= set(named)
    assert {name: words & set(arguments) for name, arguments in named.items() if words & set(arguments)} == {}


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('backend', exactness.BACKENDS)
def test_every_kind_of_call_is_launched(backend, architecture, monkeypatch):
    """Some of the calls for each architecture; the second time, nothing is compiled or prepared."""
    made, new = [], Derived.new
    monkeypatch.setattr(Derived, 'new', lambda self, *arguments: made.append(self.make) or new(self, *arguments))
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
            assert len(gpu.launches) == count[1] + (call['x'].shape[0] if op == 'binary_lstm' else 1), name
            launched += 1
    assert launched
