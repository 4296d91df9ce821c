"""Block fusion: the reasons for what is not fused, and errors."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from bnn_plugins import fuse_, pack_
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

from .fuse_nets import small


class TestReasons:
    def rows(self, *layers, **kwargs):
        return fuse_(pack_(nn.Sequential(*layers).eval()), **kwargs).rows

    @pytest.mark.parametrize(('method', 'reason'), [
        (dict(type='dorefa', w_bits=2), r'2-bit weights, 1-bit activations: the fused operators are 1-bit'),
        (dict(type='dorefa', a_bits=2), r'1-bit weights, 2-bit activations'),
        ('binaryconnect', 'real activations: nothing is computed in bits')])
    def test_bits(self, method, reason):
        rows = self.rows(BinaryConv2d(12, 12, 1, method=method), BinaryConv2d(12, 12, 1))
        assert rows['0'].startswith(f'not fused: {reason}')
        assert rows['1'] == 'conv'

    def test_asymmetric_padding(self):
        rows = self.rows(BinaryConv2d(12, 12, 2, padding='same'), BinaryConv2d(12, 12, 3, padding='same'))
        assert rows['0'] == "not fused: padding='same' with an even kernel pads one side more than the other"
        assert rows['1'] == 'conv'

    @pytest.mark.parametrize(('after', 'reason'), [
        (nn.GroupNorm(3, 12), 'GroupNorm 1 stays as it is'), (nn.GELU(), 'GELU 1 stays as it is'),
        (nn.BatchNorm2d(12, track_running_stats=False), 'the norm 1 takes the statistics of the batch'),
        (nn.Hardtanh(-2, 2), 'Hardtanh 1 stays as it is')])
    def test_what_stops_a_chain(self, after, reason):
        assert self.rows(BinaryConv2d(12, 12, 1), after)['0'] == f'conv; {reason}'

    def test_hooks(self):
        model = pack_(nn.Sequential(BinaryConv2d(12, 12, 1), nn.BatchNorm2d(12), BinaryConv2d(12, 12, 1)).eval())
        model[1].register_forward_hook(lambda *_: None)
        model[2].register_forward_hook(lambda *_: None)
        rows = fuse_(model).rows
        assert rows == {'0': 'conv; 1 has forward hooks', '2': 'not fused: has forward hooks'}

    def test_a_norm_behind_the_shortcut(self):
        class Late(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = BinaryConv2d(12, 12, 1), nn.BatchNorm2d(12)

            def forward(self, x):
                return self.norm(self.conv(x) + x)

        assert fuse_(pack_(Late().eval())).rows == {'conv': 'conv, shortcut; the norm norm comes after the shortcut'}

    def test_what_forward_does_not_call_is_fused_by_itself(self):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.spare = BinaryConv2d(12, 12, 1), BinaryConv2d(12, 12, 1)

            def forward(self, x):
                return self.conv(x)

        assert fuse_(pack_(Idle().eval())).rows == {'conv': 'conv', 'spare': 'conv'}

    def test_the_table(self):
        report = fuse_(pack_(small(nn.Hardtanh(), None)), exclude=['3'])
        assert report.summary() == '1 of 2 packed layers fused'
        text = str(report)
        assert "not fused: excluded by '3'" in text
        assert 'conv, norm, Hardtanh' in text
        assert report.summary() in text


class TestErrors:
    def test_latent(self):
        with pytest.raises(ValueError, match='this Sequence is latent: pack_ it first, then fuse_ it'):
            fuse_(small(None))

    def test_nothing_packed(self):
        with pytest.raises(ValueError, match='this Linear has no packed layer: binarize_ and pack_ it first'):
            fuse_(nn.Linear(2, 2))

    def test_unknown_pattern(self):
        with pytest.raises(ValueError, match="exclude: the pattern 'layer9' matches no packed layer"):
            fuse_(pack_(small(None)), exclude=['layer9'])

    def test_dtype(self):
        with pytest.raises(TypeError, match=r'stream_dtype must be torch.float32, bfloat16 or float16, but got torch.float64'):
            fuse_(pack_(small(None)), stream_dtype=torch.float64)


@pytest.mark.parametrize(('widths', 'said'), [((64, 64), True), ((1024, 1024), False), ((64, 64, 64), False)])
def test_the_report_says_where_a_linear_layer_does_not_pay(widths, said):
    """Mutations: of any size; of each layer of a network."""
    model = nn.Sequential(*(BinaryLinear(a, b, method='bireal') for a, b in pairwise(widths))).eval()
    report = fuse_(pack_(model))
    assert [('slower than nn.Linear for one row' in text) for text in report.rows.values()] == [said] * (len(widths) - 1)
