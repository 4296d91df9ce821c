"""Tables of the CPU suite: speed-ups of networks, single convolutions and sequences, one table per machine."""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean

RESULTS = Path(__file__).parent / 'results'
NETWORKS = {'body56': 'ResNet-18 body, 56x56', 'body160': 'ResNet-18 body, 160x160', 'detector': 'BCCD RetinaNet, '}
NETWORK_RATIOS = {'x_float32': 'float32', 'x_float32_compiled': 'compiled', 'x_bfloat16': 'bfloat16',
                  'x_bfloat16_compiled': 'bfloat16 compiled'}
CONVOLUTION_RATIOS = {'x_float32': 'float32', 'x_float32_prepacked': 'float32 prepacked',
                      'x_bfloat16_prepacked': 'bfloat16 prepacked'}
DETECTION = ('64@160', '128@80', '256@40', '512@20')  # of an image of 640x640; the other shapes are of 224x224
ANCHORED = ('fused', 'fused-int8', 'openvino-int8', 'onnxruntime-int8')
NONE = 'Nothing was measured yet: `python -m benchmarks.cpu.run` does it.\n'


def networks(results: Path = RESULTS) -> str:
    """One line per network, threads and instruction set: ms of the fused model, and how many times faster than each baseline.

    The files also hold the packed model that is not fused, the compiled one and that with a stream in bfloat16.
    """
    headings = ['network, batch 1', 'threads', 'ran on', 'ms', *(f'x {name}' for name in NETWORK_RATIOS.values())]
    parts = []
    for machine, rows in read(results, 'networks').items():
        lines = []
        for row in rows:
            if row['variant'].partition(' ')[0] == 'fused':
                name = NETWORKS[row['section']] + (row['part'] if row['section'] == 'detector' else '')
                lines.append([name, row['threads'], row['backend'], f'{float(row["median_ms"]):.2f}',
                              *(times(row[column]) for column in NETWORK_RATIOS)])
        parts.append(table(headings, lines, machine))
    return '\n'.join(parts) or NONE


def convolutions(results: Path = RESULTS) -> str:
    """One line per instruction set and group of shapes: geometric means."""
    headings = ['instruction set', 'torch may use', 'convolutions', *(f'x {name}' for name in CONVOLUTION_RATIOS.values()),
                '% of ceiling']
    parts = []
    for machine, rows in read(results, 'convolutions').items():
        groups = defaultdict(list)
        for row in rows:
            if row['variant'] == 'binary':
                groups[row['isa'], row['float_isa'], row['shape'] in DETECTION].append(row)
        lines = [[isa, float_isa, ', '.join(row['shape'] for row in found),
                  *(mean([row[column] for row in found]) for column in CONVOLUTION_RATIOS),
                  mean([row['of_ceiling'] for row in found], 100, 0)] for (isa, float_isa, _), found in groups.items()]
        parts.append(table(headings, lines, machine))
    return '\n'.join(parts) or NONE


def sequences(results: Path = RESULTS) -> str:
    """One line per layer, variant and instruction set: ms, and how many times faster than torch's layer."""
    headings = ['layer', 'variant', 'ran on', 'ms', 'x float32', 'x bfloat16']
    parts = []
    for machine, rows in read(results, 'sequences').items():
        lines = []
        for row in rows:
            name = (f'LSTM {row["size"]}, batch {row["batch"]}, {row["steps"]} steps' if row['layer'] == 'lstm' else
                    f'attention, {row["size"]} tokens, {row["batch"]} heads')
            if row['isa']:
                lines.append([name, row['variant'], row['isa'], f'{float(row["median_ms"]):.2f}', times(row['x_float32']),
                              times(row['x_bfloat16'])])
        parts.append(table(headings, lines, machine))
    return '\n'.join(parts) or NONE


def anchors(results: Path = RESULTS) -> str:
    """One line per network, threads, instruction set and state of the caches: ms, and int8 over ours, the better ones."""
    headings = ['network, batch 1', 'caches', 'threads', 'ran on', 'ours, float rest', 'ours, int8 rest', 'OpenVINO int8',
                'ONNX Runtime int8', 'better int8 / ours (quartiles)']
    parts = []
    for path in sorted(results.glob('*-anchors.csv')):
        rows, cases = list(csv.DictReader(path.open())), defaultdict(dict)
        for row in rows:
            cases[row['network'], row['caches'], row['threads'], row['isa']][row['form']] = row
        lines = []
        for case, forms in cases.items():
            ours = [forms[form] for form in ANCHORED[:2] if form in forms]
            best = min(ours, key=lambda row: float(row['median_ms']))
            lines.append([*case, *(f'{float(forms[form]["median_ms"]):.2f}' if form in forms else '' for form in ANCHORED),
                          f'{float(best["x_int8"]):.2f} ({float(best["x_int8_q1"]):.2f} to {float(best["x_int8_q3"]):.2f})'])
        first, commits = rows[0], dict.fromkeys(row['commit'] for row in rows)
        parts.append(table(headings, lines, f'{first["processor"]}, torch {first["torch"]}, OpenVINO {first["openvino"]}, '
                           f'ONNX Runtime {first["onnxruntime"]}, commit {", ".join(commits)}; CPU time, medians'))
    return '\n'.join(parts) or 'Nothing was measured yet: `python -m benchmarks.cpu.anchors` does it.\n'


def read(results: Path, kind: str) -> dict[str, list[dict[str, str]]]:
    """Rows of every machine's file of a kind, by the machine in words."""
    machines = {}
    for path in sorted(results.glob(f'*-{kind}.csv')):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        first, commits = rows[0], dict.fromkeys(row['commit'] for row in rows)
        quick = '; a quick run on a machine that had other work' if first['suite'] == 'quick' else ''
        machines[f'{first["processor"]}, torch {first["torch"]}, commit {", ".join(commits)}{quick}'] = rows
    return machines


def table(headings: list[str], lines: list[list[str]], machine: str) -> str:
    rows = [headings, ['---'] * len(headings), *lines]
    return '\n'.join([*(f'| {" | ".join(cells)} |' for cells in rows), '', f'Machine: {machine}.', ''])


def times(value: str) -> str:
    """A ratio with one decimal, '' where there is none."""
    return f'{float(value):.1f}' if value else ''


def mean(values: list[str], factor: float = 1.0, digits: int = 1) -> str:
    """Geometric mean, '' where a value is missing."""
    return f'{factor * geometric_mean(map(float, values)):.{digits}f}' if all(values) else ''
