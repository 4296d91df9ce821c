"""Fused heads of mmdet: their results are what hosts call ``view`` on."""

import pytest
import torch

from bnn_plugins import binarize_, fuse_, pack_

pytest.importorskip('mmdet.models')

from mmdet.registry import MODELS
from test_deploy.nets import randomise_
from test_deploy.test_fuse_faults import parts
from torch import nn

CORNERS = dict(num_classes=2, in_channels=16, num_feat_levels=1, corner_emb_channels=1)
HEADS = {
    'CornerHead': dict(CORNERS, type='CornerHead'),
    'CentripetalHead': dict(CORNERS, type='CentripetalHead', corner_emb_channels=0),
    'RetinaHead': dict(type='RetinaHead', in_channels=16, feat_channels=16, num_classes=2, stacked_convs=1),
}


@pytest.mark.parametrize('name', HEADS)
def test_heads(name):
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(head=MODELS.build(HEADS[name])))
    binarize_(model, 'bireal')
    head = pack_(randomise_(model).eval()).head
    maps = (torch.randn(1, 16, 8, 12),)
    with torch.no_grad():
        expected = parts(head(maps))
        assert fuse_(model).fused
        found = parts(head(maps))
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, torch.Tensor):
            strides = [[s for s, size in zip(x.stride(), x.shape, strict=True) if size > 1] for x in (one, other)]
            assert strides[0] == strides[1]
            one.view(1, -1)
        else:
            assert one == other
