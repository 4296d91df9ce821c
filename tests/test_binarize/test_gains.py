"""Gains of the accumulators and the quantized gradient, against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnn_plugins.binarize import DataDrivenGain, LayerSpec, RankOneGain, build_method, quantize_gradient


class TestRankOne:
    def test_outer_product(self):
        gain = RankOneGain(3, 9, 1, spatial=4)
        for p in gain.parameters():
            p.data.uniform_(0.5, 2)
        c, h, w = (p.detach().numpy() for p in (gain.channel, gain.height, gain.width))
        out = gain(None, torch.zeros(2, 3, 4, 4)).detach().numpy()
        np.testing.assert_allclose(out, c[:, None, None] * h[:, None] * w, rtol=1e-6)

    @given(height=st.integers(1, 9), width=st.integers(1, 9))
    def test_interpolation(self, height, width):
        gain = RankOneGain(1, 1, 1, spatial=4)
        gain.height.data, gain.width.data = torch.tensor([1.0, 2, 4, 3]), torch.tensor([2.0, 1, 1, 5])
        expected = []
        for values, size in ((gain.height, height), (gain.width, width)):
            at = (np.arange(size) + 0.5) * 4 / size - 0.5  # centres of the cells; constant beyond the last ones
            expected.append(np.interp(at, range(4), values.detach().numpy()))
        out = gain(None, torch.zeros(1, 1, height, width)).detach().numpy()
        np.testing.assert_allclose(out[0], np.outer(*expected), rtol=1e-5)

    def test_channels_only(self):
        for gain, acc in ((RankOneGain(3, 4, 1), torch.zeros(2, 3, 5, 5)),
                          (RankOneGain(3, 4, -1, spatial=8), torch.zeros(2, 5, 3))):
            assert [name for name, _ in gain.named_parameters()] == ['channel']
            assert gain.channel.tolist() == [0.5] * 3
            assert torch.broadcast_shapes(gain(None, acc).shape, acc.shape) == acc.shape
            assert (gain(None, acc) * torch.ones_like(acc)).unique().tolist() == [0.5]

    def test_options(self):
        window = dict(kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
        layer = LayerSpec(in_channels=4, out_channels=3, fan_in=9, window=window)
        assert len(list(build_method(dict(type='xnorpp', spatial=None)).gain(layer).parameters())) == 1
        assert len(build_method('xnorpp').gain(layer).height) == 8


class TestDataDriven:
    @pytest.mark.parametrize('channel_dim', [1, -1])
    def test_formula(self, channel_dim):
        gain = DataDrivenGain(6, 16, channel_dim, reduction=2)
        x = torch.randn(2, 6, 5, 4) if channel_dim == 1 else torch.randn(2, 3, 6)
        out = gain(x, None).detach().numpy()
        mean = x.numpy().mean((2, 3)) if channel_dim == 1 else x.numpy()
        w1, w2 = (p.detach().numpy() for p in gain.parameters())
        expected = 1 / (1 + np.exp(-np.maximum(mean @ w1.T, 0) @ w2.T))
        np.testing.assert_allclose(out, expected[:, :, None, None] if channel_dim == 1 else expected, rtol=1e-5)
        assert w1.shape == (8, 6)

    def test_hidden_units(self):
        assert DataDrivenGain(80, 3, 1).squeeze.out_features == 10


class TestGradient:
    """2 max|g| (q_k(g / (2 max|g|) + 1/2 + noise) - 1/2), the maximum per sample."""

    @staticmethod
    def quantized(g, bits):
        x = torch.zeros_like(g, requires_grad=True)
        out = quantize_gradient(x, bits)
        assert torch.equal(out, x)
        out.backward(g)
        return x.grad

    @given(bits=st.integers(1, 8), seed=st.integers(0, 99))
    def test_levels(self, bits, seed):
        g = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1e-3, 1.0, 50]).view(3, 1, 1)
        out = self.quantized(g, bits)
        top = 2**bits - 1
        for sample, q in zip(g, out, strict=True):
            span = 2 * sample.abs().max()
            level = (q / span + 0.5) * top
            torch.testing.assert_close(level, level.round(), atol=1e-3, rtol=0)
            assert level.round().min() >= 0
            assert level.round().max() <= top
            assert ((q - sample).abs() <= span / top + 1e-6 * span).all(), 'never further than one level'

    def test_expectation(self):
        g = torch.tensor([[0.3, -0.1, 0.77, -1.0]])
        draws = torch.cat([self.quantized(g, 2) for _ in range(4000)])
        # One level is 2/3; five standard deviations of the mean. The ends have only one side to be rounded to.
        torch.testing.assert_close(draws.mean(0)[:3], g[0, :3], atol=5 / 3 / 4000**0.5, rtol=0)

    def test_zeros(self):
        assert not self.quantized(torch.zeros(2, 3), 4).any()

    def test_in_a_layer(self):
        """The weight's gradient is that of the quantized gradient; in evaluation and with 32 bits it is exact."""
        from bnn_plugins.layers import BinaryConv2d
        layers = {bits: BinaryConv2d(4, 4, 3, method=dict(type='dorefa', g_bits=bits)) for bits in (1, 32)}
        x, weight = torch.rand(2, 4, 6, 6), layers[32].weight.detach()
        grads = {}
        for bits, layer in layers.items():
            layer.weight.data.copy_(weight)
            (layer(x) * torch.linspace(-1, 1, 2 * 4 * 16).view(2, 4, 4, 4)).sum().backward()
            grads[bits] = layer.weight.grad
        assert not torch.allclose(grads[1], grads[32])
        cosine = torch.nn.functional.cosine_similarity(grads[1].flatten(), grads[32].flatten(), dim=0)
        assert cosine > 0.3


def test_a_spatial_gain_moves_as_its_layer():
    """3x3, padded: the mean magnitude of each pixel's neighbourhood, zeros outside; with a stride, every second of these."""
    from bnn_plugins.layers import BinaryConv2d
    x = torch.randn(1, 4, 5, 4)
    mean = x.abs().mean(1)[0]
    near, far = (BinaryConv2d(4, 8, 3, stride, 1, method='bidm').gain for stride in (1, 2))
    with torch.no_grad():
        result = near(x, None)
        assert result.shape == (1, 1, 5, 4)
        torch.testing.assert_close(result[0, 0, 1, 1], mean[:3, :3].mean())
        torch.testing.assert_close(result[0, 0, 0, 0], mean[:2, :2].sum() / 9)
        torch.testing.assert_close(result[0, 0, 4, 1], mean[3:, :3].sum() / 9)
        torch.testing.assert_close(far(x, None), result[:, :, ::2, ::2])
        far.bias.fill_(0.5)
        torch.testing.assert_close(far(x, None), result[:, :, ::2, ::2] + 0.5)
    pointwise = BinaryConv2d(4, 8, 1, method='bidm').gain
    torch.testing.assert_close(pointwise(x, None)[0, 0].detach(), mean)
