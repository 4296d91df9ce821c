"""Tables of docs/accuracy.md, from the results files of this benchmark."""

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from ..rows import read_rows

HERE = Path(__file__).parent


def spread(rows: list[dict], name: str) -> str:
    """Mean and, for several rows, standard deviation; '' where it was not measured."""
    numbers = [float(row[name]) for row in rows if row.get(name)]
    if not numbers:
        return ''
    return f'{mean(numbers):.1f}' + (f' ± {stdev(numbers):.1f}' if len(numbers) > 1 else '')


def table(grid: str) -> str:
    """One line per network, method, expansion and length, the best first; what papers say in a column of its own."""
    published = {(row['network'], row['method'], row['expand']): row['top1'] for row in read_rows(HERE / 'published.csv')}
    groups = defaultdict(list)
    for row in read_rows(HERE / f'results/{grid}.csv'):
        groups[row['network'], row['method'], row['expand'], int(row['epochs'])].append(row)
    if not groups:
        return f'No results yet: `python -m benchmarks.accuracy.run {grid}`.\n'
    lines = ['| network | method | expand | epochs | seeds | test (%) | last epoch (%) | validation (%) | training (%) | '
             'best test epoch (%) | published (%) | OPs (M) | multiplies (M) | packed kB | minutes |', '|---' * 15 + '|']
    for key, rows in sorted(groups.items(), key=lambda item: (item[0][3], -mean(float(r['test_top1']) for r in item[1]))):
        network, method, expand, epochs = key
        cells = [network, method, '' if expand == 'none' else expand, str(epochs), str(len(rows)), spread(rows, 'test_top1'),
                 spread(rows, 'last_test_top1'), spread(rows, 'val_top1'), spread(rows, 'train_top1'),
                 spread(rows, 'best_test_top1'),
                 published.get((network, method, expand), ''), f'{float(rows[0]["ops"]) / 1e6:.2f}',
                 f'{int(rows[0]["multiplies"]) / 1e6:.2f}', f'{int(rows[0]["bytes_packed"]) / 1e3:.1f}',
                 spread(rows, 'minutes')]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, '', f'Machine: {machines([row for rows in groups.values() for row in rows])}.', ''])


def lengths(grid: str) -> str:
    """One line per method and expansion: test accuracy after trainings of several lengths."""
    rows = read_rows(HERE / f'results/{grid}.csv')
    epochs = sorted({int(row['epochs']) for row in rows})
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row['method'], row['expand']][int(row['epochs'])].append(row)
    lines = [f'| method | expand | {" | ".join(f"{count} epochs (%)" for count in epochs)} | multiplies (M) |',
             '|---' * (3 + len(epochs)) + '|']
    for (method, expand), parts in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] != 'none', item[0][1])):
        cells = [method, '' if expand == 'none' else expand, *(spread(parts[count], 'test_top1') for count in epochs),
                 f'{int(next(iter(parts.values()))[0]["multiplies"]) / 1e6:.3f}']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, '', f'Machine: {machines(rows)}.', ''])


def machines(rows: list[dict]) -> str:
    return '; '.join(sorted({f'{row["device"]}, {row["threads"]} thread(s), torch {row["torch"]}' for row in rows}))


TABLES = {f'accuracy_{path.stem}': (lambda grid=path.stem: table(grid)) for path in sorted(HERE.glob('grids/*.py'))}
TABLES['accuracy_cpu_tau'] = lambda: lengths('cpu_tau')
