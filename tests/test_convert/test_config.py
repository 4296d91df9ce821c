"""BNNConfig: what is written comes back, what no model can have is refused by name."""

import copy
import json

import pytest
import torch

from bnn_plugins import BNNConfig, list_methods

FULL = dict(method=dict(type='xnor', estimator=dict(type='swish_sign', beta=3.0)), expand=None,
            rules={'z.*': 'float', 'a?': 'binary', '*': 'float'}, pad_value=-1, act='prelu', roles=['ff', 'resnet_conv'],
            attention='bool', modules_to_not_convert=['proj_out'])


@pytest.mark.parametrize('values', [{}, FULL, *(dict(method=name) for name in list_methods()),
                                    dict(method=dict(type='dorefa', w_bits=2, a_bits=3), act='keep'),
                                    dict(expand=dict(tau=2, groups=2, spread=0.5)), dict(expand={}),
                                    dict(attention=dict(type='elastic', initial=0.1))], ids=str)
def test_round_trip(values):
    config = BNNConfig.from_dict(values)
    assert BNNConfig.from_dict(config.to_dict()) == config
    assert BNNConfig.from_dict(json.loads(config.to_json_string())) == config
    for key, value in values.items():
        assert config.to_dict()[key] == value


def test_defaults():
    assert BNNConfig().to_dict() == dict(quant_method='bnn', method='reactnet', expand=None, rules={}, pad_value=0, act='auto',
                                         roles=None, attention=None, modules_to_not_convert=None)


def test_what_differs_from_the_defaults():
    assert BNNConfig().to_diff_dict() == dict(quant_method='bnn')
    assert BNNConfig(pad_value=-1, method='xnor').to_diff_dict() == dict(quant_method='bnn', method='xnor', pad_value=-1)


def test_rules_keep_their_order_through_json():
    """The first rule that matches wins, so sorted keys would be another model."""
    assert list(json.loads(BNNConfig(**FULL).to_json_string())['rules']) == ['z.*', 'a?', '*']


def test_rules_as_pairs():
    """The way to write them where a config is dumped by mmengine, which sorts the keys of dicts."""
    pairs = [['z.*', 'float'], ('a', 'binary')]
    assert list(BNNConfig(rules=pairs).rules.items()) == [('z.*', 'float'), ('a', 'binary')]


def test_to_dict_is_a_copy():
    config = BNNConfig(**copy.deepcopy(FULL))
    config.to_dict()['rules']['new'] = 'float'
    config.to_dict()['method']['estimator']['beta'] = 0
    assert config == BNNConfig(**FULL)


def test_mmengine_config_dict():
    config = pytest.importorskip('mmengine.config').ConfigDict(FULL)
    assert BNNConfig.from_dict(config) == BNNConfig(**FULL)
    assert json.loads(BNNConfig.from_dict(config).to_json_string()) == {'quant_method': 'bnn', **FULL}


@pytest.mark.parametrize(('key', 'nearest'), [('methods', 'method'), ('rule', 'rules'), ('padvalue', 'pad_value'),
                                              ('expands', 'expand'), ('acts', 'act')])
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ValueError, match=rf"unknown key of BNNConfig '{key}'; did you mean '{nearest}'\?"):
        BNNConfig.from_dict({key: None})
    with pytest.raises(TypeError, match=rf"unknown argument of BNNConfig '{key}'; did you mean '{nearest}'\?"):
        BNNConfig(**{key: None})


@pytest.mark.parametrize(('values', 'message'), [
    (dict(method='recuu'), "unknown method 'recuu'; did you mean 'recu'"),
    (dict(method=dict(type='dorefa', wbits=2)), "unknown option of the method 'dorefa' 'wbits'; did you mean 'w_bits'"),
    (dict(method=dict(w_bits=2)), 'unknown method None'),
    # Found where the config is made and not in the middle of a half-converted model:
    (dict(method=dict(type='dorefa', a_bits=9)), 'activations take 1 to 8 bits.*9'),
    (dict(method=dict(type='dorefa', w_bits=0)), 'weights take 2 to 8 bits.*0'),
    (dict(method=dict(type='xnor', estimator='clip_ste')), "did you mean 'clipped_ste'"),
    (dict(method=dict(type='irnet', t_min=0.0)), 'EDE needs'),
    (dict(method=dict(type='recu', tau_max=1.5)), 'ReCU needs'),
    (dict(pad_value=2), 'pad_value must be -1, 0 or 1, but got 2'),
    (dict(pad_value=None), 'pad_value must be -1, 0 or 1, but got None'),
    (dict(pad_value=1, method='dorefa'), r'pad_value=1 needs -1/\+1 activations'),
    (dict(pad_value=-1, method='binaryconnect'), r'pad_value=-1 needs -1/\+1 activations'),
    (dict(act='hardtahn'), "unknown act 'hardtahn'; did you mean 'hardtanh'"),
    (dict(act='rprelu'), 'one shift per channel'),
    (dict(act='relu'), "ReLU by a ReLU: use 'keep'"),
    (dict(rules={'a': 'int8'}), r"rules\['a'\] must be 'binary' or 'float', but got 'int8'"),
    (dict(rules={'a': True}), r"rules\['a'\] must be 'binary' or 'float', but got True"),
    (dict(expand=dict(tau=2, style='es')), "its layers have style='drop_in', but got 'es'; build a native model"),
    (dict(expand=dict(tau=2, style='rep')), "but got 'rep'"),
    (dict(expand=dict(tau=0)), 'tau must be an integer of at least 1, but got 0'),
    (dict(expand=dict(tua=2)), "unknown key of expand 'tua'; did you mean 'tau'"),
    (dict(expand=2), 'expand must be None or dict'),
], ids=str)
def test_wrong_values(values, message):
    with pytest.raises(ValueError, match=message):
        BNNConfig(**values)


@pytest.mark.parametrize(('values', 'message'), [
    (dict(method=None), 'method must be a name or dict'),
    (dict(method=['recu']), 'method must be a name or dict'),
    (dict(rules='layer1'), "rules must be a dict or a list of .* but got 'layer1'"),
    (dict(rules=7), 'rules must be a dict'),
], ids=str)
def test_wrong_kinds(values, message):
    with pytest.raises(TypeError, match=message):
        BNNConfig(**values)


@pytest.mark.parametrize(('method', 'act', 'expected'), [
    ('reactnet', 'auto', 'prelu'), ('bireal', 'auto', 'hardtanh'), ('recu', 'auto', 'hardtanh'), ('xnor', 'auto', 'prelu'),
    ('binarynet', 'auto', 'hardtanh'), ('binaryconnect', 'auto', 'keep'), ('dorefa', 'auto', 'hardtanh'),
    ('reactnet', 'identity', 'identity'), ('reactnet', 'keep', 'keep'), ('bireal', 'prelu', 'prelu'),
])
def test_replacement_act(method, act, expected):
    assert BNNConfig(method, act=act).replacement_act == expected


def test_a_config_draws_no_random_numbers():
    """A config that is only read must not change what a seed gives."""
    state = torch.get_rng_state()
    BNNConfig(**FULL)
    assert torch.equal(torch.get_rng_state(), state)
