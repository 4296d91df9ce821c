"""Binary UNet blocks, BI-DiffSR's sampling, the cross-timestep connection."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnn_plugins
from bnn_plugins import pack_
from bnn_plugins.layers import BinaryConv2d, BinaryLayer, BinaryLinear

pytest.importorskip('diffusers')

from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from bnn_plugins.integrations.diffusers.bi_diffsr import ChannelPreservingDown, ChannelPreservingUp
from bnn_plugins.integrations.diffusers.blocks import (
    BinaryResnetBlock2D,
    BinaryUnit2D,
    BinaryUpsample2D,
    BlockOptions,
    BucketRPReLU,
    TimeShift,
)
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel

SIZES = dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8)
BLOCKS = dict(down_block_types=('BinaryDownBlock2D', 'BinaryAttnDownBlock2D'),
              up_block_types=('BinaryAttnUpBlock2D', 'BinaryUpBlock2D'))
VARIANTS = {
    'plain': {}, 'wide': dict(expand=dict(tau=2)), 'buckets': dict(time_buckets=5), 'pad': dict(method='bireal', pad_value=-1),
    'bidm': dict(method='bidm', cross_timestep=dict(initial=0.3)),
    'bi_diffsr': dict(down_block_types=('BIDiffSRDownBlock2D', 'BIDiffSRDownBlock2D'), time_buckets=5,
                      up_block_types=('BIDiffSRUpBlock2D', 'BIDiffSRUpBlock2D')),
    'resnet_samplers': dict(downsample_type='resnet', upsample_type='resnet'),
    'mixed': dict(down_block_types=('DownBlock2D', 'BinaryAttnDownBlock2D'), mid_block_type='UNetMidBlock2D'),
    'no_mid': dict(mid_block_type=None),
}
OPTIONS = BlockOptions('reactnet', 0, None, temb_channels=12, buckets=0, groups=4, eps=1e-5)


def build(**changes):
    torch.manual_seed(0)
    return BinaryUNet2DModel(**{**SIZES, **BLOCKS, **changes})


def batch():
    torch.manual_seed(1)
    return torch.randn(2, 1, 8, 8), torch.tensor([3, 400])


def forget(unet):
    if hasattr(unet, 'cross_timestep_connection'):
        unet.cross_timestep_connection.reset()


@pytest.mark.parametrize('variant', VARIANTS)
def test_train_save_load_pack(variant, tmp_path):
    unet = build(**VARIANTS[variant])
    x, t = batch()
    for timestep in (t + 1, t):  # the second sees the memory of the first where there is one
        out = unet(x, timestep).sample
    out.square().mean().backward()
    without = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without, 'unused parameters break several processes'
    unet.eval()
    with torch.no_grad():
        forget(unet)
        expected = unet(x, t).sample
        unet.save_pretrained(tmp_path / 'latent')
        loaded = BinaryUNet2DModel.from_pretrained(tmp_path / 'latent')
        assert loaded.config.down_block_types == list(unet.config.down_block_types)
        assert tuple(loaded.config.block_out_channels) == SIZES['block_out_channels']
        assert torch.equal(loaded(x, t).sample, expected)
        pack_(loaded)
        forget(loaded)
        assert torch.equal(loaded(x, t).sample, expected)
        loaded.save_pretrained(tmp_path / 'packed')
        again = BinaryUNet2DModel.from_pretrained(tmp_path / 'packed')
        assert torch.equal(again(x, t).sample, expected)


def test_from_config_is_binary():
    again = BinaryUNet2DModel.from_config(build(expand=dict(tau=2)).config)
    assert [p.shape for p in again.parameters()] == [p.shape for p in build(expand=dict(tau=2)).parameters()]
    unet = build()
    assert 'quantization_config' not in unet.config, 'its own arguments say what is binary'
    pack_(unet)
    assert any(isinstance(m, BinaryLayer) for m in bnn_plugins.from_config(BinaryUNet2DModel, unet.config).modules())


def test_what_is_binary():
    unet = build()
    binary = [name for name, module in unet.named_modules() if isinstance(module, BinaryLayer)]
    kinds = {type(module) for module in unet.modules()}
    assert {BinaryConv2d, BinaryLinear} <= kinds
    assert len(binary) == 34
    real = [name for name, module in unet.named_modules()
            if isinstance(module, nn.Conv2d) and not isinstance(module, BinaryLayer)]
    assert all(name in ('conv_in', 'conv_out') or name.endswith('conv_shortcut') for name in real)


def test_expansion_keeps_the_binary_weights():
    base, wide = build(), build(expand=dict(tau=2))

    def weights(unet):
        return sum(m.weight.numel() for m in unet.modules() if isinstance(m, BinaryLayer))
    assert weights(wide) == weights(base)
    assert wide.down_blocks[0].resnets[0].unit1.norm.num_channels == 2 * 16
    single = build(expand=dict(tau=1))
    x, t = batch()
    assert torch.equal(single(x, t).sample, base(x, t).sample)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(down_block_types=('BinaryDownBlock', 'BinaryDownBlock2D')), "down block 'BinaryDownBlock'.*'BinaryDownBlock2D'"),
    (dict(mid_block_type='BinaryMid'), "mid block 'BinaryMid'"),
    (dict(down_block_types=('DownBlock2D', 'BinaryDownBlock2D'), time_buckets=5), 'write BinaryDownBlock2D'),
    (dict(method='reactnets'), "'reactnet'"),
    (dict(expand=dict(tau=2, grups=2)), 'groups'),
])
def test_wrong_options(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


# --- the parts -----------------------------------------------------------------------------------------------

def test_time_shift_is_a_threshold_of_its_own_for_every_sample():
    shift = TimeShift(12, 3, 5)
    shift.table.data.normal_()
    temb = torch.randn(2, 12)
    code = torch.tensor([[0., 1., 0.], [0., 0., 1.]])
    expected = shift.proj(torch.nn.functional.silu(temb)) + shift.table[[1, 2]]
    torch.testing.assert_close(shift(torch.cat([temb, code], 1))[:, :, 0, 0], expected)


def test_bucket_rprelu():
    act = BucketRPReLU(3, 2, 2)
    for p in act.parameters():
        p.data.normal_()
    x = torch.randn(2, 3, 2, 2)
    temb = torch.cat([torch.randn(2, 2), torch.eye(2).flip(0)], 1)  # sample 0 in bucket 1, sample 1 in bucket 0
    gamma, slope, zeta = (p.detach().numpy()[[1, 0]][:, :, None, None] for p in (act.gamma, act.slope, act.zeta))
    v = x.numpy() - gamma
    np.testing.assert_allclose(act(x, temb).detach().numpy(), np.where(v > 0, v, slope * v) + zeta, rtol=1e-6)


def test_buckets_are_those_of_each_sample():
    unet = build(time_buckets=5)
    code = unet.time_proj(torch.tensor([0, 199, 200, 999, 1000]))[:, -5:]
    assert code.argmax(1).tolist() == [0, 0, 1, 4, 4]


@pytest.mark.parametrize(('inputs', 'outputs'), [(8, 8), (8, 16), (16, 8), (8, 12)])
def test_unit_passes_the_stream(inputs, outputs):
    unit = BinaryUnit2D(inputs, outputs, OPTIONS).eval()
    unit.act.slope.data.zero_()
    unit.act.gamma.data.fill_(1e6)  # nothing passes the non-linearity: what is left is the shortcut
    x = torch.randn(2, inputs, 4, 4)
    expected = {8: x if inputs == 8 else (x[:, :8] + x[:, 8:]) / 2, 16: torch.cat([x, x], 1)}.get(outputs)
    if expected is None:
        expected = unit.shortcut.conv_shortcut(x)
    torch.testing.assert_close(unit(x, torch.randn(2, 12)), expected)


def test_channel_preserving_sampling_keeps_pixels():
    """With silent units, down and up move pixels and lose none: four channels become a 2x2 patch, and back."""
    x = torch.randn(1, 16, 4, 6)
    down, up = ChannelPreservingDown(16, OPTIONS).eval(), ChannelPreservingUp(16, OPTIONS).eval()
    for unit in [*down.units, *up.units]:
        unit.act.slope.data.zero_()
        unit.act.gamma.data.fill_(1e6)
    small = down(x)
    assert small.shape == (1, 16, 2, 3)
    torch.testing.assert_close(small, torch.nn.functional.pixel_unshuffle(sum(x.chunk(4, 1)), 2))
    torch.testing.assert_close(up(x), torch.nn.functional.interpolate(x, scale_factor=2))
    with pytest.raises(ValueError, match='must be even'):
        down(torch.randn(1, 16, 3, 4))


def silent(unit):
    """Nothing passes its non-linearity: what is left is the shortcut."""
    unit.act.slope.data.zero_()
    unit.act.gamma.data.fill_(1e6)
    return unit


def test_the_shortcut_of_a_strided_unit_is_the_mean_of_what_each_window_holds():
    unit = silent(BinaryUnit2D(8, 8, OPTIONS, stride=2, timed=False).eval())
    x = torch.randn(1, 8, 3, 4)
    rows = [x[:, :, 2 * i:2 * i + 2] for i in range(2)]
    expected = torch.stack([torch.stack([row[..., 2 * j:2 * j + 2].mean((2, 3)) for j in range(2)], 2) for row in rows], 2)
    torch.testing.assert_close(unit(x, None), expected)


def test_an_upsampler_gives_the_size_that_is_asked_for():
    up = BinaryUpsample2D(Upsample2D(8, use_conv=True, out_channels=8), OPTIONS).eval()
    silent(up.unit)
    x = torch.randn(1, 8, 2, 3)
    assert torch.equal(up(x)[:, :, ::2, ::2], x)
    odd = up(x, output_size=(5, 5))
    assert torch.equal(odd, x[:, :, [0, 0, 0, 1, 1]][..., [0, 0, 1, 1, 2]])


def test_settings_reach_the_parts_around_the_blocks():
    code = build(time_buckets=5, num_train_timesteps=100).time_proj(torch.tensor([0, 19, 20, 99]))[:, -5:]
    assert code.argmax(1).tolist() == [0, 0, 1, 4]
    assert build(expand=dict(tau=2), norm_eps=1e-3).conv_norm_out[1].eps == 1e-3


def test_the_output_of_a_residual_block_is_scaled():
    """``output_scale_factor`` of the host block (UNet: ``mid_block_scale_factor``) divides the sum at the end."""
    torch.manual_seed(0)
    x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    blocks = []
    for factor in (1.0, 2.0):
        torch.manual_seed(0)
        host = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=12, groups=4, output_scale_factor=factor)
        blocks.append(BinaryResnetBlock2D(host, OPTIONS).eval())
    assert torch.equal(blocks[1](x, temb) * 2, blocks[0](x, temb))
    assert build(mid_block_scale_factor=4.0).mid_block.resnets[0].output_scale_factor == 4.0


# --- cross-timestep connection -------------------------------------------------------------------------------

class Toy(nn.Module):
    """A 'UNet' whose one up block returns its input plus one."""

    def __init__(self):
        super().__init__()
        self.up_blocks = nn.ModuleList([nn.Identity()])

    def forward(self, sample, timestep):
        return self.up_blocks[0](sample + 1)


def test_cross_timestep_formula_and_reset():
    unet = Toy()
    connection = bnn_plugins.CrossTimestepConnection(unet, buckets=10, num_train_timesteps=1000)
    connection.alpha.data.copy_(torch.linspace(0, 0.9, 10)[:, None])
    x = torch.ones(1, 1, 1, 1)
    first = unet(x, 900)
    second = unet(10 * x, torch.tensor(850))
    assert float(first) == 2  # nothing to mix in
    torch.testing.assert_close(second, 0.2 * torch.full_like(x, 11.0) + 0.8 * 2.0)
    assert float(unet(5 * x, 850)) == 6, 'the timestep did not fall: a new run'
    assert float(unet(5 * x.expand(2, 1, 1, 1), 800)[0]) == 6, 'another batch: a new run'
    unet(x, 500)
    connection.reset()
    assert float(unet(3 * x, 400)) == 4
    with pytest.raises(ValueError, match='has a cross-timestep connection already'):
        bnn_plugins.CrossTimestepConnection(unet)


def test_cross_timestep_gives_no_gradient_to_the_step_before():
    unet = Toy()
    bnn_plugins.CrossTimestepConnection(unet, initial=0.5)
    before, now = (torch.ones(1, 1, 1, 1, requires_grad=True) for _ in range(2))
    unet(before, 20)
    unet(now, 10).sum().backward()
    assert before.grad is None
    assert float(now.grad) == 0.5
    assert unet.cross_timestep_connection.alpha.grad.abs().sum() == 0  # both features are equal here


def test_each_image_of_a_training_step_has_its_own_step_before():
    """The noisiest timestep has none: that image keeps its features, the others are mixed, and alpha has a gradient always,
    without which one process would wait for the other. Mutation: a connection that is reset for all."""
    unet = Toy()
    connection = bnn_plugins.CrossTimestepConnection(unet, buckets=10, num_train_timesteps=1000, initial=0.5)
    x = torch.ones(3, 1, 1, 1, requires_grad=True)
    for t, mixed, gradient in (([999, 500, 20], [4, 3, 3], [0, -2, -2]), ([999, 999, 999], [4, 4, 4], [0, 0, 0])):
        connection.alpha.grad = None
        t = torch.tensor(t)
        with connection.training_step():
            with torch.no_grad():
                unet(x, (t + 1).clamp(max=999))
            out = unet(3 * x, t)
        assert out.flatten().tolist() == mixed
        out.sum().backward()
        assert connection.alpha.grad[t * 10 // 1000, 0].tolist() == gradient
        assert connection._timesteps is None, 'nothing is left for another batch'


def test_a_copy_has_a_memory_of_its_own():
    unet = Toy()
    bnn_plugins.CrossTimestepConnection(unet, initial=0.5)
    x = torch.ones(1, 1, 1, 1)
    unet(x, 20)
    twin = copy.deepcopy(unet)
    twin(9 * x, 15)
    twin.cross_timestep_connection.alpha.data.fill_(0)
    assert float(unet(x, 10)) == 2
    assert float(twin(3 * x, 10)) == 4


def test_two_runs_of_a_pipeline_are_equal():
    pipe = DDIMPipeline(build(**VARIANTS['bidm']).eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    first, second = (pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type='np').images
                     for _ in range(2))
    assert (first == second).all()


def test_own_block():
    from bnn_plugins.integrations.diffusers.blocks import BLOCKS as registry
    seen = []
    try:
        @bnn_plugins.register_block('down', 'MyDownBlock2D', 'DownBlock2D')
        def my_block(host, options):
            seen.append(options.method)
            return host
        unet = build(down_block_types=('MyDownBlock2D', 'BinaryDownBlock2D'))
        assert seen == ['reactnet']
        assert unet.config.down_block_types[0] == 'MyDownBlock2D'
        with pytest.raises(ValueError, match='registered already'):
            bnn_plugins.register_block('down', 'MyDownBlock2D', 'DownBlock2D')(my_block)
    finally:
        registry['down'].pop('MyDownBlock2D', None)
    with pytest.raises(ValueError, match="kind of block 'side'"):
        bnn_plugins.register_block('side', 'X', 'DownBlock2D')


def test_methods_of_blocks(tmp_path):
    """BinaryDM: two bases outside, one in the middle; the file knows."""
    two, one = dict(type='binarydm', a_bits=3), dict(type='binarydm', a_bits=3, order=1)
    unet = build(method=two, block_methods={'mid_block': one, 'up_blocks.0': one}).eval()
    bases = {name: module.bases for name, module in unet.named_modules() if isinstance(module, BinaryLayer)}
    assert {name for name, number in bases.items() if number == 1} == {
        name for name in bases if name.startswith(('mid_block', 'up_blocks.0'))}
    x, t = batch()
    with torch.no_grad():
        expected = unet(x, t).sample
        pack_(unet).save_pretrained(tmp_path)
        assert torch.equal(unet(x, t).sample, expected)
        assert torch.equal(BinaryUNet2DModel.from_pretrained(tmp_path)(x, t).sample, expected)
    with pytest.raises(ValueError, match=r"'mid_blok'.*'mid_block'"):
        build(block_methods={'mid_blok': one})


@pytest.mark.parametrize(('height', 'width'), [(7, 8), (8, 9)])
def test_sizes_that_the_levels_cannot_halve(height, width):
    unet = build()
    levels = len(unet.down_blocks)
    sentence = f'multiples of {2 ** (levels - 1)}, which the {levels} levels of this UNet halve, but got {height} x {width}'
    with pytest.raises(ValueError, match=sentence):
        unet(torch.randn(1, 3, height, width), 3)


def test_norms_without_a_number_of_groups():
    """As NCSN++: the host takes a quarter of the channels, at most 32."""
    model = BinaryUNet2DModel(
        in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=None,
        down_block_types=('BinarySkipDownBlock2D', 'BinaryAttnSkipDownBlock2D'),
        up_block_types=('BinaryAttnSkipUpBlock2D', 'BinarySkipUpBlock2D'), time_embedding_type='fourier')
    assert model(torch.randn(2, 3, 16, 16), torch.tensor([1.0, 5.0])).sample.shape == (2, 3, 16, 16)
    assert model.config.norm_num_groups is None
