"""The adaptive convolution: each image as the fixed convolution of its bits, the budget in training, bits that are packed."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from bnn_plugins import load_packed_, pack_, save_packed, summarize
from bnn_plugins.layers import AdaptiveConv2d, BinaryConv2d


def layer_(**kwargs):
    layer = AdaptiveConv2d(6, 8, 3, padding=1, **kwargs)
    nn.init.normal_(layer.router.weight, std=2)
    return layer.eval()


def images(n=40):
    return torch.randn(n, 6, 5, 4) * 0.5 + torch.rand(n, 6, 1, 1)


def twin_of(layer, bits):
    """The convolution with this number of bits for all images."""
    twin = BinaryConv2d(6, 8, 3, padding=1, method=dict(type='dorefa', a_bits=bits))
    twin.load_state_dict({'weight': layer.weight, 'bias': layer.bias})
    return twin.eval()


@pytest.mark.parametrize('bits', [(1, 2, 4), (2, 3), (1,)])
def test_each_image_by_its_own_bits(bits):
    layer, x = layer_(bits=bits, budget=bits[0]), images()
    out = layer(x)
    chosen = layer.scores(x).argmax(1)
    assert len(chosen.unique()) == len(bits), 'each choice occurs'
    for i, b in enumerate(bits):
        assert torch.equal(out[chosen == i], twin_of(layer, b)(x[chosen == i]))
    assert float(layer.mean_bits) == pytest.approx(torch.tensor(bits)[chosen].float().mean().item())


def test_training_and_evaluation_agree():
    layer, x = layer_(), images()
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


def test_gradients():
    """Those of the chosen branch for the weights, and of the softmax of the scores for the router."""
    layer, x = layer_().train(), images(8)
    g = torch.randn(8, 8, 5, 4)
    chosen, soft = layer.scores(x).argmax(1), layer.scores(x).softmax(1)  # the price moves in the forward pass
    layer(x).backward(g)
    expected = torch.zeros_like(layer.weight)
    values = []
    for i, b in enumerate((1, 2, 4)):
        twin = twin_of(layer, b)
        y = twin(x)
        twin.weight.grad = None
        (y * g)[chosen == i].sum().backward()
        expected += twin.weight.grad
        values.append(((y - layer.bias[:, None, None]) * g).sum((1, 2, 3)))
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-4)
    value = torch.stack(values, 1).detach()
    mean = nn.functional.layer_norm(x.mean((2, 3)), (6,))
    dscores = soft * (value - (soft * value).sum(1, keepdim=True))
    torch.testing.assert_close(layer.router.weight.grad, (dscores.T @ mean).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('budget', [1.25, 2.0, 3.5])
def test_budget_is_kept(budget):
    """After some training the mean number of bits is the budget, and not all images have the same."""
    layer = layer_(budget=budget, rate=0.2).train()
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    for _ in range(120):
        x = images(32)
        optimizer.zero_grad()
        layer(x)[:, :6].sub(x.clamp(0, 1)).square().mean().backward()
        optimizer.step()
    layer.eval()(images(400))
    assert float(layer.mean_bits) == pytest.approx(budget, abs=0.2)
    assert len(layer.scores(images(400)).argmax(1).unique()) > 1


def test_packed(tmp_path):
    layer, x = layer_(), images()
    layer.price.fill_(0.2)
    model = nn.Sequential(layer)
    fresh = nn.Sequential(layer_())
    expected = model(x)
    packed = pack_(copy.deepcopy(model))
    for y in (x, x[:1], x[:0], x.to(memory_format=torch.channels_last)):
        assert torch.equal(packed(y), model(y))
        assert packed(y).stride() == model(y).stride()
    assert packed[0].weight_bits.shape[0] == 1, 'one set of bits for all choices'
    path = save_packed(packed, tmp_path / 'model.safetensors')
    assert torch.equal(load_packed_(fresh, path)(x), expected)
    with pytest.raises(ValueError, match=r'adaptive \(1, 2\)'):
        load_packed_(nn.Sequential(layer_(bits=(1, 2))), path)


def test_summary_counts_what_was_spent():
    layer, x = layer_(), images()
    summary = summarize(nn.Sequential(layer), x)
    row = next(row for row in summary.rows if row.name == '0')
    chosen = torch.tensor([1, 2, 4])[layer.scores(x).argmax(1)]
    assert row.macs == 20 * 8 * 54
    assert row.bops == pytest.approx(row.macs * chosen.float().mean().item(), abs=1)
    assert next(row for row in summary.rows if row.name == '0.router').flops == 18


def test_copies_states_and_configs():
    layer, x = layer_(), images()
    twin = layer_()
    layer.price.fill_(0.3)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    module = ConvModule(6, 8, 3, conv_cfg=dict(type='bnn_plugins.AdaptiveConv2d', budget=1.5), act_cfg=None)
    assert module.conv.budget == 1.5
    expected, scores = layer(x), layer.scores(x)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(layer.scores(x), scores), 'a rounded score would choose other bits than the packed layer'
        assert torch.equal(layer(x), expected)
        layer.train()(x).sum().backward()


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(budget=5.0), 'mean number of bits between 1 and 4, but got 5.0'),
    (dict(bits=(2, 4), budget=1.0), 'between 2 and 4'),
    (dict(bits=(4, 2)), 'different and ascending'),
    (dict(bits=()), 'different and ascending'),
    (dict(bits=(1, 9)), 'DoReFa activations take 1 to 8 bits'),
])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveConv2d(6, 8, 3, **kwargs)
