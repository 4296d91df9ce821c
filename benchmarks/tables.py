"""Tables in prose are generated from results files: ``python -m benchmarks.tables`` fills them in, ``--check`` compares.

A table stands between ``<!-- table: name -->`` and ``<!-- end -->``.
"""

import argparse
import re
import sys
from pathlib import Path

from bnn_plugins import zoo

from .accuracy.tables import TABLES as ACCURACY
from .cpu import tables as cpu
from .detection.tables import TABLES as DETECTION
from .diffusion.tables import TABLES as DIFFUSION
from .gpu import tables as gpu
from .scale.tables import TABLES as SCALE
from .sequence.tables import TABLES as SEQUENCE
from .training import tables as training
from .zoo.tables import TABLES as MODELS

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


TABLES = {**ACCURACY, **DETECTION, **DIFFUSION, **MODELS, **SCALE, **SEQUENCE, 'cpu_networks': cpu.networks,
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
