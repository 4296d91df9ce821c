"""The standard suite of a CPU in one command: ``python -m benchmarks.cpu.run``; ``--quick`` for a first look.

- the body of ResNet-18 (16 convolutions, 3 downsamples) at 56x56 and at 160x160 (an image of 640x640), batch 1;
- single convolutions from packed input, every instruction set, also against a torch that is kept to the same one;
- a binary LSTM and binary attention;
- the BCCD RetinaNet end to end, its backbone, its layers.

Every section runs in a process of its own; the others go on when one fails. Results: one CSV file per machine and kind in
``--out``; pages with plots in ``--pages``.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'
PAGES = Path('work_dirs/benchmark_cpu')
SECTIONS = ('body56', 'body160', 'convolutions', 'convolutions-avx2', 'sequences', 'detector')
# Keeps torch and its oneDNN from instructions beyond AVX2, as a machine without them would be.
AVX2_ONLY = {'ONEDNN_MAX_CPU_ISA': 'AVX2', 'ATEN_CPU_CAPABILITY': 'avx2'}


def run_section(name: str, out: Path, pages: Path, quick: bool, threads: list[int], checkpoint: str | None) -> bool:
    """Measure one section in this process; writes its CSV files into ``out``. Returns whether all checks are ok."""
    import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
    from bnn_plugins.analysis.throughput_report import print_throughput, write_throughput

    from .networks import FULL, QUICK, run_body, run_detector
    if name.startswith('convolutions'):
        return run_convolutions(out / f'{name}.convolutions.csv', quick, avx2_only=name.endswith('avx2'))
    if name == 'sequences':
        return run_sequences(out / f'{name}.sequences.csv', quick)
    rounds, budget, forms = (5, 3.0, QUICK) if quick else (25, 15.0, FULL)
    if name == 'detector':
        result = run_detector(threads, rounds, budget, forms, checkpoint)
    else:
        result = run_body(int(name.removeprefix('body')), threads, rounds, budget, forms)
        print_throughput(result, wide_console())
    result.to_csv(out / f'{name}.networks.csv')
    result.layers_to_csv(out / f'{name}.layers.csv')
    write_throughput(result, pages / name)
    return result.ok


def run_convolutions(path: Path, quick: bool, avx2_only: bool) -> bool:
    from bnn_plugins.analysis.throughput import torch_threads
    from bnn_plugins.analysis.throughput_run import write_csv

    from .convolutions import CLASSIFIER, SHAPES, instruction_sets, measure_shape
    isas = instruction_sets()
    isas = [isa for isa in isas if isa in ('avx2', 'portable')] if avx2_only else isas
    rounds, budget = (5, 1.0) if quick else (31, 6.0)
    rows = []
    with torch_threads(1):
        for shape in CLASSIFIER if quick else SHAPES:
            rows += measure_shape(*shape, isas, 'avx2' if avx2_only else 'all', rounds, budget)
            for row in rows:
                if row.shape == f'{shape[0]}@{shape[1]}':
                    print(f'{row.shape:>7} {row.variant:<19} {row.isa:<9} {row.median_ms:8.3f} ms {row.gmacs:7.0f} GMAC/s '
                          f'x{row.x_float32_prepacked:.1f} float32 prepacked')
    write_csv(path, *with_machine(rows))
    return True


def run_sequences(path: Path, quick: bool) -> bool:
    from bnn_plugins.analysis.throughput import torch_threads
    from bnn_plugins.analysis.throughput_run import write_csv

    from .sequences import BATCHES, TOKENS, measure_sequence
    rounds, budget = (5, 1.0) if quick else (31, 10.0)
    rows = []
    with torch_threads(1):
        for layer, sizes in ('lstm', BATCHES), ('attention', TOKENS):
            for size in sizes:
                rows += measure_sequence(layer, size, rounds, budget)
                for row in rows:
                    if size in (row.batch, row.size) and row.layer == layer:
                        print(f'{layer:>9} {size:>5} {row.variant:<13} {row.isa:<7} {row.median_ms:8.3f} ms '
                              f'x{row.x_float32:.1f} float32 x{row.x_bfloat16:.1f} bfloat16')
    write_csv(path, *with_machine(rows))
    return True


def with_machine(rows: list) -> tuple[list[str], list[dict]]:
    """Columns and lines of dataclasses, with what is known about this machine."""
    from bnn_plugins.analysis.machine import machine_facts
    from bnn_plugins.analysis.throughput_run import rounded
    machine = machine_facts()
    lines = [{**rounded(asdict(row)), **machine} for row in rows]
    return list(lines[0]), lines


def wide_console():
    from rich.console import Console

    from bnn_plugins.integrations.mmengine.summarize import MIN_WIDTH
    return Console(width=max(Console().width, MIN_WIDTH))


def machine_name() -> str:
    """For file names: the processor, ``'amd-epyc-avx512'``."""
    from bnn_plugins.analysis import processor
    return re.sub(r'[^a-z0-9]+', '-', processor().lower()).strip('-')


def run_suite(sections: list[str], out: Path, pages: Path, quick: bool, threads: list[int], checkpoint: str | None,
              start: Callable = subprocess.run) -> bool:
    """All sections, one process each; what they wrote is joined into files of this machine. Returns whether all went well."""
    good, machine = True, machine_name()
    with tempfile.TemporaryDirectory() as folder:
        for section in sections:
            began = time.perf_counter()
            command = [sys.executable, '-m', 'benchmarks.cpu.run', '--section', section, '--out', folder,
                       '--pages', str(pages), '--threads', *map(str, threads), *(['--quick'] if quick else []),
                       *(['--checkpoint', checkpoint] if checkpoint else [])]
            limits = AVX2_ONLY if section.endswith('avx2') else {}
            print(f'--- {section}', flush=True)
            code = start(command, cwd=Path(__file__).parents[2], env={**os.environ, **limits}).returncode
            good &= code == 0
            print(f'--- {section}: {"done" if code == 0 else f"FAILED ({code})"} in {time.perf_counter() - began:.0f} s',
                  flush=True)
        for kind in ('networks', 'layers', 'convolutions', 'sequences'):
            parts = [path for section in sections for path in Path(folder).glob(f'{section}.{kind}.csv')]
            if parts:
                print(f'{join(parts, out / f"{machine}-{kind}.csv", "quick" if quick else "full")} written')
    return good


def join(parts: list[Path], path: Path, suite: str) -> Path:
    """One file of several with the same columns; ``suite`` (``'full'`` or ``'quick'``) and the section come first."""
    from bnn_plugins.analysis.throughput_run import write_csv
    lines = [{'suite': suite, 'section': part.name.partition('.')[0], **line} for part in parts
             for line in csv.DictReader(part.open())]
    return write_csv(path, list(lines[0]), lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='few rounds, variants and shapes: not for results')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder of the CSV files; default %(default)s')
    parser.add_argument('--pages', type=Path, default=PAGES, help='folder of the pages; default %(default)s')
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=SECTIONS, help='these sections')
    parser.add_argument('--threads', type=int, nargs='+', default=None, help='of networks; default 1, and 2 unless --quick')
    parser.add_argument('--checkpoint', help='of the BCCD RetinaNet; default random weights')
    parser.add_argument('--section', choices=SECTIONS, help=argparse.SUPPRESS)  # what the suite starts
    args = parser.parse_args()
    threads = args.threads or ([1] if args.quick or os.cpu_count() == 1 else [1, 2])
    if args.section:
        try:
            sys.exit(not run_section(args.section, args.out, args.pages, args.quick, threads, args.checkpoint))
        except (RuntimeError, FileNotFoundError) as error:
            sys.exit(f'{type(error).__name__}: {error}')
    sys.exit(not run_suite(list(args.only), args.out, args.pages.absolute(), args.quick, threads, args.checkpoint))


if __name__ == '__main__':
    main()
