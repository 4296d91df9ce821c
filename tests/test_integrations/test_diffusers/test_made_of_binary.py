"""What diffusers and peft make of binary models: adapters, other pipelines, ControlNets, quantized pipelines."""

import copy

import diffusers
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UNetMotionModel,
)
from torch import nn

from bnn_plugins import BNNConfig, binarize_, pack_
from bnn_plugins.deploy import PackedLayer
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel
from bnn_plugins.layers import BinaryLayer

X, TEXT = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 32)
PLAIN = dict(sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)
TIMED = dict(method='reactnet')  # thresholds are parameters: a float model has no place for them


def conditional():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**PLAIN, cross_attention_dim=32, attention_head_dim=4,
                                down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
                                up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))
    binarize_(unet, BNNConfig(**TIMED))
    return unet.eval()


def plain():
    torch.manual_seed(0)
    return UNet2DModel(**PLAIN, down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
                       up_block_types=('AttnUpBlock2D', 'UpBlock2D'))


@torch.no_grad()
def run(unet, **added):
    return unet(X, 3, TEXT, **added).sample


@pytest.mark.parametrize('change', [lambda unet: unet, pack_], ids=['latent', 'packed'])
def test_adapters_beside_a_layer_are_real(change):
    """Mutation: without the row of ``dispatch_default`` the convolutions of an adapter are binary."""
    peft = pytest.importorskip('peft')
    unet = change(conditional())
    expected = run(unet)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=['to_q', 'conv1']))
    assert torch.equal(run(unet), expected), 'an adapter begins as nothing'
    unet.add_adapter(peft.LoraConfig(r=3, target_modules=['to_q', 'conv1'], init_lora_weights=False), 'second')
    own = [part for module in unet.modules() if isinstance(module, peft.tuners.lora.layer.LoraLayer)
           for factor in (module.lora_A, module.lora_B) for part in factor.values()]
    assert {type(part) for part in own} == {nn.Linear, nn.Conv2d}
    unet.set_adapter('second')
    assert not torch.equal(run(unet), expected)
    if change is not pack_:  # packed layers pass no gradients on: adapters are trained beside the latent ones
        unet(X, 3, TEXT).sample.sum().backward()
        assert all(p.grad is not None for name, p in unet.named_parameters() if 'lora' in name and 'second' in name)
    with pytest.raises(ValueError, match='cannot be merged'):
        next(m for m in unet.modules() if isinstance(m, peft.tuners.lora.layer.LoraLayer)).merge()
    unet.disable_adapters()
    assert torch.equal(run(unet), expected)


@pytest.mark.parametrize('change', [lambda unet: unet, pack_], ids=['latent', 'packed'])
def test_ip_adapter(change):
    """Mutation: without the row of ``ModelMixin.to`` a packed UNet refuses the dtype that it has."""
    unet, weights = change(conditional()), {}
    for index, name in enumerate(name for name in unet.attn_processors):
        if 'attn2' in name:
            weights |= {f'{index}.to_{part}_ip.weight': torch.randn(64 if name.startswith('mid') else 32, 32) for part in 'kv'}
    image = {'proj.weight': torch.randn(4 * 32, 16), 'proj.bias': torch.randn(4 * 32), 'norm.weight': torch.ones(32),
             'norm.bias': torch.zeros(32)}
    unet._load_ip_adapter_weights([{'ip_adapter': weights, 'image_proj': image}])
    a, b = (run(unet, added_cond_kwargs={'image_embeds': [seen * torch.ones(1, 1, 16)]}) for seen in (1, -1))
    assert a.isfinite().all()
    assert not torch.equal(a, b)
    with pytest.raises(ValueError, match='Casting a quantized model') if change is pack_ else torch.no_grad():
        unet.to(torch.bfloat16)


def test_from_pipe_and_pack_of_a_pipeline():
    unet, x = plain(), torch.randn(1, 3, 16, 16)
    binarize_(unet, BNNConfig(**TIMED))
    expected = unet.eval()(x, 3).sample
    pipe = DDPMPipeline(unet, DDPMScheduler())
    assert pack_(pipe) is pipe
    assert any(isinstance(module, PackedLayer) for module in pipe.unet.modules())
    other = DDIMPipeline.from_pipe(pipe)
    assert torch.equal(other.unet(x, 3).sample, expected)
    with pytest.raises(ValueError, match='this DDPMPipeline is packed already'):
        pack_(pipe)
    with pytest.raises(ValueError, match='this DDPMPipeline has no binary layer: binarize_ it first'):
        pack_(DDPMPipeline(plain(), DDPMScheduler()))
    with pytest.raises(TypeError, match='pack_ takes a module or a pipeline, but got a dict'):
        pack_({'unet': unet})


def test_pipeline_quantization_config(tmp_path):
    DDPMPipeline(plain(), DDPMScheduler()).save_pretrained(tmp_path)
    config = diffusers.PipelineQuantizationConfig(quant_backend='bnn', quant_kwargs=dict(TIMED), components_to_quantize='unet')
    pipe = DDPMPipeline.from_pretrained(tmp_path, quantization_config=config)
    assert pipe.unet.hf_quantizer.report.binary
    assert any(isinstance(module, BinaryLayer) for module in pipe.unet.modules())


def test_controlnet_of_a_binary_unet(tmp_path):
    """Mutation: without the row of ``from_unet`` the ControlNet is float, and the thresholds of the UNet are lost."""
    unet = conditional()
    model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    layers = {name for name, module in model.named_modules() if isinstance(module, BinaryLayer)}
    assert layers == {name for name, module in unet.named_modules()
                      if isinstance(module, BinaryLayer) and name.startswith(('down_blocks', 'mid_block'))}
    known = unet.state_dict()
    for name, tensor in model.down_blocks.state_dict().items():
        assert torch.equal(tensor, known[f'down_blocks.{name}'])
    model.save_pretrained(tmp_path)
    again = ControlNetModel.from_pretrained(tmp_path)
    assert {name for name, module in again.named_modules() if isinstance(module, BinaryLayer)} == layers
    fresh = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    assert not torch.equal(fresh.conv_in.weight, unet.conv_in.weight)
    for cls, method in ((ControlNetModel, 'from_unet'), (UNetMotionModel, 'from_unet2d')):
        with pytest.raises(ValueError, match=f'a {cls.__name__} begins with the weights of a UNet, and a packed one has none'):
            getattr(cls, method)(pack_(copy.deepcopy(unet)))
    with pytest.raises(ValueError, match='a UNetMotionModel is made of a float UNet: make it first, then binarize_ it'):
        UNetMotionModel.from_unet2d(unet)


@pytest.mark.parametrize(('down', 'up'), [('SkipDownBlock2D', 'SkipUpBlock2D'), ('AttnSkipDownBlock2D', 'AttnSkipUpBlock2D'),
                                          ('ResnetDownsampleBlock2D', 'ResnetUpsampleBlock2D')])
def test_other_blocks_of_the_host(down, up):
    model = BinaryUNet2DModel(**PLAIN, down_block_types=(f'Binary{down}', 'BinaryDownBlock2D'), attention_head_dim=8,
                              up_block_types=('BinaryUpBlock2D', f'Binary{up}'))
    x = torch.randn(2, 3, 16, 16)
    model.train()(x, 3).sample.sum().backward()
    layers = [module for module in model.modules() if isinstance(module, BinaryLayer)]
    assert all(module.weight.grad.any() for module in layers)
    skip = [module for name, module in model.named_modules() if name.endswith('skip_conv')]
    assert all(type(module) is nn.Conv2d for module in skip)
    assert bool(skip) == ('Skip' in down)
    expected = model.eval()(x, 3).sample
    assert torch.equal(pack_(model)(x, 3).sample, expected)
