"""Whole networks: the body of ResNet-18, and the BCCD RetinaNet end to end."""

import copy
from pathlib import Path

import torch
from mmdet.models.backbones import ResNet
from torch import nn

import bnn_kernels
from bnn_plugins.analysis.throughput_run import Plan, Throughput, profile
from bnn_plugins.analysis.throughput_variants import ON_CPU, Models, Part
from bnn_plugins.deploy import fuse_, pack_
from bnn_plugins.integrations.mmengine.benchmark import benchmark, body, channels_last_
from bnn_plugins.models.backbones import BNNResNet

from .convolutions import instruction_sets

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs/detection/retinanet_bnn-r18_fpn_bccd.py'
QUICK = ('fused', 'fused-int8', 'float32', 'float32-nchw', 'float32-compiled', 'bfloat16-compiled')
FULL = ON_CPU


def backends() -> list[str | None]:
    """The engine on every instruction set that is faster than floats, the widest first; without it, what is chosen."""
    if bnn_kernels.available_backends()['cpu'] != 'available':
        return [None]
    return [f'cpu:{isa}' for isa in instruction_sets() if isa != 'portable'] or [None]


def randomise_(model: nn.Module) -> nn.Module:
    """Statistics, thresholds and shifts as after training: away from zero and one, so that nothing folds into nothing."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.1)
    for name, parameter in model.named_parameters():
        if name.rpartition('.')[2] in ('shift', 'gamma', 'zeta'):
            nn.init.normal_(parameter, 0, 0.1)
    return model


def body_models(width: int = 64) -> Models:
    """The 16 binary convolutions and 3 downsamples of ``BNNResNet(18)``, and those of the ordinary float ResNet-18.

    The float one has its strided 1x1 shortcuts (no ``avg_down``), which are faster than the binary one's pooled shortcuts.
    """
    latent = body(randomise_(BNNResNet(18, base_channels=width)))
    latent.eval()
    packed = pack_(copy.deepcopy(latent))
    twin = body(randomise_(ResNet(18, base_channels=width)))
    twin.eval()
    for model in (latent, packed, twin):
        model.requires_grad_(False)
        channels_last_(model)
    fused, fused_bfloat16 = copy.deepcopy(packed), copy.deepcopy(packed)
    fuse_(fused)
    fuse_(fused_bfloat16, stream_dtype=torch.bfloat16)
    return Models(packed, fused, twin, latent, fused_bfloat16)


def run_body(size: int, threads: list[int], rounds: int, budget: float, forms: tuple[str, ...], width: int = 64) -> Throughput:
    """The body on ``[1, width, size, size]``, which is what the stem makes of an image four times as large."""
    x = torch.randn(1, width, size, size, generator=torch.Generator().manual_seed(0))
    facts = {'Float twin': "mmdet's ResNet-18 without its stem, the ordinary one (no avg_down)", 'Weights': 'random',
             'Input': f'noise, {width} channels at {size}x{size}: the stem is left out on both sides'}
    plan = Plan(threads=threads, forms=forms, backends=backends(), rounds=rounds, budget=budget)
    part = Part('body', lambda model: model, (x,), calibration=(x,))
    return profile('resnet18-body', body_models(width), lambda *_: [part], plan, facts)


def run_detector(threads: list[int], rounds: int, budget: float, forms: tuple[str, ...],
                 checkpoint: str | None = None) -> Throughput:
    """The BCCD RetinaNet: backbone, network, and from images to boxes."""
    return benchmark(str(DETECTOR), checkpoint, threads=threads, backends=backends()[:1], variants=forms, rounds=rounds,
                     budget=budget)
