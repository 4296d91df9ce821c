"""Added from outside by public calls only: an estimator, a method, a probability; trained, in a config, packed and saved."""

import pytest
import torch
from torch import nn

import bnn_plugins
from bnn_plugins.binarize import Estimator, Method, ProbabilityBinarizer, RSign, SignWeight, estimators, methods, probabilities
from bnn_plugins.layers import BinaryAttention, BinaryConv2d, BinaryLinear


@pytest.fixture(autouse=True)
def added(monkeypatch):
    for registry in (estimators.ESTIMATORS, methods.METHODS, probabilities.PROBABILITIES):
        monkeypatch.setattr(registry, '_builders', dict(registry._builders))  # other tests see what the package has

    @bnn_plugins.register_estimator('triangle')
    class Triangle(Estimator):
        def __init__(self, width: float = 1.0):
            super().__init__()
            self.width = width

        def surrogate(self, x):
            return (1 - x.abs() / self.width).clamp(min=0)

    @bnn_plugins.register_estimator('wide_triangle')
    class WideTriangle(Triangle):
        pass

    @bnn_plugins.register_method('mine')
    def mine(width: float = 2.0):
        return Method(lambda layer: RSign(layer.in_channels, dict(type='wide_triangle', width=width), layer.channel_dim),
                      lambda layer: SignWeight('ste', 'channel'), act='hardtanh')

    @bnn_plugins.register_probability('top')
    class Top(ProbabilityBinarizer):
        def rules(self, scale):
            return [('max_relative', torch.zeros(1, dtype=torch.float64))]

        def surrogates(self, logits):
            return [logits.softmax(-1)]


def test_they_are_listed():
    assert 'mine' in bnn_plugins.list_methods()
    assert {'triangle', 'wide_triangle'} <= set(bnn_plugins.list_estimators())
    assert 'top' in bnn_plugins.list_probabilities()


def test_the_gradient_is_the_estimators():
    layer = BinaryLinear(3, 1, bias=False, method=dict(type='mine', width=2.0))
    layer.weight.data = torch.tensor([[0.5, -0.5, 0.5]])
    x = torch.tensor([[0.5, -1.0, 3.0]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [[0.5 * 0.75, 0.5 * -0.5, 0.0]], 'scale * weight sign * (1 - |x| / 2)'
    assert layer.weight.grad.tolist() == [[1.0, -1.0, 1.0]]


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3),
                         nn.Flatten(), nn.Linear(32, 4))


def test_from_the_config_to_the_packed_file(tmp_path):
    cfg = bnn_plugins.BNNConfig.from_dict(dict(method=dict(type='mine', width=3.0)))
    model, x = net(), torch.randn(4, 3, 8, 8)
    bnn_plugins.binarize_(model, cfg)
    assert isinstance(model[2], BinaryConv2d)
    assert model[2].activation.estimator.width == 3
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    expected = model.eval()(x)
    bnn_plugins.pack_(model)
    assert torch.equal(model(x), expected)
    bnn_plugins.save_packed(model, tmp_path / 'net.safetensors', config=cfg.to_diff_dict())
    again = net()
    bnn_plugins.binarize_(again, cfg)
    bnn_plugins.load_packed_(again, tmp_path / 'net.safetensors')
    assert torch.equal(again.eval()(x), expected)


def test_a_probability_in_an_attention():
    attention, x = BinaryAttention(8, 2, method='mine', probability='top').eval(), torch.randn(2, 5, 8)
    expected = attention(x, x, x)
    assert torch.equal(bnn_plugins.pack_(nn.Sequential(attention))[0](x, x, x), expected)


@pytest.mark.parametrize(('method', 'sentence'), [
    ('minee', "unknown method 'minee'; did you mean 'mine'"),
    (dict(type='mine', widht=1.0), "unknown option of the method 'mine' 'widht'; did you mean 'width'"),
])
def test_a_misspelt_one_is_named(method, sentence):
    with pytest.raises(ValueError, match=sentence):
        bnn_plugins.BNNConfig(method=method)
