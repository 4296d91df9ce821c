"""OpenVINO and ONNX Runtime beside torch: they are no dependency, and return what the module returns."""

import pytest
import torch
from torch import nn

from bnn_plugins.analysis import anchors
from bnn_plugins.analysis.throughput_variants import FORMS, ON_CPU, ON_CUDA, check_forms


class Head(nn.Module):
    def forward(self, x):
        return [x + 1, x * 2], {'whole': x.amax()}


def fake(flat, x, precision, calibration, threads, save):
    assert (precision, len(calibration), threads, save, x.is_contiguous()) == ('int8', 2, 1, None, True)
    return lambda values: [leaf.numpy() for leaf in flat(torch.from_numpy(values))]


def test_results_have_the_structure_of_the_module(monkeypatch):
    monkeypatch.setattr(anchors, 'missing', lambda engine: [])
    monkeypatch.setitem(anchors.ENGINES, 'openvino', fake)
    x = torch.randn(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    run = anchors.compiled('openvino', 'int8', Head(), x, [x, x], 1)
    (first, second), rest = run(x)
    assert torch.equal(first, x + 1)
    assert torch.equal(second, x * 2)
    assert torch.equal(rest['whole'], x.amax())
    with pytest.raises(ValueError, match='openvino in int8 needs images to calibrate with'):
        anchors.compiled('openvino', 'int8', Head(), x, [], 1)


def test_what_is_not_installed_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(anchors, 'find_spec', lambda package: None if package == 'nncf' else True)
    assert anchors.missing('openvino') == ['nncf']
    assert anchors.missing('onnxruntime') == []
    with pytest.raises(RuntimeError, match=r"nncf not installed: pip install 'bnn_plugins\[baselines\]'"):
        anchors.compiled('openvino', 'float32', Head(), torch.zeros(1), [], 1)


def test_openvino_in_int8_is_not_held_back():
    """Mutation: float32 for the layers that stay real, which takes OpenVINO almost twice as long on a processor with AMX."""
    hint = 'INFERENCE_PRECISION_HINT'
    assert hint not in anchors.openvino_options('int8', 1)
    assert [anchors.openvino_options(name, 1)[hint] for name in ('float32', 'bfloat16')] == ['f32', 'bf16']


def test_engines_are_for_the_cpu():
    assert not {name for name in ON_CUDA if FORMS[name].engine}
    assert {name for name in ON_CPU if FORMS[name].engine} == {
        name for name, form in FORMS.items() if form.engine and not anchors.missing(form.engine)}
    with pytest.raises(ValueError, match="'openvino-int8' runs on the CPU, not with --device cuda"):
        check_forms(['openvino-int8'], torch.device('cuda'))


@pytest.mark.parametrize('engine', sorted(anchors.PACKAGES))
@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_the_engines_themselves(engine, precision):
    if lacking := anchors.missing(engine):
        pytest.skip(f'{", ".join(lacking)} not installed')
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    images = [torch.randn(1, 3, 8, 8) for _ in range(3)]
    run = anchors.compiled(engine, precision, module, images[0], images, 1)
    expected = module(images[0]).detach()
    assert float((run(images[0]) - expected).norm() / expected.norm()) < (1e-4 if precision == 'float32' else 0.1)
