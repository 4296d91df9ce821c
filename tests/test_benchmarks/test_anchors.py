"""The interleaved run against int8 engines: its ratios, and a machine without AMX."""

import subprocess
import sys

import pytest
import torch

import bnn_kernels as bk
from benchmarks.cpu import anchors


def test_ratios_are_of_the_same_round_and_of_the_better_engine():
    """Mutation: the ratio of medians, which is 1.5 here; the slower of the two engines."""
    times = {'fused': [1.0, 2.0, 4.0], 'openvino-int8': [3.0, 3.0, 3.0], 'onnxruntime-int8': [9.0, 2.9, 9.0]}
    fused, openvino, other = anchors.lines('net', times, 'warm', 1)
    assert (fused.x_int8, fused.x_int8_q1, fused.x_int8_q3) == (1.5, 1.125, 2.25)
    assert (fused.median_ms, fused.min_ms, fused.rounds, openvino.x_int8) == (2.0, 1.0, 3, 1.0)
    assert other.x_int8 == pytest.approx(1 / 3)


def test_forms_take_turns():
    said = []
    times = anchors.measure({name: lambda name=name: said.append(name) for name in 'ab'}, 1, 2, 7, 0.0)
    assert [len(own) for own in times.values()] == [anchors.LEAST] * 2  # seconds are over, and these are taken in any case
    assert ''.join(said) == 'aabb' + 'aaabbb' * anchors.LEAST


@pytest.mark.skipif('amx' not in (bk.cpu.available_isas() if bk.available_backends()['cpu'] == 'available' else []),
                    reason='no AMX here')
def test_a_process_without_amx():
    """Mutation: a stack that is large enough."""
    code = ('from benchmarks.cpu import anchors; import bnn_kernels.cpu as cpu; anchors.without_amx(); '
            'print(cpu.isa(), "amx" in cpu.available_isas())')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-2:] == ['avx512', 'False']


@pytest.mark.parametrize('network', ['resnet18-body'])
def test_a_network_in_our_forms(network):
    with torch.inference_mode(False):
        calls = anchors.variants(network, ('fused', 'fused-int8'))
    fused, int8 = (call() for call in calls.values())
    assert fused.shape == int8.shape == (1, 512, 7, 7)
    # The shortcuts differ by their rounding, and signs behind them, 0.58 here; two networks without relation differ by 1.4.
    assert float((fused - int8).norm() / fused.norm()) < 0.7
