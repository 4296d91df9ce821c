"""Steps of a fused graph that follow each other, as one call of their backend: Python between them takes time, too."""

import operator
from collections.abc import Callable, Hashable
from itertools import groupby

from torch import Tensor, fx, nn

from bnn_kernels import PreparedOp, dispatch, input_signature, join
from bnn_kernels.prepared_op import MOST_SIGNATURES

from .fuse_ops import Step
from .graph import graph_module

UNKNOWN = object()


class Segment(nn.Module):
    """Steps without anything between them. Inputs with a new signature run step by step, and so do all while a step has hooks.

    Args:
        graph: calls of steps that ``joins``, and ``getitem`` of their results; returns a list.
        steps: by target.

    Attributes:
        calls: what is made of the steps for each kind of input. It is good until one of them is prepared anew.
    """

    def __init__(self, graph: fx.Graph, steps: dict[str, Step]):
        super().__init__()
        self.run = graph_module(self, graph, {}, steps)
        vars(self.run).update(steps)  # plain attributes are found sooner than submodules
        self.hooks = [hooks for step in steps.values() for hooks in (step._forward_hooks, step._forward_pre_hooks)]
        self.calls: dict[tuple, Callable[..., list[Tensor] | None] | None] = {}

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        if any(self.hooks) or not PreparedOp.direct(tensors[0]):
            return self.run(*tensors)
        key = dispatch.choice(), *[input_signature(x) for x in tensors]
        call = self.calls.get(key, UNKNOWN)  # one look: another thread may clear them
        if call is UNKNOWN:
            return self.first(key, tensors)
        results = None if call is None else call(*tensors)
        return self.run(*tensors) if results is None else results

    def first(self, key: tuple, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        recorder = CallRecorder(self.run)
        results = recorder.run(*tensors)
        if len(self.calls) >= MOST_SIGNATURES:
            self.calls.clear()
        self.calls[key] = None if None in recorder.calls else self.joined(recorder.calls)
        return results

    def joined(self, calls: list[Callable]) -> Callable[..., list[Tensor] | None] | None:
        """The calls of the steps as one."""
        ios, inputs = [], []
        for node in self.run.graph.nodes:
            if node.op == 'placeholder':
                inputs.append(node)
            elif node.op == 'call_module':
                step = self.run.get_submodule(node.target)
                out = (self.value(node, 0), self.value(node, 1)) if step.pack and step.keep else self.value(node)
                ios.append(step.io(out, *map(self.value, node.args)))
            elif node.op == 'output':
                results = list(map(self.value, node.args[0]))
        made = [result for result in results if result not in inputs]
        call = join(calls, ios, inputs, made)
        if call is None or len(made) == len(results):
            return call

        def with_inputs(*tensors: Tensor) -> list[Tensor] | None:
            new = call(*tensors)
            values = dict(zip([*inputs, *made], [*tensors, *(new or [])], strict=False))
            return None if new is None else [values[result] for result in results]

        return with_inputs

    def value(self, node: fx.Node, index: int | None = None) -> Hashable:
        """The name of what a node, or its result number ``index``, is: that of the shortcut, where its memory is taken."""
        if node.op == 'call_function':
            node, index = node.args
        if node.op == 'call_module':
            step = self.run.get_submodule(node.target)
            if getattr(step, 'in_place', False) and index in (None, 1):
                return self.value(node.args[1])
        return node if index is None else (node, index)


class CallRecorder(fx.Interpreter):
    """Runs steps one by one; ``calls``: what ran each, ``None`` where it has gone another way than its ``prepared_op``."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False  # errors say what they say without it
        self.calls: list[Callable | None] = []

    def call_module(self, target, args, kwargs):
        result, step = super().call_module(target, args, kwargs), self.fetch_attr(target)
        try:
            self.calls.append(step.prepared_op.choose(step.io(result, *args).reads))
        except (TypeError, ValueError):  # of the checks: a stream in another dtype than usual
            self.calls.append(None)
        return result


def join_steps(graph: fx.Graph, steps: dict[str, Step]) -> dict[str, Segment]:
    """Put segments where steps follow each other, into ``graph``; returns them by target."""
    segments = {}
    for joins, nodes in groupby(list(graph.nodes), lambda node: may_join(node, steps)):
        nodes = list(nodes)
        if not joins or sum(node.op == 'call_module' for node in nodes) < 2:
            continue
        inside = set(nodes)
        inputs = list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside))
        outputs = [node for node in nodes if set(node.users) - inside]
        inner = fx.Graph()
        copies = {source: inner.placeholder(source.name) for source in inputs}
        for node in nodes:
            copies[node] = inner.node_copy(node, copies.__getitem__)
        inner.output([copies[node] for node in outputs])
        own = {node.target: steps[node.target] for node in nodes if node.op == 'call_module'}
        name = f'segment_{len(segments)}'
        segments[name] = Segment(inner, own)
        with graph.inserting_after(nodes[-1]):
            call = graph.call_module(name, tuple(inputs))
        for place, node in reversed(list(enumerate(outputs))):
            with graph.inserting_after(call):
                node.replace_all_uses_with(graph.call_function(operator.getitem, (call, place)))
        for node in reversed(nodes):
            graph.erase_node(node)
    return segments


def may_join(node: fx.Node, steps: dict[str, Step]) -> bool:
    """Whether a node is a step that joins, or one of the two results of such a step."""
    source = node.args[0] if node.op == 'call_function' and node.target is operator.getitem else node
    if source.op != 'call_module' or source.target not in steps:
        return False
    step = steps[source.target]
    return step.joins and (source is node or (step.pack and step.keep))
