"""BI-DiffSR's parts against numbers of its released code (tests/golden/README.md): outputs and gradients."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip('diffusers')

from diffusers.models.resnet import ResnetBlock2D

from bnn_plugins.integrations.diffusers.bi_diffsr import BIConv, BIResnetBlock2D, ChannelShuffleFusion
from bnn_plugins.integrations.diffusers.blocks import BlockOptions
from tests.golden import Golden

OPTIONS = BlockOptions('reactnet', 0, None, temb_channels=6, buckets=5, groups=4, eps=1e-5)


def unit(conv: BIConv, name: str = '') -> tuple[dict, dict]:
    """A unit of the release: its parameters, and the factors of those with another sign."""
    parameters = {f'{name}thresholds': conv.thresholds, f'{name}weight': conv.conv.weight,
                  f'{name}act_add_before': conv.act.gamma, f'{name}act_slope': conv.act.slope,
                  f'{name}act_add_after': conv.act.zeta}
    return parameters, {f'{name}act_add_before': -1.0}


def timestep(data: Golden, x: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
    """The embedding, and the one-hot code of the bucket of the file."""
    code = F.one_hot(torch.tensor(data.number('bucket')), data.number('buckets')).double().expand(len(x), -1)
    return torch.cat([torch.zeros(len(x), 6, dtype=torch.float64) if embedding is None else embedding, code], 1)


def test_convolution():
    data, conv = Golden('bidiffsr_biconv_odd'), BIConv(8, 8, OPTIONS)
    data.check(conv, *unit(conv), run=lambda conv, x: conv(x, timestep(data, x)))


def test_fusion():
    data, fusion = Golden('bidiffsr_cs_fusion'), ChannelShuffleFusion(8, OPTIONS)
    (first, factors), (second, others) = (unit(conv, f'unit{i}_') for i, conv in enumerate(fusion.units, 1))
    data.check(fusion, first | second, factors | others, run=lambda fusion, x: fusion(x, timestep(data, x)))


def test_residual_block():
    data = Golden('bidiffsr_residual_unit')
    block = BIResnetBlock2D(ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=6, groups=4), OPTIONS)
    parameters, factors = {'time_weight': block.time.weight, 'time_bias': block.time.bias}, {}
    for i, (norm, conv) in enumerate(((block.norm1, block.conv1), (block.norm2, block.conv2)), 1):
        of_conv, of_sign = unit(conv, f'unit{i}_')
        parameters |= of_conv | {f'unit{i}_norm_weight': norm.weight, f'unit{i}_norm_bias': norm.bias}
        factors |= of_sign
    data.check(block, parameters, factors, run=lambda block, x, e: block(x, timestep(data, x, e)))
