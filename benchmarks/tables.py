"""Tables in prose are generated from results files: ``python -m benchmarks.tables`` fills them in, ``--check`` compares.

A table stands between ``<!-- table: name -->`` and ``<!-- end -->``.
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from bnn_plugins import zoo

from .accuracy.tables import TABLES as ACCURACY
from .cpu import tables as cpu
from .diffusion.tables import TABLES as DIFFUSION
from .gpu import tables as gpu
from .scale.tables import TABLES as SCALE
from .sequence.tables import TABLES as SEQUENCE
from .training import tables as training
from .zoo.tables import TABLES as MODELS

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def spread(values: list[str], digits: int = 1, factor: float = 1.0) -> str:
    """Mean and, for several values, standard deviation; '' where the values are empty."""
    if '' in values:
        return ''
    numbers = [float(value) * factor for value in values]
    return f'{mean(numbers):.{digits}f}' + (f' ± {stdev(numbers):.{digits}f}' if len(numbers) > 1 else '')


def bccd() -> str:
    """One line per config: mAP@0.5 on the test split in percent, bytes, minutes."""
    groups = defaultdict(list)
    for row in csv.DictReader((ROOT / 'benchmarks/detection/results/bccd.csv').open()):
        groups[row['config']].append(row)
    lines = ['| config | method | seeds | epochs | test mAP@0.5 (%) | packed (%) | MB | MB packed | minutes (threads) |',
             '|---|---|---|---|---|---|---|---|---|']
    for config, rows in groups.items():
        column = {key: [row[key] for row in rows] for key in rows[0]}
        cells = [config, rows[0]['method'], str(len(rows)), rows[0]['epochs'], spread(column['test_map50'], factor=100),
                 spread(column['packed_map50'], factor=100), spread(column['bytes_float'][:1], 2, 1e-6),
                 spread(column['bytes_packed'][:1], 2, 1e-6), f'{spread(column["minutes"])} ({rows[0]["threads"]})']
        lines.append(f'| {" | ".join(cells)} |')
    machine = sorted({f'{row["processor"]}, torch {row["torch"]}' for rows in groups.values() for row in rows})
    return '\n'.join([*lines, '', f'Machine: {"; ".join(machine)}.', ''])


TABLES = {**ACCURACY, **DIFFUSION, **MODELS, **SCALE, **SEQUENCE, 'bccd': bccd, 'cpu_networks': cpu.networks,
          'cpu_convolutions': cpu.convolutions,
          'cpu_sequences': cpu.sequences, 'cpu_anchors': cpu.anchors,
          'tensorcore_profile': gpu.profiled, 'gpu_convolutions': gpu.convolutions,
          'gpu_operators': gpu.operators, 'training': training.table, 'training_equality': training.equality,
          'zoo': lambda: zoo.table() + '\n'}


def filled(text: str) -> str:
    """``text`` with every table made anew."""
    return PLACE.sub(lambda place: place[1] + TABLES[place[2]]() + place[3], text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='exit with 1 when a table is not what its results file gives')
    args = parser.parse_args()
    for path in (ROOT / 'README.md', ROOT / 'kernels/README.md', *sorted((ROOT / 'docs').rglob('*.md'))):
        text = path.read_text()
        if args.check and text != filled(text):
            sys.exit(f'{path.name}: a table is out of date; run python -m benchmarks.tables')
        if text != filled(text):
            path.write_text(filled(text))


if __name__ == '__main__':
    main()
