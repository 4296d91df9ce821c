"""What only a CUDA device can show; skipped without one."""

import copy

import pytest
import torch
from torch import nn

import bnn_kernels
import bnn_plugins
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')]


@pytest.mark.parametrize('channels', [3, 64, 100, 512])
@pytest.mark.parametrize('stride', [1, 2])
def test_the_operators_give_the_same_integers_on_both_devices(channels, stride):
    x, w = torch.randn(2, channels, 13, 9), torch.randn(24, channels, 3, 3)
    words, bits = bnn_kernels.pack_activations(x), bnn_kernels.pack_weight(w)
    on_cpu = bnn_kernels.binary_conv2d(words, bits, channels, stride, 1)
    on_gpu = bnn_kernels.binary_conv2d(bnn_kernels.pack_activations(x.cuda()), bits.cuda(), channels, stride, 1)
    assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.parametrize('method', bnn_plugins.list_methods())
@pytest.mark.parametrize('size', [7, 56])
def test_the_latent_convolution_adds_signs_exactly(method, size):
    """cuDNN may transform the input of a convolution; then sums of signs would no longer be integers."""
    conv = BinaryConv2d(256, 256, 3, padding=1, bias=False, method=method).cuda().eval()
    x = torch.randn(8, 256, size, size, device='cuda')
    packed = bnn_plugins.pack_(nn.Sequential(copy.deepcopy(conv)))
    assert torch.equal(conv(x), packed(x))


@pytest.mark.parametrize('method', bnn_plugins.list_methods())
def test_a_network_trains_and_packs_on_the_device(method):
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), BinaryConv2d(32, 32, 3, method=method), nn.BatchNorm2d(32),
                          nn.Flatten(), BinaryLinear(32 * 8 * 8, 10, method=method)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(4, 3, 12, 12, device='cuda')
    with torch.autocast('cuda', torch.bfloat16):
        loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    latent = model.eval()(x)
    assert latent.isfinite().all()
    assert torch.equal(bnn_plugins.pack_(model)(x), latent)
