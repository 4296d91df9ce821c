"""Fused heads of mmdet: their results are what hosts call ``view`` on."""

import pytest
import torch

from bnn_plugins import binarize_, fuse_, pack_

pytest.importorskip('mmdet.models')

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from test_deploy.nets import randomise_
from test_deploy.test_fuse_faults import parts
from torch import nn

CORNERS = dict(num_classes=2, in_channels=16, num_feat_levels=1, corner_emb_channels=1)
HEADS = {
    'CornerHead': dict(CORNERS, type='CornerHead'),
    'CentripetalHead': dict(CORNERS, type='CentripetalHead', corner_emb_channels=0),
    'GridHead': dict(type='GridHead', in_channels=16, num_convs=1, point_feat_channels=16,
                     norm_cfg=dict(type='GN', num_groups=8)),
    'RetinaHead': dict(type='RetinaHead', in_channels=16, feat_channels=16, num_classes=2, stacked_convs=1),
}


def steps_of(x: torch.Tensor) -> list[int]:
    """Strides that matter."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


@pytest.mark.parametrize('name', HEADS)
def test_heads(name):
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(head=MODELS.build(HEADS[name])))
    binarize_(model, 'bireal')
    head = pack_(randomise_(model).eval()).head
    maps = torch.randn(1, 16, 14, 14) if name == 'GridHead' else (torch.randn(1, 16, 8, 12),)
    with torch.no_grad():
        expected = parts(head(maps))
        assert fuse_(model).fused
        found = parts(head(maps))
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert steps_of(one) == steps_of(other)
            one.view(1, -1)
        else:
            assert one == other


@pytest.mark.parametrize('name', ['RetinaHead', 'RTMDetSepBNHead', 'FCOSHead'])
def test_a_dense_head_is_one_program_for_all_levels(name):
    """Mutation: heads are traced for one map alone. With another number of levels it runs unfused, and says so."""
    torch.manual_seed(0)
    strides = [8, 16, 32]
    options = dict(strides=strides, norm_cfg=dict(type='BN')) if name == 'FCOSHead' else dict(anchor_generator=dict(
        type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=strides))
    head = MODELS.build(dict(type=name, num_classes=2, in_channels=16, feat_channels=16, stacked_convs=2, **options))
    model = nn.ModuleDict(dict(head=head))
    binarize_(model, 'bireal')
    pack_(randomise_(model).eval())
    maps = tuple(torch.randn(2, 16, size, size + 2) for size in (16, 8, 4))
    with torch.no_grad():
        expected = parts(head(maps))
        assert fuse_(model).parts['head'].endswith('steps')
        for _ in range(2):
            for one, other in zip(parts(head(maps)), expected, strict=True):
                if isinstance(other, torch.Tensor):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
                    assert steps_of(one) == steps_of(other)
                else:
                    assert one == other


def test_a_whole_centernet():
    """Its decoding calls ``view`` on what the head returns."""
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='CenterNet', backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2),
                                        dilations=(1, 1), out_indices=(1,)),
        neck=dict(type='CTResNetNeck', in_channels=16, num_deconv_filters=(16,), num_deconv_kernels=(4,), use_dcn=False),
        bbox_head=dict(type='CenterNetHead', num_classes=2, in_channels=16, feat_channels=16), train_cfg=None,
        test_cfg=ConfigDict(topk=20, local_maximum_kernel=3, max_per_img=10)))
    binarize_(model, 'bireal')
    pack_(randomise_(model).eval())
    image = torch.randn(1, 3, 64, 96)

    def boxes():
        meta = dict(img_shape=(64, 96), ori_shape=(64, 96), batch_input_shape=(64, 96), border=(0, 64, 0, 96),
                    scale_factor=(1.0, 1.0), flip=False)
        (sample,) = model.predict(image, [DetDataSample(metainfo=meta)])
        return sample.pred_instances

    with torch.no_grad():
        expected = boxes()
        assert fuse_(model).fused
        found = boxes()
    assert len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.bboxes, expected.bboxes, atol=1e-2, rtol=0)
