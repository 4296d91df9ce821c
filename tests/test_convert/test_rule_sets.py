"""A rule set of another library, added and taken away by public calls; and what the ones of mmdet and diffusers rely on."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import bnn_plugins
from bnn_plugins import BNNConfig, RuleSet, binarize_, convert, list_rules, register_rules, remove_rules
from bnn_plugins.integrations.diffusers import rules as diffusers_rules
from bnn_plugins.integrations.mmdet import rules as mmdet_rules

from .nets import nest

HOSTS = {'mmdet': mmdet_rules.RULES, 'diffusers': diffusers_rules.RULES}


class Offsets(nn.Module):
    """A layer whose output is positions."""

    def __init__(self):
        super().__init__()
        self.to_xy, self.body = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        grid = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid + self.to_xy(x).permute(0, 2, 3, 1), align_corners=False) + self.body(x)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze, self.act, self.excite = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)


class TiedConv(nn.Conv2d):
    """A convolution with a forward of its own that computes what torch's does."""

    def forward(self, x):
        return super().forward(x)


@pytest.fixture
def added():
    """Rule sets that a test adds are gone after it."""
    before = list_rules()
    yield register_rules
    for library in set(list_rules()) - set(before):
        remove_rules(library)


def reasons(model, **cfg) -> dict[str, str]:
    return {row.name: row.reason for row in binarize_(model, dict(method='xnor', **cfg)).rows}


def model() -> nn.Module:
    return nn.ModuleDict(dict(offsets=Offsets(), gate=Gate(), depth=nn.Conv2d(8, 8, 1), side_path=nn.Conv2d(8, 8, 1),
                              other=nn.Conv2d(8, 8, 3)))


def test_a_rule_set_from_outside(added):
    seen = []

    def feeds_positions(candidate):
        seen.append((candidate.name, candidate.model, candidate.parents))
        return 'its output is positions' if candidate.module is candidate.model['offsets'].to_xy else None

    names = {'predicts depths': {'depth', 'to_xy'}}
    mine = RuleSet('mine', structure=(feeds_positions,), names=names, classes={'a gate': {'Ga*'}}, shortcuts={'side_path'})
    added(mine)
    net = model()
    around = (net, net['offsets'])
    report = binarize_(net, 'xnor')
    assert {row.name: row.reason for row in report.rows} == {
        'offsets.to_xy': 'its output is positions', 'offsets.body': 'default', 'gate.squeeze': 'a gate',
        'gate.excite': 'a gate', 'depth': 'predicts depths', 'side_path': 'shortcut: carries the real-valued stream',
        'other': 'default'}
    assert ('offsets.to_xy', net, around) in seen
    for reason in ('its output is positions', 'a gate', 'predicts depths'):
        assert reason in str(report)
    remove_rules('mine')
    assert set(reasons(model()).values()) == {'default'}


def test_the_order_is_structure_classes_names_and_the_users_rules_are_first(added):
    added(RuleSet('names', names={'by name': {'squeeze', 'excite', 'depth', 'other'}}))
    added(RuleSet('classes', classes={'by class': {'Gate'}}))
    added(RuleSet('structure', structure=(lambda c: 'by structure' if c.parts[-1] in ('squeeze', 'depth') else None,)))
    found = reasons(model(), rules={'depth': 'binary'})
    assert [found[name] for name in ('gate.squeeze', 'gate.excite', 'other', 'depth')] == [
        'by structure', 'by class', 'by name', "rule 'depth'"]


def test_channel_attention_keeps_its_relus(added):
    net = model()
    assert reasons(net)['gate.squeeze'] == 'default'
    assert type(net['gate'].act) is not nn.ReLU
    added(RuleSet('mine', channel_attention={'Gate'}))
    net = model()
    assert reasons(net)['gate.squeeze'] == 'channel attention: its input is a vector of means'
    assert type(net['gate'].act) is nn.ReLU


def test_layers_that_cannot_be_binary(added):
    """These go before the user's rules, as nothing could run a binary layer there."""
    binary = {'layer': 'binary'}
    assert 'forward of its own' in reasons(nest('layer', TiedConv(8, 8, 3)), rules=binary)['layer']
    added(RuleSet('mine', plain_modules={TiedConv.__module__}, weight_readers={'Gate'}))
    assert reasons(nest('layer', TiedConv(8, 8, 3)), rules=binary)['layer'] == "rule 'layer'"
    assert reasons(model(), rules={'gate.*': 'binary'})['gate.squeeze'] == 'Gate uses its weight without calling it'


def test_roles(added):
    with pytest.raises(ValueError, match="unknown role 'gating'"):
        BNNConfig(roles=['gating'])
    added(RuleSet('mine', roles={'gating': lambda c: c.inside('Gate')}))
    assert 'gating' in convert.list_roles()
    found = reasons(model(), roles=['gating'])
    assert (found['gate.squeeze'], found['other']) == ('role gating', 'has none of the roles')
    added(RuleSet('more', roles={'other': lambda c: c.name == 'other'}))
    net = model()
    report = binarize_(net, dict(method='xnor', roles=['other']))
    assert {row.name for row in report.binary} == {'other'}, 'a role that was not asked for stays float'
    with pytest.raises(ValueError, match="the role 'gating' is one of the rule set 'mine' already"):
        register_rules(RuleSet('yours', roles={'gating': lambda c: True}))
    assert 'yours' not in list_rules()


def test_registration(added):
    mine = RuleSet('mine')
    added(mine)
    added(mine)
    assert list_rules() == ['generic', 'mmdet', 'diffusers', 'mine']
    with pytest.raises(ValueError, match="there is a rule set 'mine' already"):
        added(RuleSet('mine'))
    with pytest.raises(ValueError, match="unknown rule set 'mine_'; did you mean 'mine'"):
        remove_rules('mine_')
    remove_rules('mine')
    assert list_rules() == ['generic', 'mmdet', 'diffusers']


@pytest.mark.parametrize('options', [dict(names={'why': 'depth'}), dict(classes={'why': 'Gate'}), dict(shortcuts='skip'),
                                     dict(channel_attention='Gate'), dict(weight_readers='Gate'), dict(plain_modules='mine')],
                         ids=lambda options: next(iter(options)))
def test_a_string_is_not_a_set_of_names(options):
    """Its letters would be taken for names."""
    with pytest.raises(TypeError, match="rule set 'mine': expected a set of names, but got the string"):
        RuleSet('mine', **options)


def words(rules: RuleSet) -> set[str]:
    """All names of classes and attributes in a rule set."""
    listed = {*rules.shortcuts, *rules.channel_attention, *rules.weight_readers}
    return listed.union(*rules.names.values(), *rules.classes.values())


def test_convert_knows_no_names_of_other_libraries():
    folder = Path(convert.__file__).parent
    literals = {node.value for path in folder.glob('*.py') for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for library, rules in HOSTS.items():
        assert words(rules) & literals == set(), library


@pytest.mark.parametrize('library', HOSTS)
def test_the_names_are_still_those_of_the_library(library):
    """A class or an attribute that the library renames would become binary without a word."""
    folders = [Path(find_spec(name).origin).parent for name in (library, 'mmcv' if library == 'mmdet' else library)
               if find_spec(name)]
    if not folders:
        pytest.skip(f'{library} is not installed')
    found = set(re.findall(r'\w+', '\n'.join(path.read_text() for folder in folders for path in folder.rglob('*.py'))))
    rules = HOSTS[library]
    wanted = words(rules) | (diffusers_rules.PROJECTIONS if library == 'diffusers' else set())
    missing = [word for word in wanted if not any(re.fullmatch(word.replace('*', '.*'), other) for other in found)]
    assert missing == []
    for module in rules.plain_modules:
        assert find_spec(module) is not None, module


@pytest.mark.parametrize('library', HOSTS)
def test_a_library_whose_rules_are_turned_off(library, monkeypatch):
    layer = 'retina_cls' if library == 'mmdet' else 'conv_out'
    assert reasons(nest(layer, nn.Conv2d(8, 8, 3)))[layer] == 'prediction layer'
    monkeypatch.delitem(convert.rules.RULE_SETS, library)
    assert reasons(nest(layer, nn.Conv2d(8, 8, 3)))[layer] == 'default'


def test_public():
    assert {'RuleSet', 'Candidate', 'register_rules', 'remove_rules', 'list_rules'} <= set(bnn_plugins.__all__)
