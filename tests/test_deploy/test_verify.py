"""Verification: silent on what is right, loud on what is not, and it leaves the models as they were."""

import copy

import pytest
import torch
from torch import nn

from bnn_plugins import fuse_, pack_, quantize_rest_, verify
from bnn_plugins.deploy import VerificationReport
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

from .fuse_nets import RandomNet
from .nets import METHODS, net, randomise_


def pair(seed=48, fused=True, **kwargs):
    torch.manual_seed(seed)
    latent = randomise_(RandomNet(seed)).eval()
    packed = pack_(copy.deepcopy(latent))
    if fused:
        fuse_(packed, **kwargs)
    return latent, packed, torch.randn(2, 3, 12, 14)


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_packed_layers_have_the_same_accumulators(method):
    latent = net(method=method)
    packed = pack_(copy.deepcopy(latent))
    report = verify(latent, packed, torch.randn(2, 3, 14, 11))
    assert report.ok
    assert report.flips == report.signs == 0
    assert report.outputs == 0
    real = method == 'binaryconnect' or method == dict(type='binaryconnect', stochastic=True)
    assert [row.name for row in report.rows] == ([] if real else [
        'body.0.conv', 'body.1.conv', 'body.2.conv', 'body.3.conv', 'head', 'neck'])
    assert all(row.kind == 'accumulators' and row.positions > 0 and row.different == 0 for row in report.rows)
    if not real:
        bases = packed.head.bases
        assert report.rows[0].positions == bases * 2 * 16 * 7 * 6, 'of all images'
        assert report.rows[4].positions == bases * 2 * 32 * (4 * 3 + 2 * 2), 'of all calls'


def test_fused_steps():
    latent, packed, x = pair()
    report = verify(latent, packed, x)
    assert report.ok
    assert report.signs > 0
    assert 0 < max(row.worst for row in report.rows) < 0.5, 'the bound holds with room, and is not out of sight'
    kinds = {row.name: row.kind for row in report.rows}
    assert kinds['head.0'] == 'linear, norm, PReLU, sign of head.3, words only'
    assert str(report).count('accumulators') == 1 + sum(row.kind == 'accumulators' for row in report.rows)
    assert report.summary() in ' '.join(str(report).split())


def test_flips_of_a_rounded_stream_are_counted():
    latent, packed, x = pair(3, stream_dtype=torch.bfloat16)
    report = verify(latent, packed, x)
    assert report.ok
    assert report.flips > 0
    assert f'{report.flips:,} of {report.signs:,} signs flipped; 0 violations' in report.summary()


def damage(packed, what):
    block = packed.blocks[0]
    with torch.no_grad():
        if what == 'bits':
            block.conv.weight_bits[0, 0, 0, 0, 0] ^= 1
        elif what == 'scale':
            block.conv.weight_scale *= 1 + 1e-4
        elif what == 'norm':
            block.norm.running_mean += 1e-3
        elif what == 'stem':
            packed.stem[0].weight += 1e-3
        elif what == 'head':
            packed.head[1].running_mean += 3  # only signs leave this layer


@pytest.mark.parametrize('what', ['bits', 'scale', 'norm', 'stem', 'head'])
def test_damage_is_found(what):
    latent, packed, x = pair()
    damage(packed, what)
    report = verify(latent, packed, x)
    assert not report.ok
    assert report.summary().endswith('NOT OK')
    wrong = {row.name for row in report.rows if row.violations}
    assert wrong == {'bits': {'blocks.0.conv'}, 'scale': {'blocks.0.conv'}, 'norm': {'blocks.0.conv'}, 'stem': {'stem.0'},
                     'head': {'head.0'}}[what], 'and only there'


def test_a_wrong_threshold_is_found():
    latent, packed, x = pair(3)
    with torch.no_grad():
        packed.head[0].activation.shift += 0.5
        packed.head[3].activation.threshold = lambda: torch.full((packed.head[3].in_features,), 0.7)
    report = verify(latent, packed, x)
    assert {row.name for row in report.rows if row.violations} == {'head.0', 'head.3'}


def test_the_models_stay_as_they_were():
    latent, packed, x = pair()
    before = [{key: value for key, value in vars(module).items() if key != '_forward_hooks'} for module in latent.modules()]
    verify(latent, packed, x)
    for module, attributes in zip(latent.modules(), before, strict=True):
        assert not module._forward_hooks
        assert set(vars(module)) - {'_forward_hooks'} == attributes.keys()
        assert 'forward' not in vars(module)


def test_heads_that_run_level_by_level():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = BinaryConv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
            self.predict = nn.Conv2d(12, 4, 1)

        def forward(self, maps):
            return tuple(map(self.forward_single, maps))

        def forward_single(self, x):
            return self.predict(self.norm(self.conv(x)) + x)

    torch.manual_seed(0)
    latent = randomise_(nn.ModuleDict(dict(head=Head()))).eval()['head']
    packed = pack_(copy.deepcopy(latent))
    assert fuse_(packed).parts.keys() == {''}
    report = verify(latent, packed, [torch.randn(1, 12, 8, 8), torch.randn(1, 12, 4, 4)])
    assert report.ok
    assert [row.positions for row in report.rows if row.kind == 'accumulators'] == [12 * (64 + 16)]
    assert {'conv', 'predict'} <= {row.name for row in report.rows if row.kind != 'accumulators'}
    assert report.outputs < 1e-5


def test_reports_add_up():
    latent, packed, x = pair()
    one, total = verify(latent, packed, x), VerificationReport()
    total.add(one)
    total.add(one)
    assert [row.positions for row in total.rows] == [2 * row.positions for row in one.rows]
    assert total.ok
    assert total.outputs == one.outputs


class TestErrors:
    def test_training_mode(self):
        latent, packed, x = pair()
        with pytest.raises(ValueError, match=r'the latent model is in training mode: call latent.eval\(\) first'):
            verify(latent.train(), packed, x)

    def test_the_order_of_the_models(self):
        latent, packed, x = pair()
        with pytest.raises(ValueError, match='verify takes the latent model first, but this RandomNet has no binary layer'):
            verify(packed, latent, x)

    def test_two_latent_models(self):
        latent, _, x = pair()
        with pytest.raises(ValueError, match=r"the layer 'blocks.0.conv' is not packed in the second"):
            verify(latent, latent, x)


class TestOutputs:
    """Of both models, each by itself."""

    def test_without_other_signs_they_are_the_same_within_rounding(self):
        latent, packed, x = pair()
        report = verify(latent, packed, x)
        assert report.ok
        assert report.drift.signs == 0
        assert 0 < report.relative <= report.tolerance < 1e-4
        assert report.summary().endswith(': ok')

    def test_a_large_difference_without_other_signs_is_not_ok(self):
        latent, packed, x = pair()
        with torch.no_grad():
            packed.head[5].bias += 0.5  # of the last layer: no sign follows
        fuse_(packed)
        report = verify(latent, packed, x)
        assert not report.ok
        assert report.summary().endswith('NOT OK')

    @pytest.mark.parametrize('fused', [False, True])
    def test_outputs_behind_everything_that_is_verified(self, fused):
        """A real layer is compared with nothing, but by what it makes."""
        torch.manual_seed(0)
        latent = randomise_(nn.Sequential(BinaryConv2d(12, 12, 3), nn.Flatten(), nn.Linear(192, 3))).eval()
        packed = pack_(copy.deepcopy(latent))
        if fused:
            fuse_(packed)
        x = torch.randn(2, 12, 6, 6)
        assert verify(latent, packed, x).ok
        with torch.no_grad():
            packed[2].weight += 1e-3
        report = verify(latent, packed, x)
        assert not any(row.violations for row in report.rows)
        assert not report.ok

    def test_signs_within_rounding_explain_them(self):
        latent, packed, x = pair(17, stream_dtype=torch.bfloat16)
        report = verify(latent, packed, x)
        assert report.ok
        assert report.drift.signs > 0
        assert report.drift.far == 0
        assert 'within rounding' in report.summary()
        assert report.summary().endswith(': explained by the signs' if report.relative > report.tolerance else ': ok')

    def test_signs_that_are_far_do_not(self):
        """Each step is right for the values of the latent model, but its input in a run is not: a real layer is wrong."""
        torch.manual_seed(0)
        latent = randomise_(nn.Sequential(nn.Linear(12, 12), BinaryLinear(12, 12), nn.Linear(12, 3))).eval()
        packed = pack_(copy.deepcopy(latent))
        fuse_(packed)
        with torch.no_grad():
            packed[0].weight.mul_(-1)
        report = verify(latent, packed, torch.randn(5, 12))
        assert report.drift.far > 0
        assert report.drift.first == '1'
        assert not report.ok

    @pytest.mark.parametrize('signs', [False, True], ids=['', 'signs behind it'])
    def test_another_choice_among_nearly_equal_values(self, signs):
        """As a DETR takes the best queries. Mutations: a head that is another one, too; without the comparison of what the
        parts return, or of what the latent model makes of it."""
        class Best(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(BinaryLinear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 3))
                self.head = nn.Linear(3, 3)

            def forward(self, x):
                y = self.body(x)
                y = self.head(x[:, :3] + y)[(y[:, 0] * 2**22 % 1).argsort()]  # an order that each rounding changes
                return y if self.behind is None else self.behind(y)

        torch.manual_seed(0)
        latent = Best()
        latent.behind = BinaryLinear(3, 3) if signs else None
        latent = randomise_(latent).eval()
        packed = pack_(copy.deepcopy(latent))
        fuse_(packed.body)
        if signs:
            fuse_(packed.behind)
        x = torch.randn(50, 12)
        report = verify(latent, packed, x)
        assert report.relative > 0.1
        assert (report.drift.far > 0) == signs
        assert report.ok
        assert report.choices
        assert report.summary().endswith('explained by another choice among nearly equal values')
        total = VerificationReport()
        total.add(report)
        assert total.ok
        for wrong in (packed.head, packed.body[2]):
            with torch.no_grad():
                wrong.bias += 0.01
            fuse_(packed.body)
            found = verify(latent, packed, x)
            assert not found.ok
            assert not found.choices
            total.add(found)
            assert not total.ok
            with torch.no_grad():
                wrong.bias -= 0.01

    def test_outputs_of_other_shapes(self):
        class Chosen(nn.Sequential):
            def forward(self, x):
                y = super().forward(x)
                return y[y[:, 0] > 0.2]

        torch.manual_seed(0)
        latent = randomise_(Chosen(BinaryLinear(12, 3))).eval()
        packed = pack_(copy.deepcopy(latent))
        with torch.no_grad():
            packed[0].bias = nn.Parameter(torch.full((3,), -100.))
        report = verify(latent, packed, torch.randn(5, 12))
        assert report.relative == float('inf')
        assert not report.ok


@pytest.mark.parametrize('fused', [False, True])
def test_an_int8_rest_is_judged_by_what_its_rounding_may_be(fused):
    """Mutations: the bound without half a step of the weight; a tolerance of float32 for fused int8 layers."""
    latent, packed, x = pair(fused=False)
    report = quantize_rest_(packed, [x])
    if fused:
        fuse_(packed)
    found = verify(latent, packed, x)
    assert found.ok, found.summary()
    rows = {row.name: row for row in found.rows if row.kind == 'int8'}
    assert rows.keys() == {row.name for row in report.replaced}
    assert all(0.01 < row.worst <= 1 and row.positions for row in rows.values())
    assert 0 < found.rest < 2
    assert 'real layers in int8' in found.summary()
    assert fused or found.outputs == 0

    int8 = packed.get_submodule(next(iter(rows)))
    int8.weight_int8[0].add_(3)
    assert not verify(latent, packed, x).ok, 'a weight that is no rounding of the latent one'


def test_an_int8_layer_in_the_place_of_another_class_is_refused():
    latent = net()
    packed = pack_(copy.deepcopy(latent))
    name = next(name for name, module in packed.named_modules() if type(module) is nn.Conv2d)
    quantize_rest_(packed, [torch.randn(2, 3, 14, 11)], keep=[other for other, _ in packed.named_modules() if other != name])
    owner, _, last = name.rpartition('.')
    setattr(latent.get_submodule(owner), last, nn.Identity().eval())
    with pytest.raises(ValueError, match=f'the layer {name!r} is int8 in the second and no real layer'):
        verify(latent, packed, torch.randn(2, 3, 14, 11))
