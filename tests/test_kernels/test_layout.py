import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels import layout

from . import oracle

PROPERTY = settings(deadline=None, max_examples=40)
CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([31, 32, 33, 63, 64, 65, 96, 129]))


def test_version_1_is_pinned():
    """A change of these literals is a new layout: raise LAYOUT_VERSION, or packed files read wrong."""
    assert (bk.LAYOUT_VERSION, bk.WORD_BITS) == (1, 32)
    x = -torch.ones(1, 34)
    x[0, [0, 5, 31, 33]] = 1
    assert bk.pack_features(x).tolist() == [[(1 | 1 << 5 | 1 << 31) - 2**32, 2]]
    image = x[:, :, None, None]
    assert bk.pack_activations(image, groups=2).tolist() == [[[[1 | 1 << 5, 1 << 14 | 1 << 16]]]]  # 17 channels a group


@PROPERTY
@given(per_group=CHANNELS, groups=st.integers(1, 3), seed=oracle.SEEDS)
def test_words_are_built_bit_by_bit(per_group, groups, seed):
    x = oracle.values(seed, 2, per_group * groups)
    packed = layout.pack_bits(x >= 0, groups)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [oracle.words(row, groups) for row in oracle.signs(x).tolist()]
    assert torch.equal(layout.unpack_bits(packed, per_group * groups, groups), x >= 0)
    assert torch.equal(layout.unpack_signs(packed, per_group * groups, groups), oracle.signs(x).float())


@PROPERTY
@given(outputs=st.integers(1, 4), channels=CHANNELS, taps=st.sampled_from([(), (1, 1), (3, 2), (5,)]), seed=oracle.SEEDS)
def test_weight_round_trip(outputs, channels, taps, seed):
    weight = oracle.values(seed, outputs, channels, *taps)
    packed = bk.pack_weight(weight)
    assert packed.shape == (outputs, *taps, layout.words_per_group(channels))
    unpacked = bk.unpack_weight(packed, channels)
    assert unpacked.dtype == torch.float32
    assert unpacked.is_contiguous()
    assert torch.equal(unpacked, oracle.signs(weight).float())
    last = oracle.signs(weight)[(-1, slice(None), *(-1 for _ in taps))]
    assert packed[(-1, *(-1 for _ in taps))].tolist() == oracle.words(last.tolist())


def test_zero_is_plus_one_and_nan_is_minus_one():
    x = torch.tensor([0.0, -0.0, float('nan'), -1e-45, 1e-45, float('inf'), -float('inf')])
    expected = [1, 1, -1, -1, 1, 1, -1]
    assert layout.unpack_signs(bk.pack_features(x), 7).tolist() == expected
    assert bk.unpack_weight(bk.pack_weight(x[None]), 7).tolist() == [expected]


@pytest.mark.parametrize('groups', [1, 2, 3])
def test_transpose_weight_swaps_the_channels_of_each_group(groups):
    channels, outputs = 4 * groups, 5 * groups
    weight = torch.randn(channels, outputs // groups, 2, 3)
    swapped = bk.transpose_weight(weight, groups)
    assert swapped.shape == (outputs, channels // groups, 2, 3)
    for c in range(channels):
        group = c // 4
        for o in range(5):
            assert torch.equal(swapped[group * 5 + o, c % 4], weight[c, o])
    assert torch.equal(bk.transpose_weight(swapped, groups), weight)


@pytest.mark.parametrize(('call', 'error', 'sentence'), [
    (lambda: layout.words_per_group(10, 3), ValueError, 'groups=3 does not divide channels=10: choose'),
    (lambda: layout.words_per_group(0), ValueError, 'must be at least 1'),
    (lambda: layout.pack_bits(torch.zeros(3)), TypeError, 'takes bool, got torch.float32: compare first'),
    (lambda: layout.unpack_bits(torch.zeros(3), 3), TypeError, 'takes int32 words, got torch.float32: pack'),
    (lambda: bk.unpack_weight(torch.zeros(2, 3, dtype=torch.int32), 40), ValueError, 'take 2 words, got 3: give'),
    (lambda: bk.pack_weight(torch.ones(2, 3, dtype=torch.int8)), TypeError, 'floating point weight, got torch.int8: pass'),
    (lambda: bk.pack_weight(torch.ones(3)), ValueError, r'takes \[O, C, ...\], got \[3\]: give'),
    (lambda: bk.transpose_weight(torch.ones(3, 2, 1, 1), 2), ValueError, 'groups=2 does not divide'),
])
def test_errors_say_what_to_do(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
