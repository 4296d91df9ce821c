"""The bit layout, version 1: how signs become words. Every backend and every packed file agrees on this file.

* A word is an int32, least significant bit first: channel `c` of a group sits in bit `c % 32` of word `c // 32`.
* Bit 1 is +1 and stands for a value >= 0, so zero and negative zero are +1. Bit 0 is -1. NaN is -1, because NaN >= 0 is false.
* The channels of each group are filled up to whole words with zero bits, in activations and in weights alike, so that these
  bits vanish under XOR and under AND. Backends rely on it: words that were not made here must keep it.

| tensor | float | words |
|---|---|---|
| activation | `[N, C, H, W]` | `[N, H, W, groups * words]` |
| features | `[..., C]` | `[..., words]` |
| convolution weight | `[O, C / groups, kH, kW]` | `[O, kH, kW, words]` |
| transposed convolution weight | `[C, O / groups, kH, kW]` | `[O, kH, kW, words]`, through `transpose_weight`, taps in place |
| linear weight | `[O, C]` | `[O, words]` |

where `words = words_per_group(C, groups)`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LAYOUT_VERSION = 1
WORD_BITS = 32


def words_per_group(channels: int, groups: int = 1) -> int:
    """Words that the channels of one group take. Raises ValueError where `groups` does not divide `channels`."""
    if channels < 1 or groups < 1:
        raise ValueError(f'channels and groups must be at least 1, got channels={channels} and groups={groups}.')
    if channels % groups:
        raise ValueError(f'groups={groups} does not divide channels={channels}: choose a group count that does.')
    return (channels // groups + WORD_BITS - 1) // WORD_BITS


def pack_bits(bits: Tensor, groups: int = 1) -> Tensor:
    """Bool `[..., C]` to int32 `[..., groups * words]`. Raises TypeError: not bool. ValueError: groups do not divide C.

    Example:
        >>> pack_bits(torch.tensor([[True, False, True]]))
        tensor([[5]], dtype=torch.int32)
    """
    if bits.dtype != torch.bool:
        raise TypeError(f'pack_bits takes bool, got {bits.dtype}: compare first, for example x >= 0.')
    *lead, channels = bits.shape
    words = words_per_group(channels, groups)
    filled = F.pad(bits.reshape(*lead, groups, channels // groups), (0, words * WORD_BITS - channels // groups))
    lanes = filled.reshape(*lead, groups * words, WORD_BITS).to(torch.int32)
    return (lanes << _shifts(bits.device)).sum(-1, dtype=torch.int32)  # no two lanes share a bit: the sum is an OR


def unpack_bits(words: Tensor, channels: int, groups: int = 1) -> Tensor:
    """Int32 `[..., groups * words]` to bool `[..., C]`, the inverse of `pack_bits`.

    Raises TypeError for another dtype, ValueError for a word count that does not belong to `channels` and `groups`.
    """
    if words.dtype != torch.int32:
        raise TypeError(f'unpack_bits takes int32 words, got {words.dtype}: pack with pack_bits first.')
    *lead, count = words.shape
    per_group = words_per_group(channels, groups)
    if count != groups * per_group:
        raise ValueError(f'{channels} channels in {groups} group(s) take {groups * per_group} words, got {count}: '
                         f'give the channels and groups that the words were packed with.')
    bits = (words.unsqueeze(-1) >> _shifts(words.device)) & 1
    lanes = bits.reshape(*lead, groups, per_group * WORD_BITS)[..., :channels // groups]
    return lanes.reshape(*lead, channels).bool()


def unpack_signs(words: Tensor, channels: int, groups: int = 1) -> Tensor:
    """Int32 `[..., groups * words]` to float32 `[..., C]` of -1 and +1. Raises as `unpack_bits`."""
    return unpack_bits(words, channels, groups).to(torch.float32) * 2 - 1


def pack_weight(weight: Tensor) -> Tensor:
    """The signs of a float weight as words.

    Args:
        weight: `[O, C / groups, kH, kW]` of a convolution or `[O, C]` of a linear layer; that of a transposed convolution goes
            through `transpose_weight` first. Scales are not in the words: they are applied after the integer operator.

    Returns:
        int32 `[O, kH, kW, words]` or `[O, words]`.

    Raises:
        TypeError: the weight is not floating point.
        ValueError: it has fewer than two dimensions.

    Example:
        >>> pack_weight(torch.randn(64, 40, 3, 3)).shape
        torch.Size([64, 3, 3, 2])
    """
    if not weight.is_floating_point():
        raise TypeError(f'pack_weight takes a floating point weight, got {weight.dtype}: pass the latent or the +-1 weight.')
    if weight.dim() < 2:
        raise ValueError(f'pack_weight takes [O, C, ...], got {list(weight.shape)}: give the weight its output dimension.')
    return pack_bits(weight.movedim(1, -1) >= 0)


def unpack_weight(words: Tensor, channels_per_group: int) -> Tensor:
    """Words back to a weight of -1 and +1.

    Args:
        words: int32 `[O, kH, kW, words]` or `[O, words]`.
        channels_per_group: input channels of one group, C / groups.

    Returns:
        float32 `[O, C / groups, kH, kW]` or `[O, C]`, contiguous. Raises as `unpack_bits`.

    Example:
        >>> unpack_weight(pack_weight(torch.tensor([[0.5, -2.0, 0.0]])), 3)
        tensor([[ 1., -1.,  1.]])
    """
    return unpack_signs(words, channels_per_group).movedim(-1, 1).contiguous()


def transpose_weight(weight: Tensor, groups: int = 1) -> Tensor:
    """Swaps input and output channels of a grouped weight: `[C, O / groups, kH, kW]` to `[O, C / groups, kH, kW]`, and back.

    `pack_weight(transpose_weight(m.weight, m.groups))` packs an `nn.ConvTranspose2d`, so that its words too run along the
    channels that are summed over. Taps keep their place. Raises ValueError where `groups` does not divide dimension 0.

    Example:
        >>> transpose_weight(torch.randn(6, 4, 3, 3), groups=2).shape
        torch.Size([8, 3, 3, 3])
    """
    words_per_group(weight.shape[0], groups)  # raises where groups does not divide
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(WORD_BITS, dtype=torch.int32, device=device)
