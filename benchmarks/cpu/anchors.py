"""Packed networks against what one would take instead, in one run: ``python -m benchmarks.cpu.anchors``.

Each network in its forms, and its float twin in OpenVINO and ONNX Runtime, quantized by their own flows on the same images;
one image at a time. *Warm*: eight calls of one form, then of the next, as in a stream of images. *Cold*: one call of each in
turn, whose data the others have driven out of the caches. Results: one CSV file per machine, a line per network, form and
state of the caches, with the time of the better int8 engine over its own: the median over the rounds, and the quartiles.
"""

import argparse
import copy
import csv
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import bnn_kernels.cpu
from bnn_plugins.analysis.anchors import PACKAGES
from bnn_plugins.analysis.machine import installed, machine_facts
from bnn_plugins.analysis.throughput import make_clock, sample, torch_threads
from bnn_plugins.analysis.throughput_run import rounded, write_csv
from bnn_plugins.analysis.throughput_variants import Variant
from bnn_plugins.deploy import fuse_, quantize_rest_
from bnn_plugins.integrations.mmengine.benchmark import channels_last_

from .anchor_networks import NETWORKS
from .run import RESULTS, machine_name

FORMS = ('fused', 'fused-int8', 'openvino-int8', 'onnxruntime-int8')
IN_A_ROW = {'warm': 8, 'cold': 1}
LEAST = 5  # rounds


@dataclass
class Line:
    """A form of a network. ``x_int8``: time of the better int8 engine in the same round over that of this form."""

    network: str
    form: str
    caches: str
    threads: int
    isa: str
    rounds: int
    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    x_int8: float
    x_int8_q1: float
    x_int8_q3: float


def variants(network: str, forms: Iterable[str]) -> dict[str, Variant]:
    models, part = NETWORKS[network]()
    for model in (models.packed, models.twin):
        model.eval()
        model.requires_grad_(False)
        channels_last_(model)
    models.fused, models.fused_int8 = copy.deepcopy(models.packed), copy.deepcopy(models.packed)
    quantize_rest_(models.fused_int8, part.calibration, run=lambda model, x: part.module(model)(x))
    for model in (models.fused, models.fused_int8):
        fuse_(model)
    return {form: Variant(form, part, models) for form in forms}


def measure(calls: dict[str, Callable], threads: int, in_a_row: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a call, by form and round."""
    clock, times = make_clock('cpu', threads), {form: [] for form in calls}
    for call in calls.values():
        call()
        call()
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= LEAST and time.perf_counter() > end:
            break
        for form, call in calls.items():
            if in_a_row > 1:
                call()
            times[form].append(1e3 * sample(call, clock, in_a_row))
    return times


def lines(network: str, times: dict[str, list[float]], caches: str, threads: int) -> list[Line]:
    int8 = [form for form in times if form.partition('-')[0] in PACKAGES]
    better = min(int8, key=lambda form: statistics.median(times[form]))
    result = []
    for form, own in times.items():
        q1, median, q3 = statistics.quantiles(own, n=4, method='inclusive')
        ratios = statistics.quantiles([a / b for a, b in zip(times[better], own, strict=True)], n=4, method='inclusive')
        result.append(Line(network, form, caches, threads, bnn_kernels.cpu.isa(), len(own), median, min(own), q1, q3,
                           ratios[1], ratios[0], ratios[2]))
    return result


def up_to_avx2() -> None:
    """Before anything calls oneDNN, which torch and OpenVINO compute with; ONNX Runtime cannot be told."""
    os.environ['ONEDNN_MAX_CPU_ISA'] = 'AVX2'
    bnn_kernels.cpu.set_isa('avx2')


def without_amx() -> None:
    """Before anything asks for AMX: Linux refuses it to a process whose stack for signals is too small for its registers."""
    class Stack(ctypes.Structure):
        _fields_ = [('at', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]

    memory = ctypes.create_string_buffer(8192)
    if ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None):
        raise OSError('sigaltstack failed')
    without_amx.memory = memory
    bnn_kernels.cpu.set_isa('avx512')


PROCESSORS = {'avx512': without_amx, 'avx2': up_to_avx2}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS), help='default all')
    parser.add_argument('--forms', nargs='+', default=FORMS)
    parser.add_argument('--rounds', type=int, default=25)
    parser.add_argument('--seconds', type=float, default=10, help='of each network and state of the caches at most')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--up-to', choices=PROCESSORS, help='what a processor without newer instructions would do')
    parser.add_argument('--out', type=Path, help='default: the results of this machine')
    args = parser.parse_args()
    if args.up_to:
        PROCESSORS[args.up_to]()
    rows = []
    with torch_threads(args.threads):
        built = {network: variants(network, args.forms) for network in args.networks}
        for network, calls in built.items():
            for caches, in_a_row in IN_A_ROW.items():
                with torch.inference_mode():
                    times = measure(calls, args.threads, in_a_row, args.rounds, args.seconds)
                rows += lines(network, times, caches, args.threads)
                for row in rows[-len(calls):]:
                    print(f'{network:>22} {caches} {row.form:<17} {row.median_ms:8.3f} ms (min {row.min_ms:.3f}), '
                          f'int8 / this {row.x_int8:.2f} ({row.x_int8_q1:.2f} to {row.x_int8_q3:.2f})', flush=True)
    facts = machine_facts() | {package: installed(package) for packages in PACKAGES.values() for package in packages}
    path, table = args.out or RESULTS / f'{machine_name()}-anchors.csv', [rounded(asdict(row)) | facts for row in rows]
    print(write_csv(path, list(table[0]), [*others(path, table), *table]), 'written')


def others(path: Path, table: list[dict]) -> list[dict]:
    """Lines of a file that ``table`` does not replace."""
    def case(line: dict) -> tuple:
        return line['network'], str(line['threads']), line['isa']

    new = {case(line) for line in table}
    return [line for line in csv.DictReader(path.open()) if case(line) not in new] if path.exists() else []


if __name__ == '__main__':
    main()
