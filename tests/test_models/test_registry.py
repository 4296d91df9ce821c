"""``type='bnn_plugins.X'`` is found in a process that never heard of bnn_plugins; ``import bnn_plugins`` is light."""

import subprocess
import sys

import pytest
import torch

# mmdet imports mmcv.ops before it asks another scope: where those are not compiled, bnn_plugins must be there first.
FOUND = '''
import sys
{before}
from {package}.registry import MODELS
assert 'bnn_plugins.models' not in sys.modules
model = MODELS.build(dict(type='bnn_plugins.BNNResNet', depth=18, base_channels=4, method='recu', init_cfg=None))
assert type(model).__module__ == 'bnn_plugins.models.backbones.bnn_resnet'
neck = MODELS.build(dict(type='bnn_plugins.BNNFPN', in_channels=[4, 8, 16, 32], out_channels=4, num_outs=5))
from mmcv.cnn import build_conv_layer
layer = build_conv_layer(dict(type='bnn_plugins.BinaryConv2d', method='xnor'), 4, 4, 3)
linear = MODELS.build(dict(type='bnn_plugins.BinaryLinear', in_features=4, out_features=4))
print(*(type(m).__name__ for m in (model, neck, layer, linear)))
'''

LIGHT = '''
import sys
import bnn_plugins
heavy = [name for name in ('mmdet', 'mmcv', 'mmengine', 'diffusers', 'cv2', 'matplotlib') if name in sys.modules]
assert not heavy, heavy
assert 'recu' in bnn_plugins.list_methods()
import bnn_plugins.binarize, bnn_plugins.layers, bnn_plugins.convert, bnn_plugins.deploy, bnn_plugins.analysis
heavy = [name for name in ('mmdet', 'mmcv', 'mmengine', 'diffusers') if name in sys.modules]
assert not heavy, heavy
'''

ENGINE = '''
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
hook = HOOKS.build(dict(type='bnn_plugins.BinaryTrainingHook'))
seed = HOOKS.build(dict(type='bnn_plugins.EpochSeedHook'))
constructor = OPTIM_WRAPPER_CONSTRUCTORS.get('bnn_plugins.BinaryOptimWrapperConstructor')
print(type(hook).__name__, type(seed).__name__, constructor.__name__)
'''


def run(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


@pytest.mark.parametrize(('package', 'before'), [('mmdet', 'import bnn_plugins'), ('mmengine', '')])
def test_models_are_found_lazily(package, before):
    assert run(FOUND.format(package=package, before=before)) == ['BNNResNet', 'BNNFPN', 'BinaryConv2d', 'BinaryLinear']


def test_hooks_and_constructors_are_found_lazily():
    assert run(ENGINE) == ['BinaryTrainingHook', 'EpochSeedHook', 'BinaryOptimWrapperConstructor']


def test_import_is_light():
    run(LIGHT)


def test_detector_from_a_config():
    """Loss and backward of a RetinaNet whose backbone and neck are binary: what a config change of two ``type``s gives."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    cfg = ConfigDict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='bnn_plugins.BNNResNet', depth=18, base_channels=8),
        neck=dict(type='bnn_plugins.BNNFPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5, start_level=1,
                  add_extra_convs='on_input'),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
            anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                                  strides=[8, 16, 32, 64, 128]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                       allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg)
    detector.init_weights()
    data = detector.data_preprocessor(demo_mm_inputs(2, [[3, 96, 96], [3, 93, 90]], num_classes=3), training=True)
    losses = detector(**data, mode='loss')
    sum(torch.stack(value).sum() if isinstance(value, list) else value for value in losses.values()).backward()
    for name, p in detector.named_parameters():
        if name.startswith(('backbone', 'neck')):
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
    detector.eval()
    with torch.no_grad():
        predictions = detector(**detector.data_preprocessor(demo_mm_inputs(1, [[3, 96, 96]], num_classes=3)), mode='predict')
    assert 'bboxes' in predictions[0].pred_instances
