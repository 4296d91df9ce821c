"""``type='bnn_plugins.binarized'`` and ``conv_cfg`` on mmdet's own modules."""

import subprocess
import sys

import mmdet.models  # noqa: F401
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import bnn_plugins
from bnn_plugins.layers import BinaryConv2d, BinaryLayer

from ..conftest import REPOSITORY

# What the note on detection found conv_cfg not to reach, and what it reaches: config, input, number of binary layers.
IMAGE = (2, 3, 64, 64)
MODULES = {
    'ResNet': (dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, zero_init_residual=False), IMAGE, 16),
    'SSDVGG': (dict(type='mmdet.SSDVGG', depth=11, with_last_pool=False, ceil_mode=True, out_indices=(3, 4),
                    out_feature_indices=(12, 20)), IMAGE, 9),
    'Swin': (dict(type='mmdet.SwinTransformer', embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 6]), IMAGE, 16),
    'Hourglass': (dict(type='mmdet.HourglassNet', num_stacks=1, downsample_times=2, stage_channels=(16, 16, 24),
                       stage_blocks=(1, 1, 1), feat_channel=16), IMAGE, None),
    'CSPDarknet': (dict(type='mmdet.CSPDarknet', widen_factor=0.125, deepen_factor=0.33), IMAGE, None),
    'MobileNetV2': (dict(type='mmdet.MobileNetV2', widen_factor=0.25), IMAGE, 34),
    'PVT': (dict(type='mmdet.PyramidVisionTransformer', num_layers=[1, 1, 1, 1], embed_dims=8), IMAGE, None),
    'CTResNetNeck': (dict(type='mmdet.CTResNetNeck', in_channels=16, num_deconv_filters=(8, 8), num_deconv_kernels=(4, 4),
                          use_dcn=False), [(2, 16, 4, 4)], 4),
    'DilatedEncoder': (dict(type='mmdet.DilatedEncoder', in_channels=16, out_channels=16, block_mid_channels=8,
                            num_residual_blocks=2, block_dilations=[2, 4]), [(2, 16, 8, 8)], None),
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def tensors(outputs):
    """All tensors in a nest of tuples and lists."""
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for o in outputs for t in tensors(o)]


@pytest.mark.parametrize('name', MODULES)
def test_any_module_becomes_binary(name):
    module, shape, count = MODULES[name]
    float_keys = MODELS.build(module).state_dict().keys()
    model = MODELS.build(dict(type='bnn_plugins.binarized', module=module, method='xnor', act='hardtanh'))
    whole = {key for key in float_keys if '.in_proj_' in key}  # of nn.MultiheadAttention, which is taken apart
    assert bool(whole) == (name == 'PVT')
    assert model.state_dict().keys() >= float_keys - whole, 'nothing is wrapped: the names stay'
    model.init_weights()
    model.train()
    inputs = torch.randn(shape) if isinstance(shape, tuple) else [torch.randn(s) for s in shape]
    sum(t.square().mean() for t in tensors(model(inputs))).backward()
    binary = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    assert binary
    if count is not None:
        assert len(binary) == count
    reached = [m.weight.grad for m in binary if m.weight.grad is not None]  # an output that is not used has no gradient
    assert len(reached) > len(binary) / 2
    assert all(grad.abs().sum() > 0 for grad in reached)


def test_a_whole_detector_keeps_its_prediction_layers_float():
    detector = dict(
        type='RetinaNet', backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1))
    model = MODELS.build(dict(type='bnn_plugins.binarized', module=detector, rules={'neck.lateral_convs.*': 'float'}))
    kinds = {name: isinstance(m, BinaryConv2d) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    stay_float = ('backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg', 'neck.lateral_convs.0.conv')
    assert not any(kinds[n] for n in stay_float)
    assert all(kinds[n] for n in ('backbone.layer1.0.conv1', 'bbox_head.cls_convs.0.conv', 'neck.fpn_convs.0.conv'))
    assert {name for name, m in model.named_modules() if isinstance(m, nn.ReLU)} == {
        'bbox_head.cls_convs.0.activate', 'bbox_head.reg_convs.0.activate'}, 'only float prediction layers are behind these'


def test_pretrained_float_weights_become_latents(tmp_path):
    module = dict(type='mmdet.ResNet', depth=18, base_channels=8)
    trained = MODELS.build(module)
    torch.save(trained.state_dict(), tmp_path / 'float.pth')
    module = dict(module, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'float.pth')))
    model = MODELS.build(dict(type='bnn_plugins.binarized', module=module))
    model.init_weights()
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(metod='xnor'), "unknown key of BNNConfig 'metod'; did you mean 'method'"),
    (dict(method='recuu'), "unknown method 'recuu'; did you mean 'recu'"),
    (dict(method=dict(type='dorefa', a_bit=2)), "unknown option of the method 'dorefa' 'a_bit'; did you mean 'a_bits'"),
    (dict(rules={'layr4.*': 'float'}), "matches no convolution or linear layer; the nearest name is 'layer4"),
])
def test_a_misspelt_key_names_the_nearest(cfg, sentence):
    with pytest.raises(ValueError, match=sentence):
        MODELS.build(dict(type='bnn_plugins.binarized', module=dict(type='mmdet.ResNet', depth=18), **cfg))


def test_rules_survive_a_saved_config(tmp_path):
    module = dict(type='mmdet.ResNet', depth=18, base_channels=8)
    with pytest.raises(ValueError, match=r"write rules=\[\('layer1\.\*', 'float'\), \('\*', 'binary'\)\]"):
        MODELS.build(dict(type='bnn_plugins.binarized', module=module, rules={'layer1.*': 'float', '*': 'binary'}))
    MODELS.build(dict(type='bnn_plugins.binarized', module=module, rules={'layer2.*': 'float', 'layer1.*': 'float'}))
    rules = [('layer1.*', 'float'), ('*', 'binary')]
    Config(dict(model=dict(type='bnn_plugins.binarized', module=module, rules=rules))).dump(tmp_path / 'saved.py')
    kinds = {name: isinstance(m, BinaryLayer) for name, m in
             MODELS.build(Config.fromfile(tmp_path / 'saved.py').model).named_modules() if isinstance(m, nn.Conv2d)}
    assert not kinds['layer1.0.conv1']
    assert kinds['conv1']
    assert kinds['layer2.0.conv1']


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(type='bnn_plugins.BNNResNet', depth=18, methd='xnor'), "argument of BNNResNet 'methd'; did you mean 'method'"),
    (dict(type='bnn_plugins.BNNFPN', in_channels=[8], out_channels=8, num_outs=1, strat_level=0), "mean 'start_level'"),
    (dict(type='mmdet.ResNet', depth=18, conv_cfg=dict(type='bnn_plugins.BinaryConv2d', pad_valu=0)), "mean 'pad_value'"),
])
def test_a_misspelt_argument_names_the_nearest(cfg, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        MODELS.build(cfg)


def test_conv_cfg_behind_a_relu_is_refused_in_training():
    model = MODELS.build(dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False,
                              conv_cfg=dict(type='bnn_plugins.BinaryConv2d', method='xnor')))
    model.train()
    with pytest.raises(ValueError, match=r'its sign is always \+1 .* A ReLU before it\?'):
        model(torch.randn(IMAGE))


def test_the_report_of_a_relu_network_says_what_was_replaced():
    report = bnn_plugins.binarize_(MODELS.build(dict(type='mmdet.ResNet', depth=18, base_channels=8)), 'xnor')
    assert 'ReLU -> PReLU' in report.replaced['relu']
    assert report.replaced['relu'] in ' '.join(str(report).split())


def test_importing_imports_no_host():
    code = ("import bnn_plugins, sys; print([m for m in ('mmengine', 'mmcv', 'mmdet', 'diffusers') if m in sys.modules])")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_the_core_works_without_the_hosts():
    code = """
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'diffusers'):
    sys.modules[name] = None  # importing it raises ImportError
import torch, bnn_plugins
model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
bnn_plugins.binarize_(model, 'reactnet')
x = torch.randn(1, 8, 9, 9)
y = model(x)
print(torch.equal(bnn_plugins.pack_(model)(x), y), bnn_plugins.summarize(model, x).totals.params_binary)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['True', '1152'], done.stderr


def test_configs_of_the_package_can_be_inherited(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'bnn_plugins::detection/retinanet_bnn-r18_fpn_bccd.py'\n")
    assert Config.fromfile(tmp_path / 'mine.py').model.backbone.type == 'bnn_plugins.BNNResNet'


@pytest.mark.parametrize('config', sorted((REPOSITORY / 'configs/detection').glob('*.py')), ids=lambda path: path.stem)
def test_every_config_builds_and_is_listed(config):
    assert f'Config: configs/detection/{config.name}' in (config.parent / 'metafile.yml').read_text()
    assert MODELS.build(Config.fromfile(config).model)


def test_towers_of_a_dense_head_are_binary_and_its_predictions_real():
    """The detector adds train_cfg and test_cfg to the config of its head, which are no fields of BNNConfig.

    Mutation: without GIVEN the build raises `unknown key of BNNConfig`.
    """
    cfg = Config.fromfile(REPOSITORY / 'configs/detection/retinanet_bnn-r18_fpn-binary-head_bccd.py')
    head = MODELS.build(cfg.model).bbox_head
    assert {name for name, m in head.named_modules() if isinstance(m, BinaryLayer)} == {
        f'{tower}_convs.{place}.conv' for tower in ('cls', 'reg') for place in (0, 1)}
    assert type(head.retina_cls) is type(head.retina_reg) is nn.Conv2d
    assert head.test_cfg.max_per_img == cfg.model.test_cfg.max_per_img
