"""Pictures of a convolutions file: the speed-up per layer and the roofline. ``python -m benchmarks.gpu.plots FILE.csv``."""

import csv
import sys
from collections import defaultdict
from pathlib import Path

OURS = {'triton-tensorcore sign': 'o', 'triton-tensorcore block': 's', 'triton-bitplane sign': '^',
        'triton-popcount sign': 'v'}
KEY = ('image', 'batch', 'channels', 'outputs', 'kernel', 'stride', 'size')
BASE = 'cudnn fp16'


def draw(file: Path) -> list[Path]:
    """Writes two pictures beside the file and returns their paths; none where it has no time of cuDNN."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    layers = defaultdict(dict)
    for row in csv.DictReader(file.open()):
        if row['microseconds']:
            layers[tuple(int(row[name]) for name in KEY)][row['method']] = row
    compared = {key: rows for key, rows in layers.items() if BASE in rows and set(rows) & set(OURS)}
    if not compared:
        return []

    figure, axes = plt.subplots(figsize=(max(6, 0.25 * len(compared)), 5), layout='constrained')
    for method, marker in OURS.items():
        points = [(place, float(rows[BASE]['microseconds']) / float(rows[method]['microseconds']))
                  for place, rows in enumerate(compared.values()) if method in rows]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=method)
    axes.axhline(1, color='grey')
    axes.set(yscale='log', ylabel=f'times as fast as {BASE}', title=file.stem)
    names = [f'{i} px, b {b}, {c} to {o}, {k}x{k}/{s}' for i, b, c, o, k, s, _ in compared]
    axes.set_xticks(range(len(compared)), names, rotation=90)
    axes.legend()
    figure.savefig(first := file.with_name(f'{file.stem}_speedup.png'))

    figure, axes = plt.subplots(figsize=(7, 5), layout='constrained')
    for method, marker in {**OURS, BASE: 'x'}.items():
        rows = [rows[method] for rows in layers.values() if method in rows]
        if rows:
            intensity = [float(row['operations']) / float(row['bytes']) for row in rows]
            rate = [float(row['operations']) / float(row['microseconds']) * 1e-6 for row in rows]
            axes.plot(intensity, rate, marker, label=method)
    axes.set(xscale='log', yscale='log', xlabel='operations per byte', ylabel='TOP/s', title=file.stem)
    axes.legend()
    figure.savefig(second := file.with_name(f'{file.stem}_roofline.png'))
    plt.close('all')
    return [first, second]


if __name__ == '__main__':
    for name in sys.argv[1:]:
        print(*draw(Path(name)), sep='\n')
