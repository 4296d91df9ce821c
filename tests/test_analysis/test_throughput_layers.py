"""Operators by group, their time over several calls, and the ceilings of several threads."""

import pytest
import torch
from torch import nn

import bnn_kernels
from bnn_plugins.analysis.throughput import HostClock
from bnn_plugins.analysis.throughput_layers import OUTSIDE, Operators, break_down, measure_ceilings


@pytest.mark.parametrize(('call', 'group'), [
    (lambda: bnn_kernels.pack_activations(torch.randn(1, 40, 3, 3)), 'binary'),
    (lambda: bnn_kernels.downsample2d(torch.randn(1, 8, 4, 4), torch.randn(6, 8), torch.randn(6), 2), 'float'),
    (lambda: torch.randn(2, 8).addmm(torch.randn(2, 3), torch.randn(3, 8)), 'float'),
    (lambda: torch.ones(3).relu(), 'rest'),
], ids=['pack', 'downsample', 'addmm', 'relu'])
def test_groups(call, group):
    groups = {row.group for row in break_down(call, nn.Identity(), HostClock(1), rounds=1).rows}
    assert groups - {'rest'} == {group} - {'rest'}


class Ticks:
    """Each look at the clock is a second later than the one before."""

    def __init__(self):
        self.now = 0

    def mark(self):
        self.now += 1
        return self.now

    def between(self, start, end):
        return end - start


def test_calls_of_one_operator_add_up():
    x = torch.ones(3)
    with Operators({}, Ticks()) as operators:
        for _ in range(3):
            x.relu()
        x.exp()
    assert {name: record.seconds for (layer, name), record in operators.records.items()} == {'aten::relu': 3, 'aten::exp': 1}
    assert {layer for layer, _ in operators.records} == {OUTSIDE}


def test_ceilings_are_of_all_threads(monkeypatch):
    monkeypatch.setattr(bnn_kernels.cpu, 'isa', lambda: 'avx2')
    monkeypatch.setattr(bnn_kernels.cpu, 'ceilings', lambda isa: {'avx2': {'binary': 5.0, 'float': 0.0}}[isa])
    assert measure_ceilings(torch.device('cpu'), 3) == {'binary': 15.0}
