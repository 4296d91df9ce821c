"""Every backend against the reference, bit by bit, on the device; ``--small`` is for compute-sanitizer."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, product

import torch

import bnn_kernels as bk
from bnn_kernels import layout, recurrence, reference
from bnn_kernels.geometry import Conv2dGeometry

from .supervise import Rows

BACKENDS = ('triton-tensorcore', 'triton-bitplane', 'triton-popcount')
SIZES = ((2, 13, 17), (12, 56, 56), (3, 7, 7))  # batch, height, width; the second one's tiles are tall where they may be
CHANNELS = (64, 32, 96, 128, 256, 512, 1024)
GEOMETRIES = (  # kernel, stride, padding, dilation, groups, pad_value
    (3, 1, 1, 1, 1, 0), (3, 2, 1, 1, 1, 0), (1, 1, 0, 1, 1, 0), (3, 1, 1, 1, 1, 1), (3, 1, 1, 1, 1, -1), (3, 1, 2, 2, 1, 0),
    (5, 1, 2, 1, 1, 0), (3, 1, 1, 1, 2, 0))
PAIRS = [(channels, GEOMETRIES[0]) for channels in CHANNELS] + [(CHANNELS[0], geometry) for geometry in GEOMETRIES[1:]]
REAL_LAYERS = (  # channels, outputs, kernel, stride, groups
    (3, 64, 7, 2, 1), (64, 64, 3, 1, 1), (256, 48, 1, 1, 1), (96, 96, 3, 2, 96), (128, 128, 3, 1, 32))
SMALL = 1, 6, 7
HEADS, HEAD_DIM = 4, 64
BLOCKS = (('prelu', torch.float16, True, 1), ('prelu', torch.bfloat16, True, 4), ('hardtanh', torch.float32, True, 1),
          ('relu', torch.float16, False, 2), ('identity', torch.bfloat16, False, 1))


def cases(device: torch.device, sizes: Sequence[tuple[int, int, int]] = SIZES) -> Iterator[tuple[str, dict]]:
    """Operators and their arguments: every width with the first geometry, every geometry with the first width."""
    for channels, geometry in PAIRS:
        for size in sizes:
            yield from _cases(device, channels, geometry, size)


def small_cases(device: torch.device) -> Iterator[tuple[str, dict]]:
    """Some widths and geometries on one small image."""
    for channels, geometry in PAIRS:
        if channels in CHANNELS[::3] and geometry in GEOMETRIES[:2]:
            yield from _cases(device, channels, geometry, SMALL)


def _cases(device, channels, geometry, size):
    kernel, stride, padding, dilation, groups, pad_value = geometry
    draw = torch.Generator(device).manual_seed(channels)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, device=device)

    batch, height, width = size
    image = normal(batch, channels, height, width)
    call = dict(x_words=reference.pack_activations(image, groups=groups),
                w_words=layout.pack_weight(normal(channels, channels // groups, kernel, kernel)), channels=channels)
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, pad_value=pad_value)
    yield 'binary_conv2d', call | options
    yield 'binary_conv2d_sign', call | options | dict(threshold=(30 * normal(channels)).int(), flip=normal(channels) < 0)
    if geometry != GEOMETRIES[0]:
        return
    out_height, out_width = Conv2dGeometry(channels, channels, kernel, **options).size((height, width))
    for act, dtype, shortcut, replicas in BLOCKS:
        vector = normal(6, channels * replicas)
        prelu = list(vector[2:5]) if act == 'prelu' else [None] * 3
        stream = normal(batch, out_height, out_width, channels * replicas).permute(0, 3, 1, 2).to(dtype) if shortcut else None
        epilogue = bk.Epilogue(0.1 * vector[0], vector[1], act, *prelu, vector[5])
        yield 'binary_block2d', call | options | dict(epilogue=epilogue, shortcut=stream, dtype=dtype)


def sequences(device: torch.device, small: bool) -> Iterator[tuple[str, dict]]:
    """LSTMs with all kinds of gates, attentions by all rules, packing behind a norm."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, device=device)

    for units, steps, batch in ((64, 3, 2),) if small else ((512, 20, 8), (96, 9, 33)):
        for gates, candidate in product(recurrence.GATES, recurrence.CANDIDATES):
            vectors, threshold = 0.1 * normal(3, 1, 4 * units), 0.1 * normal(1, units)
            yield 'binary_lstm', dict(
                x=normal(steps, batch, 1, 4 * units), w_words=bk.pack_features(normal(1, 4 * units, units)), pack=True,
                recurrence=bk.Recurrence(*vectors, threshold, gates=gates, candidate=candidate))
    for tokens in (33,) if small else (256, 1023):
        q, k, v = normal(3, 2, tokens, HEADS * HEAD_DIM)
        call = dict(q_words=bk.pack_heads(q, HEADS), k_words=bk.pack_heads(k, HEADS), v_words=bk.pack_values(v, HEADS),
                    head_dim=HEAD_DIM)
        one = torch.ones(1, HEADS, dtype=torch.float64, device=device)
        table = bk.attention_table(HEAD_DIM ** -0.5, HEAD_DIM).to(device)
        for rule, limit in ('bool', one), ('max_relative', 11 * one), ('elastic', one / tokens):
            yield 'binary_attention', call | dict(limit=limit, rule=rule, table=table if rule == 'elastic' else None)
    x = normal(70, 200)
    yield 'pack_normalized', dict(x=x, mean=x.mean(-1), std=x.std(-1), threshold=normal(200), flip=normal(200) < 0)


def real_layers(device: torch.device, size: tuple[int, int, int]) -> Iterator[tuple[str, dict]]:
    """Convolutions in int8: an image, a wide one, rows, a depthwise and a grouped one, each with both kinds of results."""
    draw = torch.Generator(device).manual_seed(0)
    batch, height, width = size

    def byte(dtype, *shape):
        ends = torch.iinfo(dtype)
        return torch.randint(ends.min, ends.max + 1, shape, generator=draw, device=device, dtype=dtype)

    for channels, outputs, kernel, stride, groups in REAL_LAYERS:
        call = dict(x=byte(torch.uint8, batch, channels, height, width), x_zero=byte(torch.uint8, channels),
                    weight=byte(torch.int8, outputs, channels // groups, kernel, kernel), stride=stride,
                    padding=kernel // 2, groups=groups)
        vectors = torch.randn(4, outputs, generator=draw, device=device)
        epilogue = bk.Epilogue(1e-4 * vectors[0], vectors[1], 'prelu', slope=vectors[2], threshold=vectors[3])
        coding = bk.Quantization(torch.full((1,), 0.02, device=device), byte(torch.uint8, 1))
        yield 'int8_conv2d', call | dict(epilogue=epilogue, dtype=torch.float16, pack=True)
        yield 'int8_conv2d', call | dict(epilogue=epilogue._replace(act='relu', slope=None), out=coding)
        image = torch.randn(batch, channels, height, width, generator=draw, device=device)
        yield 'quantize', dict(x=image, scale=coding.scale, zero_point=coding.zero_point)


def rows(device: torch.device, backend: str, small: bool, dry: bool = False) -> Rows:
    """Small calls with a reference on the CPU, so that nothing but the backend runs on the device; the others on the device.

    Dry: nothing is compared, for no launch takes place.
    """
    home = torch.device('cpu') if small else device
    for op, call in chain(small_cases(home) if small else cases(home), sequences(home, small),
                          real_layers(home, SMALL if small else SIZES[1])):
        yield dict(backend=backend, op=op, case=_name(call)), partial(compare, op, call, backend, device, dry)


def compare(op: str, call: dict, backend: str, device: torch.device, dry: bool = False) -> dict[str, str]:
    """`result` of `outcome`, and a `note` where it is not as it should be."""
    want = None
    if not dry:
        with bk.set_backend('reference'):
            want = getattr(bk, op)(**call)
    result = outcome(op, _to(call, device), want, backend)
    return dict(result=result, note=result if result.startswith('DIFFERENT') else '')


def outcome(op: str, call: dict, want, backend: str) -> str:
    """'equal', 'DIFFERENT ...', 'refused ...' with the backend's reason; 'ran' where nothing is wanted.

    Raises what the backend raises where it does not refuse.
    """
    with bk.set_backend(backend):
        try:
            got = getattr(bk, op)(**call)
        except RuntimeError as error:
            if 'The forced backend cannot run' not in str(error):
                raise
            return f'refused: {error}'
    if want is None:
        return 'ran'
    pairs = zip(*[value if isinstance(value, tuple) else (value,) for value in (got, want)], strict=True)
    wrong = [int((a.to(b.device) != b).sum()) for a, b in pairs]
    return f'DIFFERENT: {wrong} elements' if any(wrong) else 'equal'


def _to(value, device: torch.device):
    """Tensors within the arguments of a call, moved."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _to(part, device) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_make'):
        return type(value)(*[_to(part, device) for part in value])
    return value


def _name(call: dict) -> str:
    if 'channels' not in call:
        shapes = [f'{key}={"x".join(map(str, value.shape))}' for key, value in call.items() if isinstance(value, torch.Tensor)]
        kinds = [call['recurrence'].gates, call['recurrence'].candidate] if 'recurrence' in call else [call.get('rule', '')]
        return ' '.join([*kinds, *shapes]).strip()
    x, w = call['x_words'].shape, call['w_words'].shape
    options = ' '.join(f'{key}={call[key]}' for key in ('stride', 'padding', 'dilation', 'groups', 'pad_value'))
    extra = f' {call["epilogue"].act} {call["dtype"]} P={len(call["epilogue"].scale)}' if 'epilogue' in call else ''
    return f'{x[0]}x{x[1]}x{x[2]} {call["channels"]}->{w[0]} {w[1]}x{w[2]} {options}{extra}'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--small', action='store_true')
    parser.add_argument('--backends', nargs='+', default=BACKENDS)
    parser.add_argument('--device', default='cuda')
    args = parser.parse_args()
    wrong = []
    for backend in args.backends:
        for of, measure in rows(torch.device(args.device), backend, args.small):
            row = measure()
            print(*of.values(), row['result'], flush=True)
            wrong += [of] * bool(row['note'])
    if wrong:
        sys.exit('not exact')


if __name__ == '__main__':
    main()
