"""What a tensor carries through a forward pass, and what is known of each layer after it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

NUMBERS = (str, bytes, bytearray, range, np.ndarray, torch.UntypedStorage, torch.TypedStorage)  # long, and without tensors


@dataclass(frozen=True)
class Flow:
    """How a tensor was computed.

    Attributes:
        layers: ``{layer: what its output went through since}`` for the layers that reach the tensor without another layer in
            between; of ``'squashed'`` (a sigmoid or softmax) and ``'product'`` (a product of two computed matrices).
        sources: ``'stream'`` and ``'condition'`` (inputs of the model), ``'learned'`` (parameters that are no layer's),
            ``'position'`` (sines and cosines).
        non_negative: the ReLUs that make it so; ``None`` where it may be negative.
        norm: ``'normed'`` for the output of a norm, ``'modulated'`` for a multiple of it.
    """

    layers: dict[str, frozenset[str]] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()
    non_negative: frozenset[str] | None = None
    norm: str = ''


@dataclass
class LayerFlow:
    """What a forward pass says about one layer.

    Attributes:
        uses: what else its output is: ``'output'`` of the model, ``'raw output'`` (:class:`RawOutputs`), ``'position'``,
            ``'gate'``, ``'modulation'``.
        readers: the layers that read its output.
        sources: of its input, see :class:`Flow`.
        vector: whether its input is one vector for each image.
        relus: for each call the ReLUs that make its input non-negative: names of modules, and the classes of modules that call
            a ReLU as a function.
        weight_readers: the classes of modules that read its weight without calling it.
    """

    uses: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    vector: bool = False
    relus: set[frozenset[str]] = field(default_factory=set)
    weight_readers: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Probe:
    """How to call a model once, to see its data flow.

    Attributes:
        calls: functions that call the model that they are given, each in its own way, and return its outputs (or losses).
        stream: the tensors that are images, features or latents.
        conditions: the tensors that are something else, such as timesteps.
        predicts: whether the outputs are predictions (or losses), not features that other layers will read.
    """

    calls: Sequence[Callable[[nn.Module], object]]
    stream: Sequence[Tensor]
    conditions: Sequence[Tensor] = ()
    predicts: bool = True

    @classmethod
    def of(cls, inputs: Tensor | tuple | dict) -> 'Probe':
        """One call with ``inputs``, in evaluation mode; raises ``ValueError`` when there is no tensor among them."""
        named = inputs if isinstance(inputs, dict) else {}
        given = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
        found = list(tensors((given, named)))
        if not found:
            raise ValueError('inputs has no tensor: give what the model is called with')

        def call(model: nn.Module) -> object:
            model.eval()  # of some models it returns nothing
            return model(*given, **named)
        return cls([call], found[:1], found[1:])


@dataclass(frozen=True)
class RawOutputs:
    """What a call returns that may be features beside predictions: predictions are those that no layer reads."""

    outputs: object


@dataclass
class Trace:
    """The result of :func:`trace`.

    Attributes:
        layers: ``{name: LayerFlow}`` of the layers that were called.
        called: names of all modules that were called.
        modulating: names of layers that only compute gates, modulations or positions.
        returned: the ReLUs that make features non-negative which the model returns, for other layers to read.
        predicts: see :class:`Probe`.
        said: one sentence about what was run.
        failure: the first error, ``''`` without one.
    """

    layers: dict[str, LayerFlow] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    modulating: set[str] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)
    predicts: bool = False
    said: str = 'no forward pass: names and classes decided'
    failure: str = ''


def tensors(value, depth: int = 6) -> Iterator[Tensor]:
    """All tensors in nested containers and objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth == 0 or isinstance(value, (*NUMBERS, nn.Module, type)):
        return
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item, depth - 1)
    elif isinstance(value, Iterable) and hasattr(value, '__len__'):
        for item in value:
            yield from tensors(item, depth - 1)
    elif hasattr(value, '__dict__'):
        yield from tensors(vars(value), depth - 1)


def has_values(tensor: Tensor) -> bool:
    """Whether it holds numbers that may be features, not indices or masks; rotary positions are complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def carry(tensor: Tensor, flow: Flow) -> None:
    vars(tensor)['flow'] = flow


def flow_of(tensor: Tensor) -> Flow:
    if isinstance(tensor, nn.Parameter):
        return Flow(sources=frozenset({'learned'}))
    return getattr(tensor, 'flow', None) or Flow()


def learned(tensor: Tensor) -> bool:
    flow = flow_of(tensor)
    return flow.sources == {'learned'} and not flow.layers


def merge(flows: list[Flow]) -> Flow:
    if len(flows) == 1:
        return flows[0]
    layers: dict[str, frozenset[str]] = {}
    for flow in flows:
        for layer, since in flow.layers.items():
            layers[layer] = layers.get(layer, since) & since
    signs = [flow.non_negative for flow in flows if flow.non_negative is not None]
    non_negative = frozenset().union(*signs) if flows and len(signs) == len(flows) else None
    return Flow(layers, frozenset().union(*(flow.sources for flow in flows)), non_negative)


def bounds(args: tuple, kwargs: dict) -> tuple:
    """``(min, max)`` of a clamp."""
    low, high = [*args[1:3], None, None][:2]
    return kwargs.get('min', low), kwargs.get('max', high)


def broadcast(a: Tensor, b: Tensor) -> bool:
    """Whether ``a`` has one value for many of ``b``, not counting the images of a batch."""
    shape = (1,) * (b.ndim - a.ndim) + tuple(a.shape)
    first = a.ndim == b.ndim
    return 2 <= a.ndim <= b.ndim and any(mine == 1 < other for mine, other in list(zip(shape, b.shape, strict=True))[first:])
