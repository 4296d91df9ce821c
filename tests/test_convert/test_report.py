"""The binarization report: complete, readable, and measured as counted by hand."""

import copy
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from bnn_plugins import BinarizationReport, binarize_
from bnn_plugins.convert import LayerRow
from bnn_plugins.convert.layer_counts import count_layers

from .nets import BINARY, FLOAT, Net, image


def captured_inputs(model, x):
    """``{layer name: [its inputs]}`` of one forward pass."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0])))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def test_text_has_every_layer_and_reason():
    model = Net()
    report = binarize_(model, dict(rules={'nec[kl]': 'binary', 'layer1.[!0].0': 'binary'}))
    text = str(report)
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    for row in report.rows:
        assert row.kind in lines[row.name]
        assert row.reason in lines[row.name]
        assert (' binary ' in lines[row.name]) == row.binary
        assert (' float ' in lines[row.name]) == (not row.binary)
    assert "rule 'nec[kl]'" in text, 'brackets are part of the pattern, not markup'
    for name, what in report.replaced.items():
        assert what in lines[name]
    assert report.summary() in text
    assert 'MACs' not in text, 'nothing was measured'


def test_rich_shows_the_same():
    report = binarize_(Net(), 'bireal')
    console = Console(width=140, file=io.StringIO())
    console.print(report)
    assert console.file.getvalue() == str(report)


def test_summary_counts():
    model = Net()
    report = binarize_(model, 'bireal')
    weights = {name: model.get_submodule(name).weight.numel() for name in BINARY + FLOAT}
    share = sum(weights[name] for name in BINARY) / sum(weights.values())
    assert report.summary() == f'4 of 9 layers binary, {share:.1%} of their weights; 2 activations replaced'
    assert BinarizationReport().summary() == '0 of 0 layers binary, 0.0% of their weights; 0 activations replaced'


def test_of_a_binary_model():
    model = Net()
    made = binarize_(model, 'bireal')
    found = BinarizationReport.of(model)
    assert [(row.name, row.binary, row.parameters) for row in found.rows] == [
        (row.name, row.binary, row.parameters) for row in made.rows]
    assert [row.kind for row in found.binary] == ['BinaryConv2d'] * 3 + ['BinaryLinear']


def test_macs_by_hand():
    """10 x 8 image, two of them; every layer's output pixels times fan-in."""
    model = Net()
    report = binarize_(model, 'bireal')
    assert {row.macs for row in report.rows} == {None}
    assert report.measure(model, image()) is report
    pixels = 5 * 4  # behind the stride
    expected = {
        'conv1': 10 * 8 * 8 * 3 * 9, 'layer1.0.conv1': pixels * 12 * 4 * 9, 'layer1.0.conv2': pixels * 12 * 12 * 3,
        'layer1.0.se.reduce': 6 * 12, 'layer1.0.se.expand': 12 * 6, 'layer1.0.downsample.1': pixels * 12 * 8,
        'layer1.1.0': pixels * 12 * 12 * 9, 'neck': pixels * 7 * 12, 'fc': 5 * 7}
    assert {row.name: row.macs for row in report.rows} == {name: 2 * macs for name, macs in expected.items()}
    lines = {line.split()[0]: line for line in str(report).splitlines() if line.split()}
    assert 'MACs' in lines['layer']
    assert all(f' {row.macs:,} ' in lines[row.name] for row in report.rows)


@pytest.mark.parametrize('method', ['bireal', 'reactnet'])
def test_sign_balance_is_the_share_of_plus_one(method):
    model = Net()
    report = binarize_(model, method)
    for name in BINARY:
        if method == 'reactnet':
            model.get_submodule(name).activation.shift.data.normal_()
    x = image()
    report.measure(model, x)
    inputs = captured_inputs(copy.deepcopy(model).eval(), x)
    for row in report.rows:
        if not row.binary:
            assert row.sign_balance is None
            continue
        value, = inputs[row.name]
        shift = model.get_submodule(row.name).activation.threshold()
        if shift is not None:
            value = value - (shift.view(-1, 1, 1) if row.name != 'neck' else shift)
        assert row.sign_balance == pytest.approx((value >= 0).double().mean().item(), abs=1e-6)
        assert 0 < row.sign_balance < 1


def test_trace_of_a_shared_layer():
    """Sums over the calls; the shape is that of the last one."""
    lin = nn.Linear(8, 8)
    model = nn.Sequential(lin, nn.Flatten(0, 1), lin)
    record = count_layers(model, lambda: model(torch.randn(2, 3, 8)), lambda module: module is lin)['0']
    assert (record.calls, record.macs, record.output_shape, record.sign_balance) == (2, 2 * 6 * 64, (6, 8), None)
    assert not lin._forward_hooks
    with pytest.raises(ZeroDivisionError):
        count_layers(model, lambda: 1 // 0, lambda module: True)
    assert not any(module._forward_hooks for module in model.modules()), 'no hook stays behind a failure'


def test_balance_of_a_shared_layer_is_over_all_calls():
    conv = nn.Conv2d(8, 8, 1, bias=False)
    model = nn.Sequential(conv, nn.BatchNorm2d(8), conv)
    report = binarize_(model, 'bireal')
    x = image(2, 8, 4, 4)
    report.measure(model, x)
    row, = report.rows
    first, second = captured_inputs(model.eval(), x)['0']
    assert row.sign_balance == pytest.approx((torch.cat([first, second]) >= 0).double().mean().item(), abs=1e-6)
    assert row.macs == 2 * (2 * 16 * 64)


def test_no_sign_no_balance():
    """Real activations have no sign; those of one unsigned bit are 0 and 1; those of two bits are levels."""
    for method, expected in (('binaryconnect', False), ('dorefa', True), (dict(type='dorefa', a_bits=2), False)):
        model = Net()
        report = binarize_(model, dict(method=method)).measure(model, image())
        assert [row.sign_balance is not None for row in report.binary] == [expected] * 4, method
        assert all(row.sign_balance < 1 for row in report.binary if expected), 'a level of 0 is no +1'


@pytest.mark.parametrize(('shift', 'one_sided'), [(30, True), (-30, True), (0, False)])
def test_one_sided(shift, one_sided):
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    report = binarize_(model, 'bireal')
    model[0].bias.data.fill_(shift)
    report.measure(model, image(2, 8, 6, 6))
    row, = report.rows
    assert row.one_sided is one_sided
    assert ('one-sided!' in str(report)) is one_sided
    assert f'{row.sign_balance:.1%}' in str(report)


@pytest.mark.parametrize(('balance', 'one_sided'), [(None, False), (0.0, True), (0.009, True), (0.011, False), (0.5, False),
                                                    (0.989, False), (0.99, False), (0.991, True), (1.0, True)])
def test_one_sided_limits(balance, one_sided):
    assert LayerRow('a', 'Conv2d', True, '', 1, 1, balance).one_sided is one_sided


def test_batch_stats():
    """Running means far from the data, as before the first step: in evaluation mode every sign is -1."""
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    report = binarize_(model, 'bireal')
    model[0].running_mean.fill_(100)
    x = image(2, 8, 6, 6)
    assert report.measure(model, x).rows[0].sign_balance == 0
    assert 0.3 < report.measure(model, x, batch_stats=True).rows[0].sign_balance < 0.7
    assert report.measure(model, x).rows[0].sign_balance == 0, 'no statistics were kept'


@pytest.mark.parametrize('batch_stats', [True, False])
def test_measure_does_not_touch_the_model(batch_stats):
    model = Net()
    report = binarize_(model, 'reactnet')
    model.layer1.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    report.measure(model, image(), batch_stats=batch_stats)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_layers_that_did_not_run():
    model = nn.ModuleDict(dict(a=nn.Linear(8, 8), b=nn.Linear(8, 8)))
    model.forward = lambda x: model['a'](x)
    report = binarize_(model, 'bireal')
    x = torch.randn(3, 8)

    class Run(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = model['a'], model['b']

        def forward(self, x):
            return self.a(x)

    report.measure(Run(), x)
    assert [(row.macs, row.sign_balance is None) for row in report.rows] == [(3 * 64, False), (None, True)]
    assert 'None' not in str(report)


def test_measure_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x, y):
            return self.lin(x + y)

    model = Sum()
    report = binarize_(model, 'bireal')
    assert report.measure(model, torch.ones(2, 8), -2 * torch.ones(2, 8)).rows[0].sign_balance == 0


def test_layers_of_other_kinds_have_rows():
    """A share of the weights says nothing without those of the layers that have no binary form."""
    model = nn.ModuleDict(dict(a=nn.Conv2d(8, 8, 3), b=nn.ConvTranspose1d(8, 8, 3), c=nn.ConvTranspose3d(8, 8, 3),
                               d=nn.LSTM(8, 8, bidirectional=True), e=nn.GRU(8, 4)))
    report = binarize_(model, dict(method='bireal', rules={'b': 'binary'}))
    assert [row.reason for row in report.rows] == ['default', *(f'there is no binary {kind}' for kind in (
        'ConvTranspose1d', 'ConvTranspose3d', 'LSTM', 'GRU'))]
    assert [row.parameters for row in report.rows] == [576, 192, 1728, 2 * 2 * 4 * 64, 3 * (8 + 4) * 4]
    assert BinarizationReport.of(model).summary().startswith('1 of 5 layers binary')
