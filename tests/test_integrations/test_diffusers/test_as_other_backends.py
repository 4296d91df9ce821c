"""What diffusers and its users ask of every quantization backend, such as torchao's and quanto's."""

import json
import logging

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from bnn_plugins import BNNConfig, binarize_, pack_
from bnn_plugins.layers import BinaryLayer

UNET = dict(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    UNet2DModel(**UNET).save_pretrained(tmp_path / 'float')
    return tmp_path / 'float'


def test_what_was_loaded_is_told(folder, caplog):
    """One line for each model in diffusers' log, and the whole report as an attribute. Mutation: without the line."""
    logger = logging.getLogger('diffusers')
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, 'bnn_plugins'), caplog.at_level(logging.INFO, 'diffusers'):
            model = UNet2DModel.from_pretrained(folder, quantization_config=BNNConfig(method='bireal'))
    finally:
        logger.removeHandler(caplog.handler)
    report = model.hf_quantizer.report
    assert {row.name for row in report.binary} == {
        name for name, module in model.named_modules() if isinstance(module, BinaryLayer)}
    assert f'UNet2DModel: {report.summary()}' in [record.getMessage() for record in caplog.records]


def test_modules_to_not_convert(folder):
    """As the other backends take it, and in the folder that is saved."""
    cfg = BNNConfig(method='bireal', modules_to_not_convert=['mid_block', 'to_q'])
    model = UNet2DModel.from_pretrained(folder, quantization_config=cfg)
    binary = [name for name, module in model.named_modules() if isinstance(module, BinaryLayer)]
    assert binary
    assert not any('mid_block' in name or 'to_q' in name for name in binary)
    model.save_pretrained(folder)
    saved = json.loads((folder / 'config.json').read_text())['quantization_config']
    assert saved['modules_to_not_convert'] == ['mid_block', 'to_q']
    again = UNet2DModel.from_pretrained(folder)
    assert [name for name, module in again.named_modules() if isinstance(module, BinaryLayer)] == binary
    with pytest.raises(ValueError, match="modules_to_not_convert: no convolution or linear layer is in a module 'mid_blok'"):
        binarize_(UNet2DModel(**UNET), dict(modules_to_not_convert=['mid_blok']))


def test_the_dtype_before(folder):
    """diffusers notes the dtype that a model is loaded in, and does not write it down."""
    model = UNet2DModel.from_pretrained(folder, quantization_config=BNNConfig(method='bireal'), torch_dtype=torch.bfloat16)
    assert model.config['_pre_quantization_dtype'] is torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    text = json.loads(model.to_json_string())
    assert '_pre_quantization_dtype' not in text
    assert text['quantization_config'] == model.config.quantization_config.to_dict()
    assert json.loads(model.config.quantization_config.to_json_string()) == text['quantization_config']


def test_the_same_packed_model_is_the_same_file(tmp_path):
    """Byte by byte, of a folder as of a file, whatever was saved there before. Mutation: without the row of
    ``ModelMixin.save_pretrained`` safetensors orders the metadata by chance."""
    torch.manual_seed(0)
    model = UNet2DModel(**UNET)
    binarize_(model, 'reactnet')
    for kind in ('latent', 'packed'):
        model = pack_(model) if kind == 'packed' else model
        for number in range(4):
            DDIMPipeline(model, DDIMScheduler()).save_pretrained(tmp_path / f'{kind}{number}')
            model = UNet2DModel.from_pretrained(tmp_path / f'{kind}{number}/unet')
        files = [path.read_bytes() for path in sorted(tmp_path.glob(f'{kind}*/unet/*.safetensors'))]
        assert len(files) == 4
        assert len(set(files)) == 1
