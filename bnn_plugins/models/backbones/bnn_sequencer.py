"""A binary pyramid whose deeper stages mix positions by scanning rows and columns."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from ...layers import BinaryLSTMCell, BinaryScan2d, GatedLinearCell
from ...registry import MODELS
from ..blocks import CheckpointedModule
from ..layer_factory import LayerFactory
from .bnn_resnet import BinaryBlock, BNNResNet


class ScanBlock(CheckpointedModule):
    """``x = act(norm(scan(x)) + x)``, then a binary 1x1 unit that mixes the channels. ``[N, C, H, W]``, kept."""

    def __init__(self, inplanes: int, planes: int, stride: int, dilation: int, factory: LayerFactory, with_cp: bool,
                 lstm: dict):
        super().__init__()
        self.with_cp = with_cp
        self.scan = BinaryScan2d(factory.wide(planes), method=factory.method, expand=factory.expand, **lstm)
        self.norm1, self.norm2 = factory.norm(planes)[1], factory.norm(planes)[1]
        self.act1, self.act2 = factory.nonlinearity(planes), factory.nonlinearity(planes)
        self.conv = factory.conv(planes, planes, 1)

    def run(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.scan(x)) + x)
        return self.act2(self.norm2(self.conv(x)) + x)


@MODELS.register_module()
class BNNSequencer(BNNResNet):
    """:class:`BNNResNet` with scanning blocks (:class:`bnn_plugins.layers.BinaryScan2d`) in its deeper stages.

    The first block of each stage is a convolutional one, which halves the map; strides are 4, 8, 16, 32 as for every neck.
    Sequencer's own two resolutions (strides 7 and 14) do not make a pyramid.

    Args:
        depth (int): 18 or 34: how many blocks the stages have.
        scan_stages (Sequence[int]): which stages scan, of 0 to 3.
        lstm (dict): of :class:`bnn_plugins.layers.BinaryLSTM`: ``cell``, ``gates``, ``candidate``, ``norm``, ...
        other arguments: as in :class:`BNNResNet`.

    Raises:
        KeyError: for another depth. ValueError: for a stage that there is not.
    """

    arch_settings = {depth: BNNResNet.arch_settings[depth] for depth in (18, 34)}

    def __init__(self, depth: int = 18, scan_stages: Sequence[int] = (2, 3), lstm: dict | None = None, **kwargs):
        stages = kwargs.get('num_stages', 4)
        if not set(scan_stages) <= set(range(stages)):
            raise ValueError(f'scan_stages={tuple(scan_stages)} do not fit the stages 0 to {stages - 1}')
        self.scan_stages, self.lstm = tuple(scan_stages), dict(lstm or {})
        super().__init__(depth, **kwargs)

    def stage_blocks(self, stage: int, block: Callable[..., BinaryBlock], count: int) -> list[Callable[..., BinaryBlock]]:
        if stage not in self.scan_stages:
            return super().stage_blocks(stage, block, count)
        return [block, *[partial(ScanBlock, lstm=self.lstm)] * (count - 1)]

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, BinaryLSTMCell | GatedLinearCell):
                module.reset_parameters()  # their gates have an initialisation of their own
