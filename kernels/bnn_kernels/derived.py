"""What is made from tensors once, and made again when they change: prepared weights, folded factors, tables."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

NOTHING = None, (), None, None
NOTHING_LAST = (), (), (), None, None, None


class Derived:
    """`make(*tensors, *settings)`, remembered until one of the tensors changes or is gone.

    A tensor is what it was as long as its storage (by identity, not by address), its version, offset, shape, strides and dtype
    are the same. Therefore

    - a view made anew at each call, such as `weight[0]` or `weight[:, None]`, finds what was made from the same view before;
    - every in-place operator, an optimizer's step and `load_state_dict` raise the version, `.to()` and `weight.data = other`
      bring another storage: the next call makes it again;
    - writing through `weight.data`, a numpy array or a pointer of another library raises no version and is *not seen*, nor is
      `weight.data = view` of the tensor's own storage: write in place under `torch.no_grad()` instead;
    - tensors of inference mode have no version: what is made from them is made at each call.

    It goes when the first of its tensors' storages goes. `make` runs without gradients and outside of inference mode, and must
    not return a view of its tensors, which would keep their storage for ever.

    Threads share what is remembered; two that come first at once may both make it. Streams of a GPU share it, too: one that
    did not make it waits for the event recorded behind `make`. What is made while a CUDA graph is captured exists only when
    the graph runs, and is not remembered. A copy or an unpickled one starts with nothing, for tensors of its own.

    Args:
        make: a function.

    Example::

        ones = Derived(lambda words, features: unpack_bits(words, features).sum(-1))
        ones([weight[0]], (features,))  # computed
        ones([weight[0]], (features,))  # found
    """

    def __init__(self, make: Callable[..., Any]):
        self.make = make
        # By settings and views: versions, storages, what was made, and when it is there.
        self.entries: dict[tuple, tuple] = {}
        self.last = NOTHING_LAST  # the same by the tensors themselves, for the newest: recognised sooner than by their views

    def __reduce__(self):
        return Derived, (self.make,)

    def __call__(self, tensors: Sequence[Tensor], settings: tuple[Hashable, ...] = (), *arguments) -> Any:
        """What was made, or is now.

        Args:
            tensors: what it is made from.
            settings: what else it depends on.
            arguments: what `make` takes, where that is not `(*tensors, *settings)`; it must depend on these alone.
        """
        objects, versions, storages, known, made, ready = self.last  # one read: other threads may write
        if known == settings and len(objects) == len(tensors):
            for reference, version, storage, tensor in zip(objects, versions, storages, tensors):  # noqa: B905 (quicker without)
                if reference() is not tensor or version != tensor._version or storage() is not tensor.untyped_storage():
                    break
            else:
                return made if ready is None else ready.here(made)
        places: list = [settings]
        versions = []
        try:
            for tensor in tensors:
                versions.append(tensor._version)
                places += id(tensor.untyped_storage()), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        except RuntimeError:  # of inference mode: no version
            return self.new(tensors, settings, arguments)
        key = tuple(places)
        then, _, made, ready = self.entries.get(key, NOTHING)
        if then == versions:
            return made if ready is None else ready.here(made)
        made, ready = self.new(tensors, settings, arguments), None
        if any(tensor.is_cuda for tensor in tensors):
            if torch.cuda.is_current_stream_capturing():
                return made
            ready = Ready(tensors[0].device)
        # An identity names another storage only after the callback for the storage before it.
        forget = partial(_forget, weakref.ref(self), key)
        storages = [weakref.ref(tensor.untyped_storage(), forget) for tensor in tensors]
        self.entries[key] = versions, storages, made, ready
        self.last = [weakref.ref(tensor) for tensor in tensors], versions, storages, settings, made, ready
        return made

    def new(self, tensors: Sequence[Tensor], settings: tuple[Hashable, ...], arguments: tuple) -> Any:
        """Makes it, whatever is remembered."""
        with torch.inference_mode(False), torch.no_grad():
            return self.make(*(arguments or (*tensors, *settings)))


class Ready:
    """When something made on a GPU is there: the event behind `make` on its stream, and the streams that waited for it."""

    def __init__(self, device: torch.device):
        stream = torch.cuda.current_stream(device)
        self.device, self.event, self.streams = device, stream.record_event(), {stream.cuda_stream}

    def here(self, made: Any) -> Any:
        """`made`, for use on the current stream; its memory is kept until the work that this stream has then is done.

        A stream that captures a graph began after all streams were done: `torch.cuda.graph` synchronizes them.
        """
        stream = torch.cuda.current_stream(self.device)
        if stream.cuda_stream not in self.streams and not torch.cuda.is_current_stream_capturing():
            stream.wait_event(self.event)
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, Tensor):
                    tensor.record_stream(stream)
            self.streams.add(stream.cuda_stream)
        return made


def _forget(reference: 'weakref.ref[Derived]', key: tuple, gone: weakref.ref) -> None:
    derived = reference()
    if derived is not None:
        derived.entries.pop(key, None)
        derived.last = NOTHING_LAST
