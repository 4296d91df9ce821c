"""A plugin of pytest for the tests of mmdet: each backbone, neck and head that they build is binary."""

import mmdet.models
from from_the_start import make_binary
from torch import nn

# The features that the tests of necks and heads draw are not negative: no method that takes signs could learn from them.
PARTS = {'backbones': 'bireal', 'necks': 'dorefa', 'dense_heads': 'dorefa'}


def pytest_configure(config):
    for part, method in PARTS.items():
        found = vars(getattr(mmdet.models, part)).values()
        make_binary((kind for kind in found if isinstance(kind, type) and issubclass(kind, nn.Module)), method)
