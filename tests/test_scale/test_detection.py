"""A detector on 1, 2 and 3 processes, through ``tools/train.py``."""

import pytest
import torch

pytest.importorskip('mmdet')

from bnn_plugins.apps.digits import DigitsRecipe, make_digits
from tests.processes import REPOSITORY, together
from tests.test_scale.programs import train
from tests.test_scale.test_diffusion import assert_equal
from tests.test_scale.test_mmengine import images

# FCOS divides by the boxes of all processes (a RetinaNet by those of each), and group norms look at one image.
CONFIG = f"""
_base_ = '{REPOSITORY}/configs/detection/retinanet_bnn-r18_fpn_digits.py'
norm = dict(type='GN', num_groups=4)
method = '{{method}}'
model = dict(
    type='FCOS', data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(base_channels=8, method=method, norm_cfg=norm),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16, num_outs=3, method=method, norm_cfg=norm),
    bbox_head=dict(
        _delete_=True, type='FCOSHead', num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1, strides=[8, 16, 32],
        regress_ranges=((-1, 24), (24, 48), (48, 1e8)), norm_cfg=norm, loss_bbox=dict(type='GIoULoss')),
    train_cfg=None)
train_pipeline = [dict(type='bnn_plugins.LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                  dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')]
train_dataloader = dict(batch_size={{batch}}, num_workers=0, dataset=dict(data_root='{{data}}', pipeline=train_pipeline))
val_cfg = val_dataloader = val_evaluator = None
train_cfg = dict(max_epochs=2)
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=3),
                   dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=2, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook'), dict(type='bnn_plugins.EpochSeedHook'),
                dict(type='bnn_plugins.SyncStatisticsHook'), dict(type='EMAHook', momentum=0.1)]
default_hooks = dict(checkpoint=dict(save_last=False, interval=9), logger=dict(interval=1))
"""


def trained(count: int, folder, data, method: str) -> list[dict]:
    folder.mkdir()
    (folder / 'config.py').write_text(CONFIG.format(method=method, batch=12 // count, data=data))
    together(count, train, [folder / 'config.py', '--work-dir', folder / 'run'], folder, folder=folder)
    return [torch.load(folder / f'rank{rank}.pth', weights_only=False) for rank in range(count)]


@pytest.mark.parametrize('method', [pytest.param(name, marks=pytest.mark.scale)
                                    for name in ('reactnet', 'irnet', 'rbnn', 'binarynet')])
def test_a_detector_trains_alike_on_one_two_and_three_processes(method, tmp_path):
    """Weights, buffers, the average, the optimizer and schedules. Mutation: a rule that looks at the images of a process."""
    data = make_digits(tmp_path / 'digits', DigitsRecipe(train=48, val=4, test=4, size=64, max_height=32, max_digits=3))
    runs = {count: trained(count, tmp_path / str(count), data, method) for count in (1, 2, 3)}
    parts = ('weights', 'average', 'optimizer', 'schedules', 'rates', 'iter', 'epoch')
    for ranks in runs.values():
        assert images(ranks) == images(runs[1])
        for rank in ranks:
            assert_equal({key: rank[key] for key in parts}, {key: ranks[0][key] for key in parts})
            assert_equal({key: rank[key] for key in parts}, {key: runs[1][0][key] for key in parts}, 1e-4)
    assert runs[1][0]['iter'] == 8
    average, weights = (runs[1][0][key]['backbone.layer1.0.conv1.weight'] for key in ('average', 'weights'))
    assert not torch.equal(average, weights)
