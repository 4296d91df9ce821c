"""Folders load as what was saved, or say why they cannot."""

import diffusers
import pytest
import torch
from torch import nn

from bnn_plugins import BNNConfig, binarize_, list_methods, pack_
from bnn_plugins.deploy import PackedLayer

X = torch.randn(1, 3, 16, 16)


def unet():
    return diffusers.UNet2DModel(sample_size=16, block_out_channels=(16, 16), norm_num_groups=4, layers_per_block=1,
                                 down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2)


@pytest.mark.parametrize('method', list_methods())
def test_packed_folders_of_each_method(method, tmp_path):
    """RBNN's rotations were not to be had on the meta device, where packed models are prepared."""
    model = unet()
    binarize_(model, method)
    expected = pack_(model.eval())(X, 3).sample
    model.save_pretrained(tmp_path)
    assert torch.equal(diffusers.UNet2DModel.from_pretrained(tmp_path).eval()(X, 3).sample, expected)


def test_two_configs_cannot_be_saved_in_one_folder():
    model = unet()
    binarize_(model, BNNConfig(method='xnor', rules={'mid_block.*': 'float'}))
    binarize_(model, BNNConfig(method='xnor', rules={'mid_block.*': 'float'}))
    sentence = r"UNet2DModel was made binary with .*'xnor'.* before, and its config could not name .*'recu'"
    with pytest.raises(ValueError, match=sentence):
        binarize_(model, 'recu')


def test_models_inside_of_a_model_without_a_config(tmp_path):
    nets = [diffusers.ControlNetModel(block_out_channels=(16, 16), layers_per_block=1, cross_attention_dim=8,
                                      norm_num_groups=4,
                                      down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), attention_head_dim=4,
                                      conditioning_embedding_out_channels=(8, 8)) for _ in range(2)]
    model = diffusers.MultiControlNetModel(nets)
    for net in nets:
        for parameter in net.controlnet_down_blocks.parameters():
            nn.init.normal_(parameter)
    binarize_(model, 'reactnet')
    condition = torch.randn(1, 3, 16, 16)

    def call(model):
        return model(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 3, torch.ones(1, 5, 8),
                     [condition, condition], [1.0, 0.5], return_dict=False)[0]

    expected = call(pack_(model.eval()))
    model.save_pretrained(str(tmp_path / 'nets'))
    loaded = diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / 'nets')).eval()
    assert any(isinstance(module, PackedLayer) for module in loaded.nets[1].modules())
    for a, b in zip(call(loaded), expected, strict=True):
        assert torch.equal(a, b)


def test_a_pipeline_is_no_module():
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    with pytest.raises(TypeError, match=r'takes a module, but got a DDPMPipeline'):
        binarize_(pipeline, 'xnor')
    with pytest.raises(ValueError, match='this DDPMPipeline has no binary layer: binarize_ it first'):
        pack_(pipeline)


@pytest.mark.parametrize('packed', [False, True])
def test_a_folder_has_the_layers_that_were_saved(packed, tmp_path, monkeypatch):
    """Mutation: where other rules hold (another version, other inputs of the trace), a method without parameters of its own
    would load as another network in silence."""
    model = unet()
    report = binarize_(model, 'bireal')
    expected = (pack_(model.eval()) if packed else model.eval())(X, 3).sample
    model.save_pretrained(tmp_path)
    from bnn_plugins.convert import rules
    monkeypatch.setattr(rules, 'stays_float', lambda candidate: 'other rules' if 'up_blocks' in candidate.name else None)
    loaded = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(X, 3).sample, expected)
    assert {row.name for row in loaded.hf_quantizer.report.binary} == {row.name for row in report.binary}
    again = tmp_path / 'again'
    loaded.save_pretrained(again)
    assert torch.equal(diffusers.UNet2DModel.from_pretrained(again).eval()(X, 3).sample, expected)


class Attending(diffusers.ModelMixin, diffusers.ConfigMixin):
    """An ``nn.MultiheadAttention``, as ControlNetUnionModel has it, whose parameters have other names when it is binary."""

    @diffusers.configuration_utils.register_to_config
    def __init__(self, width: int = 8):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(width, 2), nn.Linear(width, width)

    def forward(self, x):
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize('attention', [None, 'bool', 'elastic'])
@pytest.mark.parametrize('rules', [{}, {'*.k_proj': 'float'}], ids=['all', 'a projection is real'])
def test_attention_of_torch(rules, attention, tmp_path):
    """Mutations: names of the float checkpoint are kept; what stands for the attention is taken for one for a ReLU; its
    projections are none of the layers that a folder may name."""
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(5, 2, 8)
    cfg = BNNConfig(method='bireal', rules=rules, attention=attention)
    model.save_pretrained(tmp_path / 'float')
    loaded = Attending.from_pretrained(tmp_path / 'float', quantization_config=cfg).eval()
    binarize_(model, cfg)
    assert torch.equal(loaded(x), model(x))
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    for inputs in (None, x):  # with them the last layer is a prediction, which the folder's config does not say
        model = Attending.from_pretrained(tmp_path / 'float').eval()
        assert binarize_(model, cfg, inputs).rows[-1].binary == (inputs is None)
        expected = model(x)
        for kind in ('latent', 'packed'):
            model = pack_(model) if kind == 'packed' else model
            model.save_pretrained(tmp_path / kind)
            assert torch.equal(Attending.from_pretrained(tmp_path / kind).eval()(x), expected)
