"""The tables of kernels/README.md on the tensor-core kernels, from the files in results/."""

import csv
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'
OURS = ('triton-tensorcore sign', 'triton-tensorcore block')


def profiled(results: Path = RESULTS) -> str:
    """The static profile of the oldest supported Triton: machine code, and what a model makes of it."""
    file = sorted(results.glob('profile_triton-*.csv'))[0]
    lines = ['| target | layer | epilogue | tile | registers | MMAs | instructions | busiest unit | products per clock |',
             '|---|---|---|---|---|---|---|---|---|']
    for row in csv.DictReader(file.open()):
        cells = [row[name] for name in ('target', 'layer', 'epilogue', 'tile', 'registers', 'mma', 'loop', 'busiest')]
        lines.append(f'| {" | ".join(cells)} | {int(row["products_per_clock"]):,} |')
    version = file.stem.partition('triton-')[2]
    note = (f'Triton {version}, padding 0; sign: words in and out, block: also a float16 shortcut in and out, and RPReLU. The '
            f'last two columns are a model, not a measurement: products of bits per clock and multiprocessor, were '
            f'its busiest unit never idle. No kernel spills.')
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
