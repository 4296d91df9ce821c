"""The skeleton of MobileNet v1, which ReActNet-A, BNext and MoBiNet fill with blocks of their own."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..layer_factory import LayerFactory
from .base import BinaryBackbone, check_out_indices


class MobileBackbone(BinaryBackbone):
    """A real stem, then stages of blocks: the width doubles at the start of each stage, the map halves from the second on.

    Args:
        blocks: how many blocks each of the five stages has.
        base_channels: width of the stem; stage i is ``base_channels * 2**(i + 1)`` wide.
        block: ``(in_channels, out_channels, stride) -> module``.
        stem_stride: 2 for ImageNet, 1 for small images.
        stem_act: whether the stem has a non-linearity behind its norm.
    """

    def __init__(self, factory: LayerFactory, blocks: Sequence[int], base_channels: int,
                 block: Callable[[int, int, int], nn.Module], in_channels: int, stem_stride: int,
                 out_indices: Sequence[int], init_cfg: dict | list | None, stem_act: bool = False):
        super().__init__(factory, init_cfg)
        self.out_indices = check_out_indices(type(self).__name__, out_indices, len(blocks))
        self.stem = factory.stem(in_channels, base_channels, stride=stem_stride, act=stem_act)
        self.widths = [base_channels * 2**(stage + 1) for stage in range(len(blocks))]
        self.stages = nn.ModuleList()
        width = base_channels
        for stage, (count, out) in enumerate(zip(blocks, self.widths, strict=True)):
            layer = nn.Sequential()
            for index in range(count):
                layer.append(block(width, out, 2 if stage > 0 and index == 0 else 1))
                width = out
            self.stages.append(layer)
        self.feat_dim = self.out_width(width)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, in_channels, H, W]`` -> one ``[N, C_i, H_i, W_i]`` for each of ``out_indices``; with a stem of stride 2 their
        strides are 2, 4, 8, 16, 32."""
        x, outs = self.stem(x), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(self.output(x, self.widths[index]))
        return tuple(outs)
