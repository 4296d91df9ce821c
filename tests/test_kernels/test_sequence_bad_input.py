"""Recurrent networks and attention: bad input is answered with one sentence."""

import pytest
import torch

import bnn_kernels as bk

pytestmark = pytest.mark.sanitize
LSTM = dict(x=torch.zeros(2, 3, 1, 160), w_words=torch.zeros(1, 160, 2).int(), scale=torch.zeros(1, 160), scale_x=None,
            bias=None, threshold=None, eps=None, gates='soft', candidate='tanh', readout='tanh', feedback='h',
            h_words=torch.zeros(1, 3, 2).int(), cell=torch.zeros(1, 3, 40), lengths=None, pack=False, keep=True)
ATTENTION = dict(q_words=torch.zeros(2, 5, 3, 2).int(), k_words=torch.zeros(2, 40, 3, 2).int(),
                 v_words=torch.zeros(2, 3, 8, 2).int(), head_dim=48, rules=['bool'],
                 limit=torch.zeros(1, 3, dtype=torch.float64), table=None, scale=None, mask_words=None)


@pytest.mark.parametrize(('op', 'change', 'error', 'sentence'), [
    ('binary_lstm', dict(x=torch.zeros(2, 3, 160)), ValueError, r'takes x \[T, N, D, 4 \* units\] .* x\.unflatten'),
    ('binary_lstm', dict(x=torch.zeros(2, 3, 1, 160).half()), TypeError, r'float32 or the int32 sums of binary_linear'),
    ('binary_lstm', dict(x=torch.zeros(2, 3, 1, 80)), ValueError, r'must be \[T, N, D, 160\] or'),
    ('binary_lstm', dict(gates='hard'), ValueError, "Unknown gates 'hard': did you mean"),
    ('binary_lstm', dict(candidate='Tanh'), ValueError, "did you mean 'tanh'"),
    ('binary_lstm', dict(readout='cel'), ValueError, "did you mean 'cell'"),
    ('binary_lstm', dict(feedback='and'), ValueError, "needs a binary output gate, got gates='soft'"),
    ('binary_lstm', dict(cell=torch.zeros(1, 3, 40).to(torch.int8)), ValueError, 'an int8 cell counts: it needs'),
    ('binary_lstm', dict(cell=torch.zeros(1, 3, 41)), ValueError, r'cell must be \[1, 3, 40\], one element per unit'),
    ('binary_lstm', dict(w_words=torch.zeros(1, 120, 2).int()), ValueError, 'stack the gates i, f, g, o'),
    ('binary_lstm', dict(lengths=torch.zeros(2, dtype=torch.int64)), ValueError, r'lengths must be \[3\]'),
    ('binary_lstm', dict(eps=-1.0), ValueError, 'eps must be at least 0'),
    ('binary_lstm', dict(keep=False), ValueError, 'leave nothing to return'),
    ('binary_attention', dict(q_words=torch.zeros(2, 5, 2).int()), ValueError, 'pack queries and keys with pack_heads'),
    ('binary_attention', dict(v_words=torch.zeros(2, 3, 8, 3).int()), ValueError, 'packed along the keys'),
    ('binary_attention', dict(rules=['boolean']), ValueError, "Unknown rule 'boolean': did you mean 'bool'"),
    ('binary_attention', dict(rules=['bool', 'bool']), ValueError, '1 planes and there are 2 rules'),
    ('binary_attention', dict(limit=torch.zeros(1, 3)), TypeError, 'limit must be torch.float64'),
    ('binary_attention', dict(rules=['elastic']), ValueError, 'needs one from attention_table; got elastic without a table'),
    ('binary_attention', dict(table=torch.zeros(1, 49).int()), ValueError, 'got bool with a table'),
    ('binary_attention', dict(rules=['bool'] * 2, limit=torch.zeros(2, 3, dtype=torch.float64)), ValueError,
     r'2 planes of attention are added with their scales: give scale \[2, 3\]'),
    ('binary_attention', dict(mask_words=torch.zeros(2, 4, 2).int()), ValueError, r'mask_words must be \[2, 5, 2\]'),
    ('binary_attention', dict(head_dim=65), ValueError, r'q_words must be \[2, 5, 3, 3\], 65 signs per head'),
    ('binary_attention', dict(k_words=torch.zeros(2, 40, 3, 2, device='meta').int()), ValueError, 'move both to one device'),
])
def test_bad_input_is_one_sentence(op, change, error, sentence):
    call = {'binary_lstm': LSTM, 'binary_attention': ATTENTION}[op]
    getattr(torch.ops.bnn_kernels, op)(*call.values())
    with pytest.raises(error, match=sentence) as caught:
        getattr(torch.ops.bnn_kernels, op)(*(call | change).values())
    assert '\n' not in str(caught.value)


def test_tables_and_helpers_refuse_what_they_cannot_do():
    for scale in -0.1, float('inf'), torch.tensor([0.1, float('nan')]):
        with pytest.raises(ValueError, match='finite scales of at least 0'):
            bk.attention_table(scale, 8)
    with pytest.raises(ValueError, match=r'take x \[B, N, heads \* d\]'):
        bk.pack_heads(torch.randn(3, 8), 2)
    for pack in bk.pack_heads, bk.pack_values:
        with pytest.raises(ValueError, match='groups=3 does not divide channels=8'):
            pack(torch.randn(2, 3, 8), 3)
        with pytest.raises(ValueError, match='threshold'):
            pack(torch.randn(2, 3, 8), 2, torch.zeros(4))
    with pytest.raises(ValueError, match=r'takes a mask \[B, M\]'):
        bk.pack_mask(torch.ones(3, dtype=torch.bool))
