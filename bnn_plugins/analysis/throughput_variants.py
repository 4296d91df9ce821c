"""What is compared: the packed model in its forms, and its float twin as fast as torch makes it.

A *part* is a computation of a model, such as the backbone of a detector. A *form* says how a model runs: which of the three
models, dtype, memory format, compiled or not. A *variant* is a part in a form, on a backend, ready to be called.
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

import bnn_kernels
import bnn_kernels.cpu

from .anchors import compiled, missing
from .throughput import tensor_tree


@dataclass
class Models:
    """The same network several times, in evaluation mode.

    Attributes:
        packed, fused: after ``pack_``; and after block fusion. ``None`` where that is not to be measured.
        fused_bfloat16: fused with a stream of bfloat16 between the blocks.
        fused_int8: fused, its real layers in int8.
        twin: with real weights and activations, the way the host builds it.
        latent: what ``packed`` was made from, for the check; ``None`` skips it.
    """

    packed: nn.Module | None
    fused: nn.Module | None
    twin: nn.Module | None
    latent: nn.Module | None = None
    fused_bfloat16: nn.Module | None = None
    fused_int8: nn.Module | None = None


@dataclass
class Part:
    """A computation of a model.

    Attributes:
        name: such as ``'backbone'``.
        module: from a model to the module that runs; this is what gets compiled.
        inputs: of the module, on the device, float32.
        whole: the call around it, ``whole(run) -> result``, where ``run(*inputs)`` is the module in its form: pre- and
            post-processing that no form changes. ``None`` where there is none.
        calibration: inputs for engines that quantize.
    """

    name: str
    module: Callable[[nn.Module], nn.Module]
    inputs: tuple
    whole: Callable[[Callable], object] | None = None
    calibration: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Form:
    """How a model runs. ``model`` is an attribute of :class:`Models`, ``engine`` one of :mod:`.anchors`, in ``precision``."""

    model: str
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    compiled: bool = False
    graph: bool = False
    engine: str = ''
    precision: str = ''


def anchor(engine: str, precision: str) -> Form:
    return Form('twin', channels_last=False, engine=engine, precision=precision)


FORMS = {
    'fused': Form('fused'),
    'fused-compiled': Form('fused', compiled=True),
    'fused-graph': Form('fused', graph=True),
    'fused-bfloat16': Form('fused_bfloat16'),
    'fused-int8': Form('fused_int8'),
    'packed': Form('packed'),
    'float32': Form('twin'),
    'float32-nchw': Form('twin', channels_last=False),
    'float32-compiled': Form('twin', compiled=True),
    'float32-graph': Form('twin', graph=True),
    'bfloat16': Form('twin', torch.bfloat16),
    'bfloat16-compiled': Form('twin', torch.bfloat16, compiled=True),
    'bfloat16-graph': Form('twin', torch.bfloat16, graph=True),
    'openvino-float32': anchor('openvino', 'float32'),
    'openvino-bfloat16': anchor('openvino', 'bfloat16'),
    'openvino-int8': anchor('openvino', 'int8'),
    'onnxruntime-float32': anchor('onnxruntime', 'float32'),
    'onnxruntime-int8': anchor('onnxruntime', 'int8'),
}
ON_CPU = tuple(name for name, form in FORMS.items() if not form.graph and not (form.engine and missing(form.engine)))
ON_CUDA = tuple(name for name, form in FORMS.items() if not form.engine)
# Speed-ups are stated against each of these; where a baseline has two layouts, against the faster.
BASELINES = {'float32': ('float32', 'float32-nchw'), 'float32-compiled': ('float32-compiled',), 'bfloat16': ('bfloat16',),
             'bfloat16-compiled': ('bfloat16-compiled',), 'int8': ('openvino-int8', 'onnxruntime-int8')}


def check_forms(names: tuple[str, ...] | list[str], device: torch.device) -> None:
    """Raise ``ValueError`` for an unknown form, or one that the device cannot have."""
    for name in names:
        if name not in FORMS:
            nearest = get_close_matches(name, FORMS, n=1, cutoff=0)[0]
            raise ValueError(f'unknown variant {name!r}: did you mean {nearest!r}? Known are {", ".join(FORMS)}')
        if FORMS[name].graph and device.type != 'cuda':
            raise ValueError(f'the variant {name!r} records a CUDA graph and needs --device cuda')
        if FORMS[name].engine and device.type != 'cpu':
            raise ValueError(f'the variant {name!r} runs on the CPU, not with --device {device.type}')


@contextmanager
def on_backend(name: str | None) -> Iterator[None]:
    """A backend of ``bnn_kernels``, or ``'cpu:avx2'`` for one with an instruction set; ``None`` chooses automatically.

    Raises:
        ValueError: an unknown name. RuntimeError: this machine does not have it.
    """
    backend, _, isa = (name or '').partition(':')
    if isa and backend != 'cpu':
        raise ValueError(f"only the backend 'cpu' has instruction sets, but got {name!r}")
    with bnn_kernels.set_backend(backend or None), bnn_kernels.cpu.set_isa(isa) if isa else nullcontext():
        yield


class Variant:
    """A part in a form, ready to be called, on ``backend``: see :func:`on_backend`.

    Attributes:
        name: ``'fused'``, or ``'fused [cpu]'`` for a given backend.
        module: what runs, not compiled.
        seconds_to_build: the copy, the compilation and the first call.
    """

    def __init__(self, form: str, part: Part, models: Models, backend: str | None = None):
        start = time.perf_counter()
        self.form, self.part, self.backend = FORMS[form], part, backend
        self.form_name, self.name = form, f'{form} [{backend}]' if backend else form
        module = part.module(getattr(models, self.form.model))
        self.module = module if self.form.model != 'twin' else self._cast_module(module)
        with torch.inference_mode():  # as the inputs that Part.whole makes: compiled code is made anew for others
            self.inputs = tensor_tree(self._cast, part.inputs)
        self.runner: Callable = self.module
        if self.form.compiled:
            self.runner = torch.compile(self.module, fullgraph=True)
        if self.form.engine:
            self.runner = compiled(self.form.engine, self.form.precision, self.module, *self.inputs, part.calibration,
                                   torch.get_num_threads())
        with torch.inference_mode(), torch._inductor.config.patch(freezing=True), self._backend():
            self.runner(*self.inputs)
            if self.form.graph:
                self.runner = graphed(self.module, self.inputs)
        self.seconds_to_build = time.perf_counter() - start

    def _cast_module(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module).to(self.form.dtype)
        return module.to(memory_format=torch.channels_last if self.form.channels_last else torch.contiguous_format)

    def _cast(self, x: Tensor) -> Tensor:
        """A copy with the usual strides: those of a single image may be others, for which compiled code would be made anew."""
        dtype = self.form.dtype if x.is_floating_point() else x.dtype
        last = self.form.channels_last and x.dim() == 4
        memory_format = torch.channels_last if last else torch.contiguous_format
        return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format).copy_(x)

    def _backend(self) -> AbstractContextManager:
        return on_backend(self.backend) if self.is_packed else nullcontext()

    @property
    def is_packed(self) -> bool:
        return self.form.model != 'twin'

    def around(self, part: Part) -> 'Variant':
        """The same module, as it was built, within another part."""
        other = copy.copy(self)
        other.part = part
        return other

    def run(self, *inputs: object) -> object:
        """The module on inputs of any form: what :attr:`Part.whole` calls."""
        return self.runner(*tensor_tree(self._cast, inputs))

    def __call__(self) -> object:
        """One call on the part's inputs, under the caller's inference mode."""
        with self._backend():
            return self.runner(*self.inputs) if self.part.whole is None else self.part.whole(self.run)

    @property
    def model_bytes(self) -> int:
        """Parameters and buffers."""
        return sum(tensor.nbytes for tensor in (*self.module.parameters(), *self.module.buffers()))


def graphed(module: nn.Module, inputs: tuple) -> Callable:
    """``module`` recorded as a CUDA graph: inputs are copied into the recorded ones, the result is the recorded one."""
    static = tensor_tree(torch.clone, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = module(*static)

    def replay(*new: object) -> object:
        torch.utils._pytree.tree_map_only(Tensor, Tensor.copy_, static, new)
        graph.replay()
        return result
    return replay


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that one call holds at a time, on top of those that were there before (model and inputs)."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with silent_stderr(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                                 profile_memory=True) as profile:
        call()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]' and event.device_type() == torch.profiler.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def silent_stderr() -> Iterator[None]:
    """The profiler's library announces itself there at every start, whatever its log level is."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
