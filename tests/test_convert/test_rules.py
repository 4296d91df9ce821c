"""Which layers stay float, and the reason that is printed."""

import pytest
import torch
from torch import nn

from bnn_plugins import binarize_
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

from .nets import SqueezeExcite, nest


class OwnForward(nn.Conv2d):
    """As DeformConv2d: a weight that is not used by a plain convolution."""

    def forward(self, x, offset=0):
        return super().forward(x + offset)


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight * 2, bias)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x.relu())


def row_of(model, path, **cfg):
    report = binarize_(model, dict(method='bireal', **cfg))
    row = next(row for row in report.rows if row.name == path)
    assert isinstance(model.get_submodule(path), BinaryConv2d | BinaryLinear) == row.binary
    return row


@pytest.mark.parametrize(('path', 'layer', 'reason'), [
    ('conv1', nn.Conv2d(3, 8, 7), 'reads the image (3 channels)'),
    ('conv1', nn.Conv2d(4, 8, 7), 'reads the image (4 channels)'),
    ('conv1', nn.Conv2d(1, 8, 7), 'reads the image (1 channels)'),
    ('stem.3', nn.Conv2d(16, 8, 3), 'part of the stem'),
    ('patch_embed.projection', nn.Conv2d(16, 8, 3), 'part of the stem'),
    ('conv_in', nn.Conv2d(16, 8, 3), 'part of the stem'),
    ('layer1.dw', nn.Conv2d(8, 8, 3, groups=8), 'depthwise: sums of only 9 signs'),
    ('layer1.dw', nn.Conv2d(8, 16, (1, 5), groups=8), 'depthwise: sums of only 5 signs'),
    ('layer1.0.downsample.1', nn.Conv2d(8, 16, 1), 'shortcut: carries the real-valued stream'),
    ('layer1.0.shortcut', nn.Conv2d(8, 16, (1, 1)), 'shortcut: carries the real-valued stream'),
    ('up.conv_shortcut', nn.Conv2d(8, 16, 1), 'shortcut: carries the real-valued stream'),
    ('bbox_head.retina_cls', nn.Conv2d(8, 16, 3), 'prediction layer'),
    ('bbox_head.conv_centerness', nn.Conv2d(8, 16, 3), 'prediction layer'),
    ('bbox_head.rtm_reg.2', nn.Conv2d(8, 16, 3), 'prediction layer'),
    ('bbox_head.heatmap_head.0', nn.Conv2d(8, 16, 3), 'prediction layer'),
    ('bbox_head.cls_branches.3', nn.Linear(8, 16), 'prediction layer'),
    ('rpn_head.rpn_reg', nn.Conv2d(8, 16, 1), 'prediction layer'),
    ('roi_head.bbox_head.fc_cls', nn.Linear(8, 16), 'prediction layer'),
    ('mask_head.conv_logits', nn.Conv2d(8, 16, 1), 'prediction layer'),
    ('fc', nn.Linear(8, 16), 'prediction layer'),
    ('classifier.1', nn.Linear(8, 16), 'prediction layer'),
    ('conv_out', nn.Conv2d(8, 16, 3), 'prediction layer'),
    ('attn.to_q.lora_A.default', nn.Linear(8, 2), 'adapter beside a layer'),
    ('roi_head.bbox_head.shared_fcs.1', nn.Linear(8, 16), 'fully connected layer of a box head'),
    ('deform', OwnForward(8, 8, 3), 'OwnForward has a forward of its own'),
    ('scaled', OwnConvForward(8, 8, 3), 'OwnConvForward has a forward of its own'),
    ('lin', OwnLinear(8, 8), 'OwnLinear has a forward of its own'),
    ('reflect', nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect'),
     "padding_mode='reflect': only a constant can be padded after the sign"),
    ('circular', nn.Conv2d(8, 8, 3, padding=1, padding_mode='circular'),
     "padding_mode='circular': only a constant can be padded after the sign"),
], ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_stays_float(path, layer, reason):
    row = row_of(nest(path, layer), path)
    assert (row.binary, row.reason) == (False, reason)


@pytest.mark.parametrize(('path', 'layer'), [
    ('conv1', nn.Conv2d(5, 8, 7)),
    ('system.0', nn.Conv2d(8, 8, 3)),  # parts of a name are compared as a whole: no 'stem' here
    ('layer1.grouped', nn.Conv2d(8, 8, 3, groups=4)),
    ('layer1.downsample.0', nn.Conv2d(8, 16, 3, 2, 1)),
    ('shortcut', nn.Linear(8, 8)),
    ('head.fc1', nn.Linear(8, 8)),
    ('bbox_head.cls_convs.0.conv', nn.Conv2d(8, 8, 3)),
    ('neck.fpn_convs.0.conv', nn.Conv2d(8, 8, 3)),
    ('rpn_head.rpn_conv', nn.Conv2d(8, 8, 3)),
    ('two', nn.Linear(2, 8)),
], ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_becomes_binary(path, layer):
    row = row_of(nest(path, layer), path)
    assert (row.binary, row.reason) == (True, 'default')
    assert row.kind == type(layer).__name__


def test_channel_attention():
    model = nest('layer1.se', SqueezeExcite(16))
    row = row_of(model, 'layer1.se.reduce')
    assert row.reason == 'channel attention: its input is a vector of means'
    assert not row.binary
    assert type(model.get_submodule('layer1.se.expand')) is nn.Conv2d


def test_channel_attention_of_mmdet():
    layers = pytest.importorskip('mmdet.models.layers')
    model = nest('se', layers.SELayer(32))
    report = binarize_(model, 'bireal')
    assert [row.reason for row in report.rows if row.name.startswith('se.')] == 2 * [
        'channel attention: its input is a vector of means']
    assert any(isinstance(module, nn.ReLU) for module in model['se'].modules()), 'its ReLU stays'


def test_multihead_attention():
    """``out_proj`` is called as a function with its weight: a binary layer there would never run. Where the attention cannot
    be taken apart (test_transformers.py), it stays."""
    model = nest('attn', nn.MultiheadAttention(16, 4, add_zero_attn=True))
    row = row_of(model, 'attn.out_proj')
    assert (row.binary, 'MultiheadAttention' in row.reason) == (False, True)
    x = torch.randn(3, 2, 16)
    model['attn'](x, x, x)


@pytest.mark.parametrize('norm', [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm,
                                  nn.utils.parametrizations.weight_norm])
def test_computed_weight(norm):
    """The parameters behind a computed weight would get lost."""
    model = nest('sn', norm(nn.Conv2d(8, 8, 3)))
    before = dict(model['sn'].named_parameters())
    row = row_of(model, 'sn')
    assert not row.binary
    assert 'its weight is computed' in row.reason
    assert dict(model['sn'].named_parameters()).keys() == before.keys()


def test_modules_to_not_convert():
    """As diffusers' other backends: whole parts of names, before all rules."""
    cfg = dict(modules_to_not_convert=['block.0', 'proj'], rules={'*': 'binary'})
    said = 'of modules_to_not_convert'
    for path, reason in (('block.0.conv', f"'block.0' {said}"), ('a.proj', f"'proj' {said}"),
                         ('block.01.conv', "rule '*'"), ('a.projection', "rule '*'")):
        model = nest(path, nn.Conv2d(8, 8, 3))
        model.add_module('proj', nn.Conv2d(8, 8, 3))
        model.add_module('x', nest('block.0', nn.Conv2d(8, 8, 3)))
        assert row_of(model, path, **cfg).reason == reason
    with pytest.raises(ValueError, match="modules_to_not_convert: no convolution or linear layer is in a module 'prj'"):
        binarize_(nest('proj', nn.Conv2d(8, 8, 3)), dict(modules_to_not_convert=['prj']))


class TestUserRules:
    def test_they_win_over_the_built_in(self):
        model = nest('conv1', nn.Conv2d(3, 8, 3))
        assert row_of(model, 'conv1', rules={'conv1': 'binary'}).reason == "rule 'conv1'"
        assert type(model['conv1']) is BinaryConv2d
        row = row_of(nest('body.0', nn.Conv2d(8, 8, 3)), 'body.0', rules={'body.*': 'float'})
        assert (row.binary, row.reason) == (False, "rule 'body.*'")

    @pytest.mark.parametrize('rules', [{'a.0': 'float', 'a.*': 'binary'}, {'a.*': 'binary', 'a.0': 'float'}], ids=str)
    def test_the_first_that_matches_wins(self, rules):
        (first, kind), *_ = rules.items()
        row = row_of(nest('a.0', nn.Conv2d(8, 8, 3)), 'a.0', rules=rules)
        assert (row.binary, row.reason) == (kind == 'binary', f'rule {first!r}')

    def test_pattern_is_the_whole_name_and_case_counts(self):
        for path in ('x.body', 'body.0', 'Body'):
            model = nest(path, nn.Conv2d(8, 8, 3))
            model.add_module('body', nn.Conv2d(8, 8, 3))
            assert row_of(model, 'body', rules={'body': 'float'}).binary is False
            if path != 'body.0':
                assert isinstance(model.get_submodule(path), BinaryConv2d)

    @pytest.mark.parametrize('layer', [OwnForward(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect'),
                                       nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))], ids=lambda layer: type(layer).__name__)
    def test_what_cannot_be_binary_stays_float_and_says_why(self, layer):
        row = row_of(nest('a', layer), 'a', rules={'a': 'binary'})
        assert not row.binary
        assert 'rule' not in row.reason

    @pytest.mark.parametrize(('pattern', 'nearest'), [('boddy.0', 'body.0'), ('oter', 'other'), ('*.1', None)])
    def test_a_pattern_that_matches_nothing(self, pattern, nearest):
        model = nest('body.0', nn.Conv2d(8, 8, 3))
        with pytest.raises(ValueError, match='matches no convolution or linear layer') as error:
            binarize_(model, dict(rules={'*': 'float', pattern: 'binary'}))
        assert repr(pattern) in str(error.value)
        assert nearest is None or f'the nearest name is {nearest!r}' in str(error.value)
        assert type(model['other']) is nn.Conv2d, 'nothing was changed'

    def test_a_module_without_weights_is_no_match(self):
        """``'body'`` names the container: forgetting ``.*`` must not be taken for a rule that did something."""
        with pytest.raises(ValueError, match=r"'body'.*nearest name is 'body.0'"):
            binarize_(nest('body.0', nn.Conv2d(8, 8, 3)), dict(rules={'body': 'float'}))
