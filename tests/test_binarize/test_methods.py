"""Methods: names, options, what they bundle, latent clipping."""

import pytest
import torch
from torch import nn

from bnn_plugins.binarize import LayerSpec, Method, build_method, clip_latents_, list_methods
from bnn_plugins.binarize.methods import METHODS
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

LAYER = LayerSpec(in_channels=4, out_channels=4, fan_in=9)
# act and latent_clip are part of the paper's recipe: a change of one must be meant.
RECIPES = {'binaryconnect': ('relu', 1.0), 'binarynet': ('hardtanh', 1.0), 'xnor': ('prelu', 1.0), 'xnorpp': ('prelu', 1.0),
           'dorefa': ('identity', None), 'bireal': ('identity', None), 'irnet': ('hardtanh', None),
           'rbnn': ('hardtanh', None), 'recu': ('hardtanh', None), 'reactnet': ('rprelu', None), 'bidm': ('rprelu', None),
           'adambnn': ('rprelu', None),
           'rebnn': ('rprelu', None), 'lwsdet': ('prelu', None),
           'real2binary': ('prelu', 1.0), 'bnext': ('prelu', 1.5), 'bnfree': ('rprelu', None),
           'binaryvit': ('rprelu', None), 'bit': ('rprelu', None), 'binarydm': ('identity', None)}


@pytest.mark.parametrize('name', list_methods())
def test_recipe(name):
    method = build_method(name)
    assert isinstance(method, Method)
    assert (method.act, method.latent_clip) == RECIPES[name]


@pytest.mark.parametrize('name', list_methods())
def test_parts_are_not_shared(name):
    """Two layers of one method do not share modules: their schedules and thresholds are their own."""
    method = build_method(name)
    modules = [m for _ in range(2) for m in (*method.weight(LAYER).modules(), *method.activation(LAYER).modules())]
    assert len(set(map(id, modules))) == len(modules)


@pytest.mark.parametrize('name', list_methods())
def test_docstring_names_the_paper(name):
    assert 'arXiv' in METHODS._builders[name].__doc__


@pytest.mark.parametrize(('spec', 'sentence'), [
    ('recuu', "unknown method 'recuu'; did you mean 'recu'"),
    ('ReActNet', "unknown method 'ReActNet'; did you mean 'reactnet'"),
    (dict(type='xxxxxxxxxx'), r"unknown method 'xxxxxxxxxx'\. Known: adambnn, bidm, binaryconnect, .*xnorpp"),
    ({}, 'unknown method None'),
    (dict(type='dorefa', wbits=2), "unknown option of the method 'dorefa' 'wbits'; did you mean 'w_bits'"),
    (dict(type='bireal', estimators='ste'), "'estimators'; did you mean 'estimator'"),
    (dict(type='recu', binarize_weight=False), "did you mean 'binarize_weights'"),
    (dict(type='binaryconnect', binarize_weights=False), "nothing binary in the method 'binaryconnect'"),
    (dict(type='dorefa', g_bits=17), 'gradients take 1 to 16 bits, or 32 for none, but got g_bits=17'),
    (dict(type='binaryconnect', estimator='ste'), "unknown option of the method 'binaryconnect' 'estimator'"),
])
def test_errors_name_the_nearest(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_method(spec)


def test_a_wrong_estimator_is_named_when_the_layer_is_built():
    with pytest.raises(ValueError, match="did you mean 'swish_sign'"):
        BinaryLinear(4, 4, method=dict(type='bireal', estimator='swish'))


@pytest.mark.parametrize('spec', [None, 3, ['xnor']])
def test_other_types_are_refused(spec):
    with pytest.raises(TypeError, match='must be a name or dict'):
        build_method(spec)


def test_options_reach_the_binarizers():
    assert build_method(dict(type='dorefa', w_bits=3, a_bits=2)).weight(LAYER).bits == 3
    assert build_method(dict(type='dorefa', w_bits=3, a_bits=2)).activation(LAYER).bits == 2
    assert build_method(dict(type='irnet', t_min=0.01)).weight(LAYER).estimator.t == pytest.approx(0.01)
    assert build_method(dict(type='irnet', t_min=0.01)).activation(LAYER).estimator.t == pytest.approx(0.01)
    assert build_method(dict(type='recu', tau_min=0.6)).weight(LAYER).tau == pytest.approx(0.6)
    assert build_method(dict(type='reactnet', estimator=dict(type='tanh', beta=2.0))).activation(LAYER).estimator.beta == 2


@pytest.mark.parametrize('name', list_methods())
def test_clip_latents(name):
    linear = BinaryLinear(4, 4, method=name)
    model = nn.Sequential(BinaryConv2d(3, 4, 3, method=name), nn.Conv2d(4, 4, 1), nn.Sequential(linear))
    for p in model.parameters():
        p.data = 3 * torch.randn_like(p)
    before = [p.clone() for p in model.parameters()]
    clip_latents_(model)
    bound = build_method(name).latent_clip
    latents = {id(model[0].weight), id(linear.weight)}
    for p, old in zip(model.parameters(), before, strict=True):
        clipped = id(p) in latents and bound is not None
        assert torch.equal(p, old.clamp(-bound, bound) if clipped else old)
        assert p.requires_grad
