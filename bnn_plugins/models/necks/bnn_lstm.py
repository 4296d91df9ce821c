"""Binary LSTMs behind a feature pyramid: over rows and columns of an image, or over the frames of a clip."""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments
from ...layers import BinaryConvLSTMCell, BinaryScan2d
from ...registry import MODELS

Frames = Sequence[tuple[int, int]]


class LevelMixer(BaseModule):
    """``x + scale * mix(norm(x))`` for each level; the scales ``[C]`` start at 0: a trained detector goes on as it is."""

    def __init__(self, in_channels: int, num_levels: int, levels: Sequence[int] | None, norm_cfg: dict | None,
                 init_cfg: dict | list | None):
        super().__init__(init_cfg)
        levels = range(num_levels) if levels is None else levels
        if not set(levels) <= set(range(num_levels)):
            raise ValueError(f'levels={tuple(levels)} do not fit the {num_levels} levels of the pyramid')
        self.in_channels, self.num_levels, self.levels = [in_channels] * num_levels, num_levels, tuple(levels)
        self.norms = nn.ModuleList(build_norm_layer(norm_cfg or dict(type='BN'), in_channels)[1] for _ in self.levels)
        self.scales = nn.ParameterList(torch.zeros(in_channels) for _ in self.levels)

    def mix(self, place: int, x: Tensor) -> Tensor:
        """What the mixer of ``levels[place]`` gives, ``[N, C, H, W]``."""
        raise NotImplementedError

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps ``[N, C, H_i, W_i]``, kept."""
        if len(inputs) != self.num_levels:
            raise ValueError(f'{type(self).__name__} was built for {self.num_levels} levels, but got {len(inputs)}')
        outs = list(inputs)
        for place, level in enumerate(self.levels):
            mixed = self.mix(place, self.norms[place](inputs[level]))
            outs[level] = inputs[level] + self.scales[place].view(-1, 1, 1) * mixed
        return tuple(outs)


@MODELS.register_module()
class BNNBiLSTMNeck(LevelMixer):
    """Every level mixed over its rows and columns (:class:`bnn_plugins.layers.BinaryScan2d`), behind any pyramid::

        neck=[dict(type='bnn_plugins.BNNFPN', ...), dict(type='bnn_plugins.BNNBiLSTMNeck', in_channels=256, num_levels=5)]

    Args:
        in_channels (int): of all levels, a multiple of 4.
        num_levels (int): of the pyramid.
        levels (Sequence[int] | None): which ones are mixed; ``None``: all.
        norm_cfg (dict): norm in front of the signs; default batch norm.
        lstm (dict): of :class:`bnn_plugins.layers.BinaryLSTM`, with its ``method``.

    Raises:
        ValueError: for levels that there are not, and another number of maps.
    """

    @checked_arguments
    def __init__(self, in_channels: int, num_levels: int, levels: Sequence[int] | None = None, norm_cfg: dict | None = None,
                 lstm: dict | None = None, init_cfg: dict | list | None = None):
        super().__init__(in_channels, num_levels, levels, norm_cfg, init_cfg)
        self.scans = nn.ModuleList(BinaryScan2d(in_channels, **(lstm or {})) for _ in self.levels)

    def mix(self, place: int, x: Tensor) -> Tensor:
        return self.scans[place](x)


@MODELS.register_module()
class BNNConvLSTMNeck(LevelMixer):
    """Every level remembers the frames before (:class:`bnn_plugins.layers.BinaryConvLSTMCell`), behind any pyramid.

    Which images are frames of one clip is said by :meth:`set_frames` before each call
    (:class:`bnn_plugins.integrations.mmdet.ClipDetector` does it); an image of which nothing is said is a clip by itself. In
    evaluation the state is kept from call to call and goes on where the next frame of the same clip comes; in training a
    batch holds whole clips, frame after frame.

    Args:
        in_channels (int): of all levels.
        num_levels, levels, norm_cfg: as in :class:`BNNBiLSTMNeck`.
        lstm (dict): of :class:`bnn_plugins.layers.BinaryConvLSTMCell`, with its ``method``.
    """

    @checked_arguments
    def __init__(self, in_channels: int, num_levels: int, levels: Sequence[int] | None = None, norm_cfg: dict | None = None,
                 lstm: dict | None = None, init_cfg: dict | list | None = None):
        super().__init__(in_channels, num_levels, levels, norm_cfg, init_cfg)
        self.cells = nn.ModuleList(BinaryConvLSTMCell(in_channels, in_channels, **(lstm or {})) for _ in self.levels)
        self.frames: Frames | None = None
        self.forget()

    def forget(self) -> None:
        """The next frame begins a clip."""
        self.before: tuple[int, int] | None = None
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def set_frames(self, frames: Frames | None) -> None:
        """``(clip, number of the frame in it)`` of each image of the next call."""
        self.frames = frames

    def train(self, mode: bool = True) -> 'BNNConvLSTMNeck':
        self.forget()
        return super().train(mode)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        if self.frames is not None and len(self.frames) != count:
            raise ValueError(f'{len(self.frames)} frames were announced, but {count} images came')
        self.clips = runs(self.frames, count)
        if self.before is None or self.frames is None or self.frames[0] != (self.before[0], self.before[1] + 1):
            self.forget()
        outs = super().forward(inputs)
        if not self.training and self.frames is not None:
            self.before = tuple(self.frames[-1])
        self.frames = None
        return outs

    def mix(self, place: int, x: Tensor) -> Tensor:
        cell, outs = self.cells[place], []
        lengths = {len(clip) for clip in self.clips}
        if len(lengths) == 1 and (self.training or self.frames is None):  # whole clips of one length run side by side
            states, _ = cell.scan(x.unflatten(0, (-1, *lengths)).transpose(0, 1))
            return cell.emitted(states, x).transpose(0, 1).flatten(0, 1)
        for number, clip in enumerate(self.clips):
            states, final = cell.scan(x[clip.start:clip.stop, None], self.states.get(place) if number == 0 else None)
            outs.append(cell.emitted(states, x)[:, 0])
        if not self.training:
            self.states[place] = final
        return torch.cat(outs)


def runs(frames: Frames | None, count: int) -> list[range]:
    """The places of a batch that belong to one clip each: successive frames of it."""
    starts = [place for place in range(count)
              if place == 0 or frames is None or tuple(frames[place]) != (frames[place - 1][0], frames[place - 1][1] + 1)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]
