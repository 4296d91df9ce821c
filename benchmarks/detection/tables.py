"""Tables of detectors."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean

from ..rows import read_rows, spread
from .grids import GRIDS, TITLES, Entry

RESULTS = Path(__file__).parent / 'results'
STAGES = ('read', 'preprocess', 'network', 'boxes')  # from an image file to its boxes


def bccd() -> str:
    """One line per config: mAP@0.5 on the test split in percent, bytes, minutes."""
    groups = defaultdict(list)
    for row in read_rows(RESULTS / 'bccd.csv'):
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


def compared(name: str) -> str:
    """One line per entry of a grid, in its order: accuracy, of the bits too, size, operations, time in times of the twin.

    Processor times are compared within each seed, where both were kept.
    """
    rows, grid = read_rows(RESULTS / f'{name}.csv'), GRIDS[name]
    if not rows:
        return f'No results yet: `python -m benchmarks.detection.run {name}`.\n'
    lines = ['| config | recipes | seeds | epochs | test mAP@0.5 (%) | of bits (%) | MB packed | MOPs | time |',
             '|---|---|---|---|---|---|---|---|---|']
    operations = {row['config']: '' for row in rows} | {row['config']: row['mops'] for row in rows if row.get('mops')}
    twins = [entry for entry in grid.entries if not entry.twin and '_r18' in entry.config]
    for entry in grid.entries:
        found = of(rows, entry, grid.epochs)
        if not found:
            continue
        twin = next(twin for twin in twins if twin.config.partition('_')[0] == entry.config.partition('_')[0])
        real = {row['seed']: row['cpu_minutes'] for row in of(rows, twin, grid.epochs)}
        times = [str(float(row['cpu_minutes']) / float(real[row['seed']])) for row in found
                 if row['cpu_minutes'] and real.get(row['seed'])]
        column = {key: [row[key] for row in found] for key in found[0]}
        cells = [entry.config, ', '.join(entry.recipes), str(len(found)), found[0]['epochs'],
                 spread(column['test_map50'], factor=100), spread(column['packed_map50'], factor=100),
                 spread(column['bytes_packed'][:1], 2, 1e-6), operations[entry.config],
                 f'{spread(times)}x' if times else '']
        lines.append(f'| {" | ".join(cells)} |')
    machine = sorted({f'{row["processor"]}, torch {row["torch"]}' for row in rows})
    return '\n'.join([*lines, '', f'Machine: {"; ".join(machine)}; one thread.', ''])


def of(rows: list[dict[str, str]], entry: Entry, epochs: int) -> list[dict[str, str]]:
    """The rows of an entry, one for each seed."""
    names = entry.config, '+'.join(entry.recipes), str(epochs * entry.times)
    return [row for row in rows if (row['config'], row['recipes'], row['epochs']) == names]


def rests() -> str:
    """One line per form of a trained detector: accuracy, time and size, means over the seeds."""
    rows = read_rows(RESULTS / 'bccd_rests.csv')
    if not rows:
        return 'No results yet: `python -m benchmarks.detection.rests`.\n'
    groups = defaultdict(list)
    for row in rows:
        groups[row['config'], row['rest']].append(row)
    lines = ['| network | real layers | seeds | test mAP@0.5 (%) | against float32, seed by seed | ms | MB |',
             '|---|---|---|---|---|---|---|']
    for (config, rest), found in groups.items():
        whole = {row['seed']: float(row['test_map50']) for row in groups[config, 'float32']}
        lost = [f'{100 * (float(row["test_map50"]) - whole[row["seed"]]):+.2f}' for row in found if row['seed'] in whole]
        cells = [TITLES[config], rest, str(len(found)), spread([row['test_map50'] for row in found], 1, 100),
                 '' if rest == 'float32' else ', '.join(lost), f'{mean(float(row["ms"]) for row in found):.2f}',
                 f'{mean(int(row["size"]) for row in found) / 1e6:.2f}']
        lines.append(f'| {" | ".join(cells)} |')
    machine = sorted({f'{row["processor"]}, torch {row["torch"]}, commit {row["commit"]}' for row in rows})
    return '\n'.join([*lines, '', f'{rows[0]["epochs"]} epochs, half width, one thread. Machine: {"; ".join(machine)}.', ''])


def stages() -> str:
    """One line per form of a trained detector: milliseconds from the file to the boxes, means over the seeds."""
    rows = read_rows(RESULTS / 'bccd_stages.csv')
    if not rows:
        return 'No results yet: `python -m benchmarks.detection.stages`.\n'
    groups = defaultdict(list)
    for row in rows:
        groups[row['config'], row['rest']].append(row)
    lines = ['| network | real layers | seeds | read | preprocess | network | boxes | ms in all '
             '| OpenVINO int8 / this (quartiles) | of the network alone |', '|---|---|---|---|---|---|---|---|---|---|']
    for (config, rest), found in groups.items():
        ratios = ', '.join(f'{float(row["x_int8"]):.2f} ({float(row["q1"]):.2f} to {float(row["q3"]):.2f})' for row in found
                           if row['x_int8'])
        alone = ', '.join(f'{float(row["x_network"]):.2f}' for row in found if row['x_network'])
        times = [f'{mean(float(row[key]) for row in found):.2f}' for key in (*STAGES, 'total')]
        lines.append(f'| {" | ".join([TITLES[config], rest, str(len(found)), *times, ratios, alone])} |')
    machine = sorted({f'{row["processor"]}, torch {row["torch"]}, commit {row["commit"]}' for row in rows})
    text = f'{rows[0]["images"]} images, one thread, processor time. Machine: {"; ".join(machine)}.'
    return '\n'.join([*lines, '', text, ''])


TABLES = {'bccd': bccd, 'bccd_rests': rests, 'bccd_stages': stages,
          **{name: partial(compared, name) for name in ('raccoon', 'bccd_methods')}}
