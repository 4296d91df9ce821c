"""Binary ResNet with a shortcut around each binary convolution."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...binarize.lookup import checked_arguments
from ...layers import build_act
from ...layers.training import unit2d
from ...registry import MODELS
from ..blocks import CheckpointedModule
from ..layer_factory import LayerFactory
from .base import BinaryBackbone


class BinaryBlock(CheckpointedModule):
    """Base of the residual blocks: builds the layers under mmdet's names.

    A *unit* is that of :class:`bnn_plugins.models.blocks.BinaryUnit`.
    """

    expansion: int

    def __init__(self, factory: LayerFactory, with_cp: bool):
        super().__init__()
        self.factory, self.with_cp = factory, with_cp
        self.plugin_names: dict[int, list[str]] = {}  # behind which unit

    def add_unit(self, index: int, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1,
                 dilation: int = 1) -> None:
        """Add ``conv{index}``, its norm (``bn{index}``) and ``act{index}``; names as in mmdet's ResNet."""
        name, norm = self.factory.norm(out_channels, postfix=index)
        setattr(self, f'norm{index}_name', name)
        self.add_module(f'conv{index}', self.factory.conv(in_channels, out_channels, kernel_size, stride, dilation))
        self.add_module(name, norm)
        self.add_module(f'act{index}', self.factory.nonlinearity(out_channels))

    def unit(self, index: int, x: Tensor, shortcut: Tensor | None) -> Tensor:
        norm = getattr(self, getattr(self, f'norm{index}_name'))
        out = unit2d(getattr(self, f'conv{index}'), norm, getattr(self, f'act{index}'), x, shortcut)
        for name in self.plugin_names.get(index, ()):
            out = getattr(self, name)(out)
        return out

    def add_downsample(self, in_channels: int, out_channels: int, stride: int, avg_down: bool) -> None:
        """The real-valued shortcut where the shape changes: average pooling, 1x1 convolution, norm (Bi-Real Net)."""
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            pool, step = nn.Identity(), stride
            if avg_down and stride != 1:
                pool, step = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False), 1
            self.downsample = nn.Sequential(pool, self.factory.real_conv(in_channels, out_channels, step),
                                            self.factory.norm(out_channels, spread=True)[1])

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Without avg_down (torchvision's, mmdet's default) the 1x1 convolution is at index 0 and its norm at 1.
        if f'{prefix}downsample.0.weight' in state_dict:
            for index in (1, 0):
                old, new = f'{prefix}downsample.{index}.', f'{prefix}downsample.{index + 1}.'
                for name in [name for name in state_dict if name.startswith(old)]:
                    state_dict[name.replace(old, new, 1)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class BinaryBasicBlock(BinaryBlock):
    """Two 3x3 units, in either style. ``[N, in, H, W]`` -> ``[N, planes, H/stride, W/stride]`` (rounded up)."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, dilation: int, avg_down: bool = True, style: str = 'pytorch',
                 **kwargs):
        super().__init__(**kwargs)
        self.add_unit(1, inplanes, planes, 3, stride, dilation)
        self.add_unit(2, planes, planes, 3)
        self.add_downsample(inplanes, planes, stride, avg_down)

    def run(self, x: Tensor) -> Tensor:
        x = self.unit(1, x, self.shortcut(x))
        return self.unit(2, x, x)


class BinaryBottleneck(BinaryBlock):
    """1x1, 3x3, 1x1 units. The 3x3 has its own shortcut where it keeps the shape; the block's goes around all three. The
    stride is that of the 3x3, in ``style='caffe'`` that of the first 1x1.

    ``[N, in, H, W]`` -> ``[N, 4 * planes, H/stride, W/stride]`` (rounded up).
    """

    expansion = 4

    def equip(self, planes: int, dcn: dict | None, plugins: list[dict]) -> None:
        """Put a real deformable convolution in the place of the 3x3, and ``plugins`` behind the units that they name."""
        if dcn is not None:
            cfg, old = {key: value for key, value in dcn.items() if key != 'fallback_on_stride'}, self.conv2
            self.conv2 = build_conv_layer(cfg, planes, planes, 3, old.stride, old.dilation, old.dilation, bias=False)
        for plugin in plugins:
            index, cfg = int(plugin['position'].removeprefix('after_conv')), dict(plugin['cfg'])
            name, layer = build_plugin_layer(cfg, in_channels=planes * (self.expansion if index == 3 else 1),
                                             postfix=cfg.pop('postfix', ''))
            self.add_module(name, layer)
            self.plugin_names.setdefault(index, []).append(name)

    def __init__(self, inplanes: int, planes: int, stride: int, dilation: int, avg_down: bool = True, style: str = 'pytorch',
                 **kwargs):
        super().__init__(**kwargs)
        first, second = (stride, 1) if style == 'caffe' else (1, stride)
        self.add_unit(1, inplanes, planes, 1, first)
        self.add_unit(2, planes, planes, 3, second, dilation)
        self.add_unit(3, planes, planes * self.expansion, 1)
        self.add_downsample(inplanes, planes * self.expansion, stride, avg_down)
        self.keeps_shape = second == 1

    def run(self, x: Tensor) -> Tensor:
        out = self.unit(1, x, None)
        out = self.unit(2, out, out if self.keeps_shape else None)
        return self.unit(3, out, self.shortcut(x))


@MODELS.register_module()
class BNNResNet(BinaryBackbone):
    """ResNet-18/34/50/101 with binary 3x3 (and bottleneck 1x1) convolutions; stem and shortcuts stay real.

    By default the stem pools before its norm, so that the first sign is balanced; released networks pool last.

    Takes the arguments of ``mmdet.ResNet`` that make sense here, so that a config changes ``type`` and adds ``method``;
    parameter names are those of mmdet's ResNet with ``avg_down=True``, so float checkpoints load as latents (those without
    ``avg_down``, torchvision's too).

    Args:
        depth (int): 18, 34, 50 or 101.
        method (str | dict): see :func:`bnn_plugins.list_methods`.
        act (str): non-linearity of the units; ``'auto'`` is the method's own (``Method.act``).
        pad_value (int): what stands outside of the image after the sign: 0, -1 or 1.
        expand (dict): expanding-and-shrinking, see :class:`.LayerFactory`.
        stem_act (bool): whether the stem has a non-linearity (not in ReActNet's ResNet-18).
        pool_last (bool): the stem pools behind its norm and non-linearity.
        avg_down (bool): shortcuts pool; otherwise their 1x1 convolutions have the stride (IR-Net, RBNN, ReCU).
        in_channels, stem_channels, base_channels, num_stages, strides, dilations, out_indices, deep_stem, frozen_stages,
            norm_cfg, norm_eval, with_cp, init_cfg: as in ``mmdet.ResNet``. ``norm_eval`` defaults to False and
            ``frozen_stages`` to -1: frozen latents or statistics of a float network do not fit a binary one. Norms that are
            trained take the default for ``eps=0``, with a warning.
        style (str): which convolution of a bottleneck has the stride: its 3x3 (``'pytorch'``) or its first 1x1 (``'caffe'``).
        dcn, stage_with_dcn: as in ``mmdet.ResNet``: the 3x3 of bottlenecks in these stages are deformable and real.
        plugins (list[dict]): as in ``mmdet.ResNet``: real modules inside of bottlenecks.
        zero_init_residual (bool): the last norm of each block starts at zero.

    Raises:
        KeyError: for another depth. TypeError: for an unknown argument. ValueError: for an unknown method, act or style, for
            ``out_indices`` or ``frozen_stages`` outside of the stages, for ``dcn`` or ``plugins`` without bottlenecks, or with
            ``expand``.
    """

    arch_settings = {
        18: (BinaryBasicBlock, (2, 2, 2, 2)),
        34: (BinaryBasicBlock, (3, 4, 6, 3)),
        50: (BinaryBottleneck, (3, 4, 6, 3)),
        101: (BinaryBottleneck, (3, 4, 23, 3)),
    }

    styles: tuple[str, ...] = ('pytorch', 'caffe')

    @checked_arguments
    def __init__(self, depth: int, method: str | dict = 'reactnet', act: str = 'auto', pad_value: int = 0,
                 expand: dict | None = None, stem_act: bool = True, pool_last: bool = False, avg_down: bool = True,
                 in_channels: int = 3, stem_channels: int | None = None, base_channels: int = 64,
                 num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 out_indices: Sequence[int] = (0, 1, 2, 3), style: str = 'pytorch', deep_stem: bool = False,
                 frozen_stages: int = -1, norm_cfg: dict | None = None, norm_eval: bool = False, with_cp: bool = False,
                 dcn: dict | None = None, stage_with_dcn: Sequence[bool] = (False,) * 4, plugins: list[dict] | None = None,
                 zero_init_residual: bool = False, init_cfg: dict | list | None = None):
        if norm_cfg and norm_cfg.get('eps') == 0 and not norm_eval:
            norm_cfg = {key: value for key, value in norm_cfg.items() if key != 'eps'}
            warnings.warn(f'{type(self).__name__}: norm_cfg has eps=0, which torch takes for frozen statistics alone '
                          '(norm_eval=True); its norms are trained, with the default eps', stacklevel=2)
        super().__init__(LayerFactory(method, act, pad_value, norm_cfg, expand), init_cfg)
        if depth not in self.arch_settings:
            raise KeyError(f'BNNResNet has depth {", ".join(map(str, self.arch_settings))}, but got {depth}')
        if style not in self.styles:
            raise ValueError(f'{type(self).__name__} has style {" or ".join(map(repr, self.styles))}, but got {style!r}')
        if not 1 <= num_stages <= 4 or not len(strides) == len(dilations) == num_stages:
            raise ValueError(f'BNNResNet has 1 to 4 stages with one stride and one dilation each, but got '
                             f'num_stages={num_stages}, strides={tuple(strides)}, dilations={tuple(dilations)}')
        if not set(out_indices) <= set(range(num_stages)) or not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'out_indices={tuple(out_indices)}, frozen_stages={frozen_stages} do not fit {num_stages} stages')
        if (dcn or plugins) and (expand or not issubclass(self.arch_settings[depth][0], BinaryBottleneck)):
            raise ValueError('dcn and plugins change the bottlenecks of depth 50 and 101, without expand')
        self.depth = depth
        self.zero_init_residual = zero_init_residual
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.pool_last = pool_last
        stem_channels = stem_channels or base_channels
        self._add_stem(in_channels, stem_channels, deep_stem, stem_act)

        block, blocks = self.arch_settings[depth]
        options = {'avg_down': avg_down} | ({'style': style} if style != 'pytorch' else {})
        self.res_layers, self.widths = [], []
        inplanes = stem_channels
        for stage in range(num_stages):
            planes = base_channels * 2**stage
            layer = nn.Sequential()
            for index, kind in enumerate(self.stage_blocks(stage, partial(block, **options), blocks[stage])):
                layer.append(kind(inplanes, planes, strides[stage] if index == 0 else 1, dilations[stage],
                                  factory=self.factory, with_cp=with_cp))
                if dcn or plugins:
                    layer[-1].equip(planes, dcn if stage_with_dcn[stage] else None,
                                    [p for p in plugins or () if p.get('stages', (True,) * 4)[stage]])
                inplanes = planes * block.expansion
            self.res_layers.append(f'layer{stage + 1}')
            self.add_module(self.res_layers[-1], layer)
            self.widths.append(inplanes)
        self.feat_dim = self.out_width(inplanes)
        self._freeze_stages()

    def stage_blocks(self, stage: int, block: Callable[..., BinaryBlock], count: int) -> list[Callable[..., BinaryBlock]]:
        """What builds the blocks of a stage; the first one changes stride and width."""
        return [block] * count

    def _add_stem(self, in_channels: int, channels: int, deep_stem: bool, act: bool) -> None:
        factory = self.factory
        last = factory.nonlinearity(channels) if act else nn.Identity()
        self.stem = make_stem(in_channels, channels, factory).append(last) if deep_stem else None
        if not deep_stem:
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
            self.norm1_name, norm = factory.stem_norm(channels, postfix=1)
            self.add_module(self.norm1_name, norm)
            self.act1 = last
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def _stem_modules(self) -> list[nn.Module]:
        modules = [*self.stem] if self.stem is not None else [self.conv1, getattr(self, self.norm1_name), self.act1]
        *first, norm, act = modules
        scaled = [*self.factory.around_norm(norm), act]
        # Pooling before the last norm, as in XNOR-Net: maxima behind a norm are nearly all positive, their sign is no news.
        if not self.pool_last:
            return [*first, self.maxpool, *scaled]
        # Behind the maximum a function that never falls has the same values and gradients, on a quarter of the memory.
        later = self.training and isinstance(act, (nn.ReLU, nn.Hardtanh))
        return [*first, *scaled[:-1], self.maxpool, act] if later else [*first, *scaled, self.maxpool]

    @property
    def norm_behind_pooling(self) -> nn.Module | None:
        """The stem's last norm. A negative factor of it cannot be moved in front of the maximum, into the convolution."""
        if self.pool_last:
            return None
        return self.stem[-2] if self.stem is not None else getattr(self, self.norm1_name)

    def init_weights(self) -> None:
        super().init_weights()
        if self.zero_init_residual:
            for module in self.modules():
                if isinstance(module, BinaryBlock):
                    last = max(index for index in (1, 2, 3) if hasattr(module, f'norm{index}_name'))
                    nn.init.zeros_(getattr(module, getattr(module, f'norm{last}_name')).weight)

    def _freeze_stages(self) -> None:
        frozen = self._stem_modules() if self.frozen_stages >= 0 else []
        frozen += [getattr(self, name) for name in self.res_layers[:max(self.frozen_stages, 0)]]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, in_channels, H, W]`` -> one ``[N, C_i, H_i, W_i]`` for each of ``out_indices``; strides 4, 8, 16, 32."""
        for module in self._stem_modules():
            x = module(x)
        outs = []
        for index, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(self.output(x, self.widths[index]))
        return tuple(outs)

    def train(self, mode: bool = True):
        """Training mode, except for frozen stages and, with ``norm_eval``, the norms."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def make_stem(in_channels: int, out_channels: int, factory: LayerFactory) -> nn.Sequential:
    """Three real 3x3 convolutions instead of the 7x7 (ResNet-D), up to the last norm."""
    half = out_channels // 2
    stem = nn.Sequential()
    for inputs, outputs, stride in ((in_channels, half, 2), (half, half, 1)):
        stem.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
        stem.append(build_norm_layer(factory.norm_cfg, outputs)[1])
        stem.append(build_act(factory.act, outputs))
    stem.append(nn.Conv2d(half, out_channels, 3, 1, 1, bias=False))
    return stem.append(factory.stem_norm(out_channels)[1])
