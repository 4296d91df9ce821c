"""What native backbones share."""

from mmengine.model import BaseModule
from torch import Tensor

from ...layers.training import in_format_of
from ..layer_factory import LayerFactory


class BinaryBackbone(BaseModule):
    """Base class: initialisation, and the width of what leaves the network.

    A subclass defines :meth:`maps`, which returns a tuple with one map for each of its ``out_indices``. With an expansion of
    style ``'es'`` these are the first C channels of the stream, as in ES-BNN's released head, so that the necks and heads of
    the base network fit; style ``'rep'`` gives the whole stream (RepBNN's head).
    """

    def __init__(self, factory: LayerFactory, init_cfg: dict | list | None):
        super().__init__(init_cfg or [dict(type='Kaiming', layer=['Conv2d', 'Linear']),
                                      dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])])
        self.factory = factory

    def out_width(self, channels: int) -> int:
        """Channels that leave the network where the base network has ``channels``."""
        return self.factory.wide(channels) if self.factory.copies > 1 and self.factory.expand.style == 'rep' else channels

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """See the class; in training in the memory format of ``x``, whichever the units have inside."""
        outs = self.maps(x)
        return tuple(in_format_of(x, out) for out in outs) if self.training else outs

    def output(self, x: Tensor, channels: int) -> Tensor:
        """``[N, W(channels), ...]`` -> ``[N, out_width(channels), ...]``."""
        return x[:, :self.out_width(channels)] if x.shape[1] != self.out_width(channels) else x

    def init_weights(self) -> None:
        """As ``init_cfg`` says; then the copies of an expansion are spread, where that was asked for."""
        super().init_weights()
        self.factory.untie_(self)


def check_out_indices(name: str, out_indices, stages: int) -> tuple[int, ...]:
    """The indices as a tuple. Raises ``ValueError`` for one that no stage has."""
    if not set(out_indices) <= set(range(stages)):
        raise ValueError(f'{name} has the outputs 0 to {stages - 1}, but got out_indices={tuple(out_indices)}')
    return tuple(out_indices)
