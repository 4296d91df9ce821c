"""The scalars of BinaryStatisticsHook against numbers worked out from the weights."""

import itertools

import pytest
import torch
from mmengine.logging import MessageHub

from bnn_plugins.binarize import list_methods
from bnn_plugins.engine import BinaryStatisticsHook, BinaryTrainingHook

from .test_hooks import Model, Recorder, runner


def scalars():
    return {name.removeprefix('train/binary/'): list(buffer._log_history) for name, buffer in
            MessageHub.get_current_instance().log_scalars.items() if name.startswith('train/binary/')}


@pytest.mark.parametrize('method', list_methods())
def test_numbers(tmp_path, method):
    model = Model(method=method)
    weights = Recorder(lambda m: [m.conv.weight.detach().clone(), m.fc.weight.detach().clone()])
    run = runner(tmp_path, model, [BinaryStatisticsHook(interval=2), BinaryTrainingHook(), weights], epochs=1, lr=0.2)
    start = [p.clone() for p in (model.conv.weight, model.fc.weight)]
    run.train()
    found = scalars()
    signed = method not in ('binaryconnect', 'dorefa', 'rbnn', 'bit', 'binarydm')
    assert ('input_saturation' in found) == signed
    if signed:
        assert all(0 < value < 1 for value in found['input_saturation'])
    at = [start, weights.after[1], weights.after[3]]
    flips = [sum(((a >= 0) != (b >= 0)).float().mean().item() for a, b in zip(old, new, strict=True)) / 2
             for old, new in itertools.pairwise(at)]
    assert found['flips'] == pytest.approx(flips)
    clip = model.conv.latent_clip or 1
    assert found['latent_saturation'] == pytest.approx(
        [sum((w.abs() >= clip).float().mean().item() for w in pair) / 2 for pair in at[1:]])
    medians = [sum((w.abs() / w.abs().mean()).flatten().sort().values[round(0.5 * (w.numel() - 1))].item() for w in pair) / 2
               for pair in at[1:]]
    assert found['latent_q50'] == pytest.approx(medians)
    assert all(low <= high for low, high in zip(found['latent_q05'], found['latent_q95'], strict=True))
    assert not model.conv.activation._forward_pre_hooks


def test_saturation_of_both_signs(tmp_path):
    """The share of the inputs of the layers' signs outside of [-1, 1]: of the convolution's here, which are the data."""
    class Wide(Model):
        def forward(self, inputs, mode='tensor'):
            return super().forward(4 * torch.stack(inputs), mode)

    model = Wide()
    model.fc = model.bn = torch.nn.Identity()
    model.real = torch.nn.Linear(4, 2)
    runner(tmp_path, model, [BinaryStatisticsHook(interval=4)], epochs=1).train()
    outside = (model.seen[3].abs() > 1).float().mean().item()
    assert scalars()['input_saturation'] == pytest.approx([outside])
    assert (model.seen[3] < -1).any()


def test_per_layer_and_histograms(tmp_path):
    calls = []

    class Writer:
        def add_histogram(self, name, values, step):
            calls.append((name, tuple(values.shape), step))

    class Backend:
        _tensorboard = experiment = Writer()

    run = runner(tmp_path, Model(), [BinaryStatisticsHook(interval=4, per_layer=True)], epochs=1)
    run.visualizer._vis_backends['tensorboard'] = Backend()
    seen = {}
    run.visualizer.add_scalars = lambda values, step: seen.update(values)
    run.train()
    assert calls == [('latents/conv', (4, 4, 3, 3), 4), ('latents/fc', (3, 4), 4)]
    assert {'binary/conv/flips', 'binary/fc/latent_q50'} <= set(seen)
    assert all(isinstance(value, float) and torch.tensor(value).isfinite() for value in seen.values())


def test_impossible_interval():
    with pytest.raises(ValueError, match='at least 1, but got 0'):
        BinaryStatisticsHook(interval=0)
