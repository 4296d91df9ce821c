"""The tables of kernels/README.md on the tensor-core kernels, from the files in results/."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'
COLUMNS = 'target', 'layer', 'epilogue', 'tile', 'registers', 'mma', 'loop', 'busiest', 'blocks'
OURS = ('triton-tensorcore sign', 'triton-tensorcore block')


def profiled(results: Path = RESULTS) -> str:
    """The static profile of the oldest supported Triton: machine code, and what a model makes of it."""
    file = sorted(results.glob('profile_triton-*.csv'))[0]
    lines = ['| target | layer | epilogue | tile | registers | MMAs | instructions | busiest | blocks | products per clock |',
             '|---|---|---|---|---|---|---|---|---|---|']
    for row in csv.DictReader(file.open()):
        cells = [row[name] for name in COLUMNS]
        products = row['products_per_clock']
        lines.append(f'| {" | ".join(cells)} | {int(products):,} |' if products else f'| {" | ".join(cells)} | |')
    version = file.stem.partition('triton-')[2]
    note = (f'Triton {version}, padding 0; sign: words in and out, block: also a float16 shortcut in and out, and RPReLU. The '
            f'last column is a model, not a measurement: products of bits per clock and multiprocessor of Hopper, with that '
            f'many blocks on it and activations that come from memory. No kernel spills.')
    return '\n'.join([*lines, '', note, ''])


def convolutions(results: Path = RESULTS) -> str:
    """Speed-ups over cuDNN fp16, all convolutions of a network added up, a table per file; a sentence where there is none."""
    parts = []
    for file in sorted(results.glob('convolutions_*.csv')):
        totals = summed(list(csv.DictReader(file.open())))
        lines = ['| network | image | batch | cuDNN fp16 (ms) | sign (ms) | block (ms) | sign, speed-up | block, speed-up |',
                 '|---|---|---|---|---|---|---|---|']
        for (network, image, batch), (base, *ours) in totals.items():
            times = [f'{value / 1e3:.2f}' for value in (base, *ours)]
            lines.append(f'| {network} | {image} | {batch} | {" | ".join(times)} | '
                         f'{" | ".join(f"{base / value:.1f}" for value in ours)} |')
        machine = file.stem.partition('_')[2].replace('_', ', ')
        parts.append('\n'.join([*lines, '', f'{machine}. Medians of CUDA graph replays, convolutions only; settings of which '
                                            f'every convolution was measured.', '']))
    return '\n'.join(parts) or 'Nothing was measured on a GPU yet: `python -m benchmarks.gpu.run --out DIR` does it.\n'


def summed(rows: list[dict[str, str]]) -> dict[tuple[str, int, int], list[float]]:
    """(network, image, batch) to microseconds of cuDNN fp16 and of `OURS`, where every layer has all three."""
    methods = ('cudnn fp16', *OURS)
    layers = defaultdict(dict)
    for row in rows:
        key = tuple(row[name] for name in ('image', 'batch', 'networks', 'channels', 'outputs', 'kernel', 'stride', 'size'))
        layers[key][row['method']] = row['microseconds']
    totals, complete = defaultdict(lambda: [0.0] * len(methods)), defaultdict(lambda: True)
    for (image, batch, networks, *_), times in layers.items():
        for part in networks.split():
            network, _, count = part.partition(':')
            key = network, int(image), int(batch)
            complete[key] &= all(times.get(method) for method in methods)
            if complete[key]:
                totals[key] = [total + int(count) * float(times[method])
                               for total, method in zip(totals[key], methods, strict=True)]
    return {key: totals[key] for key in sorted(totals) if complete[key]}


GENERATIONS = {'Turing (7.5)': 'sm_75', 'Ampere (8.0, 8.6)': 'sm_80', 'Ada (8.9)': 'sm_89', 'Hopper (9.0)': 'sm_90',
               'Blackwell (10.0)': 'sm_100', 'AMD (gfx942)': 'gfx942'}


def operators() -> str:
    """Which backend takes an operator on which GPU: what the backends themselves say, for GPUs that need not be there."""
    from bnn_kernels import selection
    from bnn_kernels.triton.offline import compiling_for
    lines = [f'| operator | {" | ".join(GENERATIONS)} |', '|---' * (1 + len(GENERATIONS)) + '|']
    chosen = defaultdict(list)
    for architecture in GENERATIONS.values():
        with compiling_for(architecture):
            for name, op, call in _operators():
                chosen[name].append(selection(op, **call).backend.removeprefix('triton-'))
    lines += [f'| {name} | {" | ".join("torch" if one in ("reference", "cpu") else one for one in backends)} |'
              for name, backends in chosen.items()]
    return '\n'.join([*lines, ''])


def _operators() -> Iterator[tuple[str, str, dict]]:
    import torch

    from bnn_kernels import Epilogue, pack_weight
    from bnn_kernels.geometry import Conv2dGeometry, Stem2dGeometry
    words, weight = torch.zeros(1, 8, 8, 2, dtype=torch.int32), pack_weight(torch.ones(64, 64, 3, 3))
    conv = dict(x_words=words, w_words=weight, geometry=Conv2dGeometry(64, 64, 3, padding=1))
    vector, image = torch.ones(64), torch.zeros(1, 64, 8, 8)
    epilogue = Epilogue(vector, vector)
    yield '`binary_conv2d`', 'binary_conv2d', conv
    yield '`binary_conv2d_sign`', 'binary_conv2d_sign', conv | dict(threshold=vector.int(), flip=None, out_groups=1)
    yield '`binary_block2d`', 'binary_block2d', conv | dict(epilogue=epilogue, shortcut=None, dtype=torch.float32, pack=True,
                                                            keep=True)
    grouped = dict(w_words=pack_weight(torch.ones(64, 32, 3, 3)), geometry=Conv2dGeometry(64, 64, 3, padding=1, groups=2))
    yield 'the three with groups', 'binary_conv2d', conv | grouped
    odd = dict(w_words=pack_weight(torch.ones(40, 64, 3, 3)), geometry=Conv2dGeometry(64, 40, 3, padding=1))
    yield 'outputs that are no multiple of 32', 'binary_conv2d', conv | odd
    yield '`binary_conv_transpose2d`', 'binary_conv_transpose2d', conv | dict(
        geometry=Conv2dGeometry(64, 64, 3, padding=1, output_padding=0))
    yield '`binary_linear`', 'binary_linear', dict(x_words=words[0, 0], w_words=weight[:, 0, 0], features=64)
    yield '`pack_activations`, `pack_features`', 'pack_activations', dict(x=image, threshold=None, groups=1)
    yield '`pack_normalized`, `binary_attention`, `binary_lstm`', 'pack_normalized', dict(
        x=vector[None], mean=vector[:1], std=vector[:1], threshold=vector, flip=None)
    yield '`downsample2d`', 'downsample2d', dict(x=image, weight=torch.ones(64, 64), bias=vector, pool=2)
    yield '`stem2d`', 'stem2d', dict(x=image, weight=torch.ones(64, 64, 3, 3), geometry=Stem2dGeometry(64, 64, 3),
                                     epilogue=epilogue, dtype=torch.float32, pack=True)
    quantized, zero = image.to(torch.uint8), torch.zeros(1, dtype=torch.uint8)
    yield '`int8_conv2d`, `int8_linear`, `int8_pooled2d`', 'int8_conv2d', dict(x=quantized, x_zero=zero)
    yield '`quantize`', 'quantize', dict(x=image)
