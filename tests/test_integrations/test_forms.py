"""Layers of hosts that pad or standardise by themselves: the binary form does it, too."""

import copy

import pytest
import torch
from torch import nn

from bnn_plugins import binarize_, load_packed_, pack_, save_packed, verify
from bnn_plugins.deploy import weight_levels


def of_mmcv(name, **kwargs):
    return getattr(pytest.importorskip('mmcv.cnn.bricks'), name)(8, 6, **kwargs)


def causal(**kwargs):
    module = pytest.importorskip('diffusers.models.autoencoders.autoencoder_kl_cosmos')
    return module.CosmosCausalConv3d(8, 6, **kwargs)


def of_wan(**kwargs):
    return pytest.importorskip('diffusers.models.autoencoders.autoencoder_kl_wan').WanCausalConv3d(8, 6, **kwargs)


LAYERS = {
    'covered': (lambda: of_mmcv('Conv2dAdaptivePadding', kernel_size=3, stride=2), (2, 8, 7, 9)),
    'even': (lambda: of_mmcv('Conv2dAdaptivePadding', kernel_size=(4, 2), stride=(1, 3), dilation=(2, 1)), (2, 8, 6, 11)),
    'standardised': (lambda: of_mmcv('ConvWS2d', kernel_size=3, eps=1e-3), (2, 8, 7, 9)),
    'shifted': (lambda: of_mmcv('ConvAWS2d', kernel_size=3, padding=1), (2, 8, 7, 9)),
    'causal': (lambda: causal(kernel_size=3), (2, 8, 3, 5, 6)),
    'causal_strided': (lambda: causal(kernel_size=(3, 1, 1), stride=(2, 1, 1), padding=0), (1, 8, 5, 4, 4)),
    'after_zeros': (lambda: of_wan(kernel_size=3, padding=(1, 2, 0)), (2, 8, 3, 5, 6)),
}


@pytest.mark.parametrize('kind', LAYERS)
def test_a_form_pads_and_standardises_as_the_host(kind, tmp_path):
    """Mutations: pads of the sides swapped; signs of the weight itself."""
    build, shape = LAYERS[kind]
    layer, x = build(), torch.randn(shape)
    with torch.no_grad():
        layer.weight += 0.1  # means that change signs
        for name in ('weight_gamma', 'weight_beta'):
            if name in layer._buffers:
                layer._buffers[name].uniform_(-0.5, 1)
    model, float_weight = nn.Sequential(layer), layer.weight.detach()
    if kind == 'standardised':
        rows = float_weight.flatten(1)
        float_weight = (float_weight - rows.mean(1).view(-1, 1, 1, 1)) / (rows.std(1).view(-1, 1, 1, 1) + 1e-3)
    elif kind == 'shifted':
        float_weight = layer._get_weight(float_weight)
    binarize_(model, 'bireal')
    signs = float_weight.sign()
    assert torch.equal(weight_levels(model[0]), signs)
    with torch.no_grad():  # the float layer, on signs and with signs: what is padded is padded before the sign of zero, +1
        twin = build()
        twin.bias = None
        seen = model.eval()(x) - model[0].bias.view(-1, *[1] * (x.ndim - 2))
    assert seen.shape == twin(x).shape
    expected = model(x)
    packed = pack_(copy.deepcopy(model))
    assert torch.equal(packed(x), expected)
    assert verify(model, packed, x).ok
    again = load_packed_(copy.deepcopy(model), save_packed(packed, tmp_path / 'packed.safetensors'))
    assert torch.equal(again(x), expected)
    model.train()(x).sum().backward()
    assert model[0].weight.grad.any()


def test_sums_of_a_covered_convolution():
    layer = of_mmcv('Conv2dAdaptivePadding', kernel_size=3, stride=2)
    model, x = nn.Sequential(layer), torch.randn(2, 8, 8, 7)
    binarize_(model, dict(method='binarynet'))
    padded = nn.functional.pad(x, (1, 1, 0, 1))
    signs = [torch.where(value >= 0, 1.0, -1.0) for value in (padded, layer.weight)]
    bias = model[0].bias.view(1, -1, 1, 1)
    assert torch.allclose(model.eval()(x), nn.functional.conv2d(*signs, stride=2) + bias)


@pytest.mark.parametrize('frames', [1, 2])
def test_images_of_before(frames):
    """Mutation: as many zeros in front as without them."""
    model, x = nn.Sequential(of_wan(kernel_size=3, padding=1)), torch.randn(1, 8, 5, 4, 4)
    binarize_(model, 'bireal')
    whole = model.eval()(x)
    parts = [model[0](x[:, :, :3]), model[0](x[:, :, 3:], x[:, :, 3 - frames:3])]
    assert torch.equal(parts[0], whole[:, :, :3])
    assert torch.equal(parts[1], whole[:, :, 3:]) == (frames == 2)
    assert torch.equal(pack_(model)[0](x[:, :, 3:], x[:, :, 3 - frames:3]), parts[1])


def test_a_result_written_to_a_tensor():
    kind = pytest.importorskip('diffusers.models.autoencoders.autoencoder_kl_kvae_video').KVAESafeConv3d
    model, x = nn.Sequential(kind(8, 6, 3)), torch.randn(1, 8, 5, 4, 4)
    binarize_(model, 'bireal')
    expected, place = model.eval()(x), torch.zeros(1, 6, 3, 2, 2)
    packed = pack_(model)
    assert packed[0](x, write_to=place) is place
    assert torch.equal(place, expected)
    assert torch.equal(packed(x), expected)
