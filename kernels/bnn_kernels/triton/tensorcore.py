"""Backend 'triton-tensorcore': fused 1-bit convolutions on the 1-bit tensor cores of NVIDIA's Ampere, Ada and Hopper.

Two ways lead Triton to the 1-bit MMA. `mma.sync` is reached by inline assembly, through Triton's public interface. `wgmma`,
on Hopper only, is reached by rewriting the PTX of an int8 product (`tensorcore_rewrite`). BNN_KERNELS_WGMMA=0 leaves that off.
"""

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl

from ..dispatch import Backend
from ..epilogue import Epilogue
from ..geometry import Conv2dGeometry, Pair, linear_geometry
from . import device, tensorcore_kernels, tensorcore_rewrite
from .launch import Launch, Planned, aligned, block_call, extent, operator, words_shape
from .tensorcore_tables import operands
from .versions import gluon_refusal

SHARED_BYTES = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 7): 163 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}  # CUDA guide
ELEMENTS = {torch.float32: gl.float32, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
TERMS_LIMIT = 2**22  # a sum below it can be made a float by adding it to the bits of a larger one
INDEX_LIMIT = 2**31  # offsets in the kernels are int32
WARPS = 4
XNOR_WORDS = 24  # of a window: see `operation`
NO_VECTORS = (None,) * 6


class Machine(NamedTuple):
    """What decides about kernels and tiles."""

    capability: tuple[int, int]
    processors: int  # streaming multiprocessors
    wgmma: bool  # whether PTX may be rewritten, which leads to wgmma on 9.0


class TensorCore(Planned, Backend):
    """`machine` and `launch` are for tests and profiles, which compile and emulate what a GPU would run.

    `launch` takes a `Launch` and its tensors.
    """

    name = 'triton-tensorcore'

    def __init__(self, machine: Machine | None = None, launch: Callable[..., None] = Launch.__call__):
        self.machine, self.launch = machine, launch

    def available(self):
        if reason := gluon_refusal():
            return False, reason
        if not device.is_there() or torch.version.hip:
            return False, 'triton-tensorcore needs an NVIDIA GPU, and torch sees none'
        return True, ''

    def supports(self, op, **call):
        able, reason = super().supports(op, **call)
        if able:
            reason = self._refusal(op, call)
        return not reason, reason

    @operator
    def binary_conv2d(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Callable[..., Tensor]:
        sizes = extent(geometry.shape(x_words.shape), torch.channels_last)
        run = self._convolution('sums', x_words, geometry)

        def call(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
            sums = x_words.new_empty_strided(*sizes)
            run(x_words, w_words, result=sums)
            return sums
        return call

    @operator
    def binary_conv2d_sign(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor,
                           flip: Tensor | None, out_groups: int) -> Callable[..., Tensor]:
        sizes = extent(words_shape(x_words, geometry, len(threshold), out_groups))
        run = self._convolution('sign', x_words, geometry, len(threshold))

        def call(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor, flip: Tensor | None,
                 out_groups: int) -> Tensor:
            words = x_words.new_empty_strided(*sizes)
            run(x_words, w_words, threshold, flip, words=words)
            return words
        return call

    @operator
    def binary_block2d(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue,
                       shortcut: Tensor | None, dtype: torch.dtype, pack: bool, keep: bool,
                       out: Tensor | None = None) -> Callable[..., tuple[Tensor, Tensor]]:
        run = self._convolution('block', x_words, geometry, epilogue.width, epilogue.act, dtype)

        def fill(x_words: Tensor, w_words: Tensor, words: Tensor | None, out: Tensor | None, *behind: Tensor | None) -> None:
            run(x_words, w_words, None, None, words, out, *behind)
        return block_call(x_words, geometry, epilogue, dtype, pack, keep, fill)

    @operator
    def binary_linear(self, x_words: Tensor, w_words: Tensor, features: int) -> Callable[..., Tensor]:
        *lead, words = x_words.shape
        outputs = len(w_words)
        sizes = extent((*lead, outputs))
        run = self._convolution('sums', x_words.reshape(prod(lead), 1, 1, words), linear_geometry(features, outputs))

        def call(x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
            sums = x_words.new_empty_strided(*sizes)
            run(x_words, w_words, result=sums)
            return sums
        return call

    def _convolution(self, mode: str, x_words: Tensor, geometry: Conv2dGeometry, *behind) -> Callable[..., None]:
        """What fills the results of convolutions of words like `x_words`."""
        if not prod(geometry.shape(x_words.shape)):
            return lambda *tensors, **named: None
        launch, settings = plan(self._machine(x_words), mode, x_words.shape, geometry, *behind)
        place = x_words.device

        def run(x_words: Tensor, w_words: Tensor, level: Tensor | None = None, flip: Tensor | None = None,
                words: Tensor | None = None, result: Tensor | None = None, shortcut: Tensor | None = None,
                *vectors: Tensor | None) -> None:
            ready, x_words = operands(w_words, level, flip, *settings), aligned(x_words)
            with device.on(place):
                self.launch(launch, x_words, ready.weight, ready.table, words, result,
                            shortcut, *(vectors or NO_VECTORS), ready.flip)
        return run

    def _machine(self, x_words: Tensor) -> Machine:
        return self.machine or machine_of(x_words.device)

    def _refusal(self, op: str, call: dict) -> str:
        """Why this call cannot run here; '' where it can."""
        x_words, w_words = call['x_words'], call['w_words']
        if self.machine is None and not device.holds(x_words.device):
            return f'triton-tensorcore needs CUDA tensors, got {x_words.device}'
        machine = self._machine(x_words)
        if machine.capability not in SHARED_BYTES:
            have = ', '.join(f'{major}.{minor}' for major, minor in SHARED_BYTES)
            return f'1-bit MMA exists on compute capability {have}, and this GPU has {_dotted(machine.capability)}'
        if op == 'binary_linear':
            x_words, geometry = x_words.reshape(-1, 1, 1, x_words.shape[-1]), linear_geometry(call['features'], len(w_words))
        else:
            geometry = call['geometry']
        if geometry.groups != 1:
            return f'triton-tensorcore has no groups, got groups={geometry.groups}'
        if geometry.outputs % 32:
            return f'triton-tensorcore needs a multiple of 32 output channels, got {geometry.outputs}'
        if geometry.taps > 30:
            return f'triton-tensorcore has at most 30 taps, got a kernel of {geometry.kernel[0]} x {geometry.kernel[1]}'
        for size, padding, dilation in zip(geometry.kernel, geometry.padding, geometry.dilation, strict=True):
            if padding and not (size in (2, 3) and padding <= dilation):
                return (f'triton-tensorcore pads kernels of 2 and 3 taps by up to one tap, got padding={padding} for {size} '
                        f'taps and dilation={dilation}')
        if geometry.terms >= TERMS_LIMIT:
            return f'triton-tensorcore sums fewer than 2**22 terms, got {geometry.terms}'
        width, out_groups = geometry.outputs, 1
        if op == 'binary_conv2d_sign':
            width, out_groups = len(call['threshold']), call['out_groups']
        elif op == 'binary_block2d':
            width, out_groups = call['epilogue'].width, call['epilogue'].out_groups
            if call['epilogue'].act == 'silu':
                return 'triton-tensorcore has no silu'
        if out_groups > 1 and width // out_groups % 32:
            return (f'triton-tensorcore packs whole words per output group, got {width} channels in {out_groups} groups')
        batch, _, *sizes = geometry.shape(x_words.shape)
        if max(batch * prod(sizes) * width, 4 * x_words.numel(), batch * prod(sizes) * 2) >= INDEX_LIMIT:
            return 'triton-tensorcore counts in int32, and the tensors of this call are larger: split the batch'
        if not _block_n(machine, geometry.outputs, geometry.taps * geometry.words, 'sums'):
            return (f'the weights of 32 channels do not fit into the shared memory of compute capability '
                    f'{_dotted(machine.capability)}')
        return ''


def machine_of(place: torch.device) -> Machine:
    return Machine(device.capability(place) or (0, 0), device.processors(place),
                   os.environ.get('BNN_KERNELS_WGMMA', '1') != '0' and not tensorcore_rewrite.refusal())


def plan(machine: Machine, mode: str, x_shape: Sequence[int], geometry: Conv2dGeometry, channels: int | None = None,
         act: str = 'identity', dtype: torch.dtype = torch.float32) -> tuple[Launch, tuple]:
    """The launch for one kind of call, and the settings of `operands` for it.

    Args:
        machine: what it is for.
        mode: 'sums' (int32), 'sign' (integer thresholds) or 'block' (float epilogue).
        x_shape: of the words.
        channels: P, O or a multiple of it.
        act, dtype: as in the operators.
    """
    batch, outputs, out_height, out_width = geometry.shape(x_shape)
    _, height, width, count = x_shape
    wgmma = machine.wgmma and machine.capability == (9, 0)
    if wgmma:
        tensorcore_rewrite.install()
    words = geometry.taps * count
    op = operation(machine, mode, words, (channels or outputs) // outputs)
    pixels = batch * out_height * out_width
    # With mma.sync every warp reads all weights from shared memory: two rows of MMAs per warp halve that.
    block_m = 128 if op == 'xor' and mode == 'sign' and pixels >= 256 * machine.processors else 64
    block_n = _block_n(machine, outputs, words, mode if block_m == 64 else 'tall')
    border = any(geometry.padding) and geometry.pad_value != -1
    tiles = triton.cdiv(pixels, block_m)
    blocks = outputs // block_n
    at_once = machine.processors * residents(machine, mode, op, words, block_m, block_n)
    numbers = dict(
        pixels=pixels, tiles=tiles, height=height, width=width, out_width=out_width, out_pixels=out_height * out_width,
        **divisor('image', out_height * out_width), **divisor('row', out_width), WORDS=count,
        **_pair('KERNEL', geometry.kernel), **_pair('STRIDE', geometry.stride), **_pair('PAD', geometry.padding),
        **_pair('DILATION', geometry.dilation), BORDER=border, MODE=mode, OP=op, ACT=act, ELEMENT=ELEMENTS[dtype],
        OUTPUTS=outputs, REPLICAS=(channels or outputs) // outputs, BLOCK_M=block_m, BLOCK_N=block_n, WARPS=WARPS)
    launch = Launch(tensorcore_kernels.conv_wgmma if wgmma else tensorcore_kernels.conv_mma,
                    min(tiles, max(1, at_once // blocks)) * blocks, numbers, num_warps=WARPS, enable_fp_fusion=False)
    return launch, (geometry, border, mode, op, block_n, wgmma)


def operation(machine: Machine, mode: str, words: int, replicas: int) -> str:
    """What the products of bits count: 'xor' differing ones; on Hopper, which has no XOR, 'and' pairs of ones, or 'xnor' equal
    ones, by two products. Those cost less than what they save: counts that start from the table need nothing behind them but
    their sign bits."""
    if machine.capability != (9, 0):
        return 'xor'
    return 'xnor' if machine.wgmma and mode == 'sign' and replicas == 1 and words <= XNOR_WORDS else 'and'


def residents(machine: Machine, mode: str, op: str, words: int, block_m: int, block_n: int) -> int:
    """Blocks that a multiprocessor holds at a time, by registers (of what Triton 3.6 makes of the kernels) and shared memory.

    More would wait for the first ones to finish, and each walks over its tiles as if all ran together.
    """
    wide = block_m * block_n > 64 * 64
    if machine.wgmma:
        few = wide or words >= 288 or (mode == 'block' and words >= 144)
        registers = 2 if few else 5 if op == 'xnor' else 4 if words < 36 else 3
    elif words >= 288 or (wide and words >= 144) or (block_m == 128 and words >= 72):
        registers = 2
    else:
        registers = 3 if wide or words >= 72 else 4
    shared = _weight_bytes(2 * words if op == 'xnor' else words, block_n) + 1024
    return max(1, min(registers, SHARED_BYTES[machine.capability] // shared))


def divisor(name: str, value: int) -> dict[str, int]:
    """Multiplier and shift of `tensorcore_kernels._divide`: n // d = (2 n * m >> 32) >> s for all n < 2**31.

    With s = ceil(log2 d) and m = ceil(2**(31 + s) / d), which has 32 bits: Granlund and Montgomery, "Division by invariant
    integers using multiplication", 1994.
    """
    shift = (value - 1).bit_length()
    multiplier = -(-2**(31 + shift) // value)
    return {f'{name}_multiplier': multiplier - 2**32 if multiplier >= 2**31 else multiplier, f'{name}_shift': shift}


def _dotted(capability: tuple[int, int]) -> str:
    return '.'.join(map(str, capability))


def _pair(name: str, pair: Pair) -> dict[str, int]:
    return {f'{name}_H': pair[0], f'{name}_W': pair[1]}


def _weight_bytes(words: int, block_n: int) -> int:
    return triton.cdiv(words, 16) * 64 * block_n


def _block_n(machine: Machine, outputs: int, words: int, mode: str) -> int:
    """Channels per block: the widest that divides them and fits, 0 where none does.

    128 leave registers for signs only, and on Hopper none for the words of a large window.
    """
    widest = 128 if mode == 'sign' and words >= 36 and not (machine.wgmma and words >= 144) else 64
    for block_n in (128, 64, 32):
        if block_n <= widest and outputs % block_n == 0 and _weight_bytes(words, block_n) <= SHARED_BYTES[machine.capability]:
            return block_n
    return 0
