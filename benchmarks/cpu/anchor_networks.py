"""What :mod:`benchmarks.cpu.anchors` measures: packed networks and their float twins, with random weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from bnn_plugins import binarize_
from bnn_plugins.analysis.throughput_variants import Models, Part
from bnn_plugins.deploy import pack_
from bnn_plugins.integrations.mmengine.benchmark import Network, build_models
from bnn_plugins.models.backbones import BNNReActNet, BNNResNet, BNNViT

from .networks import DETECTOR, ROOT, body_models, randomise_


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def part(module: Callable[[nn.Module], nn.Module], *shape: int) -> Part:
    return Part('network', module, (noise(*shape),), calibration=[noise(*shape, seed=1 + image) for image in range(8)])


def itself(model: nn.Module) -> nn.Module:
    return model


def resnet18_body() -> tuple[Models, Part]:
    return body_models(), part(itself, 1, 64, 56, 56)


def backbone(latent: nn.Module, twin: nn.Module) -> tuple[Models, Part]:
    return Models(pack_(randomise_(latent)), None, randomise_(twin)), part(itself, 1, 3, 224, 224)


def resnet18() -> tuple[Models, Part]:
    from mmdet.models.backbones import ResNet
    return backbone(BNNResNet(18, out_indices=(3,)), ResNet(18, out_indices=(3,)))


def vit() -> tuple[Models, Part]:
    """The twin is the pyramid of real Transformers with its depths, widths and reductions."""
    from mmdet.models.backbones import PyramidVisionTransformer
    twin = PyramidVisionTransformer(num_layers=[3, 4, 8, 4], num_heads=[1, 2, 4, 8], sr_ratios=[8, 4, 1, 1], out_indices=(3,))
    return backbone(BNNViT(), twin)


def detector(config: Path) -> tuple[Models, Part]:
    _, models, _ = build_models(str(config), None, None, None, None, torch.device('cpu'))
    return models, part(Network, 1, 3, 240, 320)


def converted(family: str, config: str, size: int) -> tuple[Models, Part]:
    """A detector of mmdet, binarized as a whole."""
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / family / config).model
    for holder in (cfg, cfg.backbone):
        holder.pop('init_cfg', None)
    latent, twin = randomise_(MODELS.build(cfg)), randomise_(MODELS.build(cfg))
    latent.eval()
    binarize_(latent, 'reactnet')
    return Models(pack_(latent), None, twin), part(Network, 1, 3, size, size)


class AtOneTime(nn.Module):
    """A UNet at a fixed time step: of one tensor, as :mod:`bnn_plugins.analysis.anchors` wants it."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet, self.time = unet, torch.tensor([10])
        self.train(unet.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x, self.time, return_dict=False)[0]


def unet(config: str, twin: str, *shape: int) -> tuple[Models, Part]:
    from bnn_plugins.apps.diffusion.build import build
    latent, real = (build(Config.fromfile(ROOT / 'configs/diffusion' / name).model.to_dict(), sample_size=shape[-1])
                    for name in (config, twin))
    return Models(pack_(randomise_(latent)), None, randomise_(real)), part(AtOneTime, *shape)


NETWORKS: dict[str, Callable[[], tuple[Models, Part]]] = {
    'resnet18-body': resnet18_body,
    'resnet18': resnet18,
    'retinanet': lambda: detector(DETECTOR),
    'retinanet-binary-head': lambda: detector(DETECTOR.with_name('retinanet_bnn-r18_fpn-binary-head_bccd.py')),
    'reactnet-a': lambda: backbone(BNNReActNet(), BNNReActNet(method=None)),
    'bnn-vit': vit,
    'yolox-tiny': lambda: converted('yolox', 'yolox_tiny_8xb8-300e_coco.py', 416),
    'rtmdet-tiny': lambda: converted('rtmdet', 'rtmdet_tiny_8xb32-300e_coco.py', 416),
    'unet-digits': lambda: unet('ddpm_reactnet_digits.py', 'ddpm_float_digits.py', 1, 1, 8, 8),
    'unet-sr': lambda: unet('sr_bidiffsr_emoji.py', 'sr_float_emoji.py', 1, 6, 128, 128),
}
