"""What one forward pass says about each layer: who reads its output, what its input was computed from, behind which ReLU.

The model is called once, as a copy. Each tensor carries a :class:`Flow`, which all functions of torch hand on; a convolution,
a linear layer or a recurrent one begins a new one. No shape, class or name of a model is known here.
"""

import copy
import random
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from .flow import (
    Flow,
    LayerFlow,
    Probe,
    RawOutputs,
    Trace,
    bounds,
    broadcast,
    carry,
    flow_of,
    has_values,
    learned,
    merge,
    tensors,
)

LAYERS = (_ConvNd, nn.Linear, nn.RNNBase)
NON_NEGATIVE = (nn.ReLU, nn.ReLU6)
# Its base has the method: mmcv keeps ``Function.apply`` of its operators under names of their own.
CUSTOM = torch.autograd.function._SingleLevelFunction

# Functions by their names; those in place have a trailing underscore, which is cut off.
PRODUCTS = {'matmul', 'bmm', 'mm', 'einsum', 'baddbmm', 'scaled_dot_product_attention', 'linear', 'conv1d', 'conv2d', 'conv3d'}
MULTIPLIES, ADDS = {'mul', 'multiply', 'div', 'addcmul'}, {'add', 'sub', '__rsub__'}
SQUASHES = {'sigmoid', 'softmax', 'hardsigmoid'}
NORMS = {'batch_norm', 'layer_norm', 'group_norm', 'instance_norm', 'rms_norm'}
RESHAPES = {'to', 'float', 'type_as', 'contiguous', 'view', 'reshape', 'permute', 'transpose', 'flatten', 'unflatten'}
FIRST_ONLY = {'grid_sample', 'type_as', 'to', 'view_as', 'reshape_as', 'expand_as'}
MAY_BE_NEGATIVE = {'sub', '__rsub__', 'neg', 'log', 'sin', 'cos', 'normalize', *NORMS}
# Their results have the shape or the type of a tensor, not its values.
ZEROS = frozenset({'zeros'})  # what makes a tensor of zeros non-negative: no ReLU, and no reason by itself
NO_VALUES = ('new_', 'zeros_like', 'ones_like', 'empty_like', 'full_like', 'rand_like', 'randn_like', 'randint_like')


def trace(model: nn.Module, probe: Probe | None) -> Trace:
    """Call a copy of ``model`` as ``probe`` says and record what its layers do; the model and random numbers stay as they are.

    A call that fails says what it can: its layers up to there, but no outputs.
    """
    if probe is None:
        return Trace()
    device = next(iter(probe.stream)).device
    observer, failures = Observer(probe), []
    with warnings.catch_warnings(), patch.object(CUSTOM, 'apply', observer.custom_functions()), same_random():
        warnings.simplefilter('ignore')
        for call in probe.calls:
            try:
                twin = copy_to(model, device)
                with observer.hooked(twin):
                    observer.leave(call(twin))
            except Exception as error:  # whatever a model that nobody has seen before may raise
                failures.append(f'{type(error).__name__}: {first_line(error)}')
    found = observer.found
    if failures:
        found.failure = failures[0]
        found.said = f'forward pass incomplete ({failures[0]}): names and classes decided where it did not get to'
    if not found.layers or len(failures) == len(probe.calls):
        found.predicts = False
    else:
        found.predicts = probe.predicts
        found.said = found.said if failures else 'a forward pass decided, then names and classes'
    find_modulating(found)
    return found


def first_line(error: Exception, width: int = 100) -> str:
    return (str(error).strip() or 'no message').splitlines()[0][:width]


def copy_to(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of ``model`` on ``device``; to the meta device nothing is copied but shapes. Parameters that are drawn only by
    ``init_weights`` hold whatever was in their memory before: they become finite, so that the pass reaches its end."""
    moved = {}
    for tensor in (*model.parameters(), *model.buffers()):
        new = tensor.detach().to(device, copy=True)
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            new = new.nan_to_num(0.0, 0.0, 0.0).clamp_(-1e3, 1e3)
        moved[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(model, moved)


@contextmanager
def same_random():
    """Leave the random numbers of torch, numpy and Python as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def find_modulating(found: Trace) -> None:
    """Layers whose output is nothing but a gate, a modulation or a position, and those of one vector per image that only feed
    such layers (the first layer of a channel attention)."""
    real, grown = found.modulating, True
    while grown:
        grown = False
        for name, layer in found.layers.items():
            returned = layer.uses & {'output', 'raw output'}
            direct = layer.uses and not layer.readers and not returned
            through = layer.vector and layer.readers and layer.readers <= real and not returned
            if name not in real and (direct or through):
                real.add(name)
                grown = True


class Observer(TorchFunctionMode):
    """Hands the :class:`Flow` of tensors on, and notes what becomes of the outputs of layers."""

    def __init__(self, probe: Probe):
        super().__init__()
        self.probe, self.found = probe, Trace()
        self.muted = False  # inside of a function with a backward of its own
        self.stack: list[nn.Module] = []
        self.before: dict[nn.Module, frozenset[str] | None] = {}  # of a ReLU: what made its input non-negative
        self.names: dict[nn.Module, str] = {}
        self.owners: dict[int, list[nn.Module]] = {}

    def hooked(self, model: nn.Module) -> 'Observer':
        """Observe ``model`` from now on, as a context."""
        self.stack, self.names = [], {module: name for name, module in model.named_modules()}
        self.owners = {}
        for module in self.names:
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.left)
            if isinstance(module, LAYERS):
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim > 1:
                        self.owners.setdefault(id(parameter), []).append(module)
        for kind in ('stream', 'condition'):
            for tensor in self.probe.stream if kind == 'stream' else self.probe.conditions:
                carry(tensor, Flow(sources=frozenset({kind})))
        return self

    def layer(self, name: str) -> LayerFlow:
        return self.found.layers.setdefault(name, LayerFlow())

    # Modules

    def enter(self, module: nn.Module, inputs: tuple) -> None:
        self.stack.append(module)
        name = self.names[module]
        self.found.called.add(name)
        if isinstance(module, NON_NEGATIVE) and inputs:
            self.before[module] = flow_of(inputs[0]).non_negative
        if not isinstance(module, LAYERS) or not inputs or not isinstance(inputs[0], Tensor):
            return
        x, flow, layer = inputs[0], flow_of(inputs[0]), self.layer(name)
        for other in flow.layers:
            self.layer(other).readers.add(name)
        layer.sources |= flow.sources
        width = getattr(module, 'in_channels', None) or getattr(module, 'in_features', 0)
        batch = self.probe.stream[0].shape[0]
        layer.vector |= x.ndim > 1 and x.shape[0] == batch and x.numel() == batch * width
        if flow.non_negative not in (None, ZEROS):
            layer.relus.add(flow.non_negative - ZEROS)

    def left(self, module: nn.Module, inputs: tuple, output) -> None:
        while self.stack and self.stack.pop() is not module:  # a module that raised was left without its hook
            pass
        name = self.names[module]
        if isinstance(module, LAYERS) and name in self.found.layers:
            sources = flow_of(inputs[0]).sources
            for tensor in tensors(output):
                carry(tensor, Flow({name: frozenset()}, sources))
        elif isinstance(module, NON_NEGATIVE):
            relus = self.before.pop(module, None)
            if relus in (None, ZEROS) or any(not relu.endswith('()') for relu in relus - ZEROS):
                relus = (relus or frozenset()) - ZEROS | {name}  # else non-negative whatever takes the place of this one
            for tensor in tensors(output):
                flow = flow_of(tensor)
                carry(tensor, Flow(flow.layers, flow.sources, relus))

    def leave(self, outputs) -> None:
        """``outputs`` are what the model returned."""
        raw = isinstance(outputs, RawOutputs)
        for tensor in tensors(outputs):
            self.use(tensor, 'raw output' if raw else 'output')
            if not self.probe.predicts:
                self.found.returned |= flow_of(tensor).non_negative or ZEROS
        self.found.returned -= ZEROS

    def use(self, tensor: Tensor, kind: str) -> None:
        for name in flow_of(tensor).layers:
            self.layer(name).uses.add(kind)

    # Functions

    def read_by_function(self, layers: Iterable[str]) -> None:
        """The outputs of ``layers`` are read by a layer that is written as a function."""
        for layer in layers:
            self.layer(layer).readers.add('')

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.muted:
            return func(*args, **kwargs)
        name = getattr(func, '__name__', '')
        out = func(*args, **kwargs)
        given = [*tensors(args), *tensors(kwargs)]
        results = given[:1] if name == '__setitem__' else [out] if isinstance(out, Tensor) else list(tensors(out, 2))
        zero = name in MULTIPLIES and any(isinstance(n, int | float) and n == 0 for n in args)
        if name in ('zeros', 'new_zeros', 'zeros_like'):  # often the beginning of a sum
            for result in results:
                if has_values(result):
                    carry(result, Flow(non_negative=ZEROS))
        elif results and given and not (zero or name.startswith(NO_VALUES)):
            self.read_weights(given)
            flow = self.through(name.rstrip('_') if not name.startswith('__') else name, args, kwargs, given)
            for result in results:
                if has_values(result) and not isinstance(result, nn.Parameter):
                    carry(result, flow)
        return out

    def read_weights(self, given: list[Tensor]) -> None:
        for tensor in given:
            owners = self.owners.get(id(tensor), ())
            if owners and not any(owner in self.stack for owner in owners):
                reader = type(self.stack[-1]).__name__ if self.stack else 'a caller'
                for owner in owners:
                    self.layer(self.names[owner]).weight_readers.add(reader)

    def through(self, name: str, args: tuple, kwargs: dict, given: list[Tensor]) -> Flow:
        """The flow of what the function ``name`` returns."""
        values = [t for t in given if has_values(t) and (isinstance(t, nn.Parameter) or hasattr(t, 'flow'))]
        weights = {id(p) for module in self.stack[-1:] for p in module.parameters(recurse=False)} if name in NORMS else ()
        flows = [flow_of(t) for t in values if id(t) not in weights]
        if name == 'grid_sample' and len(values) > 1:
            self.use(values[1], 'position')
        if name in FIRST_ONLY:
            flows = [flow_of(given[0])]
        scaled, spent = self.combine(name, values) if name in MULTIPLIES | ADDS | PRODUCTS else (False, set())
        merged = merge(flows)
        layers, sources = {layer: since for layer, since in merged.layers.items() if layer not in spent}, merged.sources
        non_negative = self.sign(name, args, kwargs, given, merged.non_negative)
        norm = 'normed' if name in NORMS else merged.norm if name in RESHAPES else 'modulated' if scaled else ''
        if name in SQUASHES or (name == 'clamp' and bounds(args, kwargs) == (0, 1)):
            layers = {layer: since | {'squashed'} for layer, since in layers.items()}
            non_negative = frozenset()
        elif name in PRODUCTS and any(learned(t) for t in values):
            if not (self.stack and isinstance(self.stack[-1], LAYERS)):
                self.read_by_function(layers)
            layers = {}
        elif name in PRODUCTS:
            layers = {layer: since | {'product'} for layer, since in layers.items()}
        elif name in ('sin', 'cos') and all('squashed' in since for since in layers.values()):
            for layer in layers:
                self.layer(layer).uses.add('position')
            layers, sources = {}, frozenset({'position'})
        return Flow(layers, sources, non_negative, norm)

    def sign(self, name: str, args: tuple, kwargs: dict, given: list[Tensor], merged) -> frozenset[str] | None:
        """Which ReLUs make the result non-negative, ``None`` where it may be negative."""
        site = type(self.stack[-1]).__name__ if self.stack else 'the model'
        if name in ('relu', 'relu6') or (name in ('clamp', 'clamp_min') and bounds(args, kwargs) == (0, None)):
            return frozenset({f'{site}()'})
        numbers = [n for n in (*args, *kwargs.values()) if isinstance(n, int | float)]
        if name in MAY_BE_NEGATIVE or (name in MULTIPLIES | ADDS and any(n < 0 for n in numbers)):
            return None
        known = all(hasattr(t, 'flow') or not has_values(t) for t in given)
        return merged if known else None

    def combine(self, name: str, values: list[Tensor]) -> tuple[bool, set[str]]:
        """Note what the operands of a sum or product are to each other.

        Returns whether a norm is scaled, and the layers that are gates or modulations here, which ends their flow.
        """
        scaled, spent = False, set()
        for a in values:
            for b in values:
                mine, other = flow_of(a), flow_of(b)
                if a is b or not other.sources & {'stream', 'condition'}:
                    continue
                for layer, since in mine.layers.items():
                    if layer in other.layers:
                        continue
                    gates = name not in ADDS and since == {'squashed'}
                    scales = name in MULTIPLIES and other.norm == 'normed'
                    shifts = name in ADDS and other.norm == 'modulated'
                    if gates or scales or shifts or (name not in PRODUCTS and broadcast(a, b)):
                        self.layer(layer).uses.add('gate' if gates else 'modulation')
                        spent.add(layer)
                    scaled |= scales
        return scaled, spent

    def custom_functions(self) -> classmethod:
        """``torch.autograd.Function.apply`` with flows: the first tensor is features, the others say where and how to sample
        them."""
        def apply(cls, *args, **kwargs):
            outside, self.muted = not self.muted, True
            try:
                parent: Any = super(CUSTOM, cls)
                out = parent.apply(*args, **kwargs)
            finally:
                self.muted = not outside
            given = [t for t in args if isinstance(t, Tensor)]
            if given and outside:
                for tensor in given[1:]:
                    self.use(tensor, 'position')
                first = flow_of(given[0])
                weighted = any(isinstance(t, nn.Parameter) and t.ndim > 1 for t in given)
                if weighted:
                    self.read_by_function(first.layers)
                for result in tensors(out, 2):
                    if has_values(result):
                        carry(result, Flow({} if weighted else first.layers, first.sources))
            return out
        return classmethod(apply)
