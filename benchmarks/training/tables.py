"""The table of docs/training.md, from the results files of this benchmark."""

from pathlib import Path

from ..rows import read_rows

HERE = Path(__file__).parent


def table() -> str:
    """One line per case, batch, threads and variant: times as shares of the float twin's, memory beside it."""
    rows = [row for path in sorted(HERE.glob('results/*.csv')) for row in read_rows(path)]
    if not rows:
        return 'No results yet: `python -m benchmarks.training.run`.\n'
    lines = ['| case | batch | pixels | threads | variant | path | step (ms) | of float32 | of bfloat16 | binary layers (%) | '
             'saved (MB) | of float32 | resident (MB) |', '|---' * 13 + '|']
    twins = {case(row): row for row in rows if row['variant'] == 'float32'}
    for row in rows:
        twin = twins[case(row)]
        binary = 100 * (float(row['binary_forward_ms']) + float(row['binary_backward_ms'])) / float(row['step_ms'])
        cells = [row['case'], row['batch'], f'{row["height"]}x{row["width"]}', row['threads'], row['variant'], row['path'],
                 f'{float(row["step_ms"]):.0f}', f'{float(row["of_float32"]):.2f}', f'{float(row["of_bfloat16"]):.2f}',
                 f'{binary:.0f}', f'{int(row["saved_bytes"]) / 1e6:.1f}',
                 f'{int(row["saved_bytes"]) / int(twin["saved_bytes"]):.2f}',
                 f'{int(row["resident_bytes"]) / 1e6:.1f}' if row['resident_bytes'] else '']
        lines.append(f'| {" | ".join(cells)} |')
    machines = sorted({f'{row["processor"]}, torch {row["torch"]}, commit {row["commit"]}' for row in rows})
    return '\n'.join([*lines, '', f'Machine: {"; ".join(machines)}.', ''])


def equality() -> str:
    """How far losses are from those of torch's operators, one line per run of equality.py."""
    rows = read_rows(HERE / 'equality.csv')
    lines = ['| method | run | seed | steps | mean difference | largest | mean of the last 20 losses |', '|---' * 7 + '|']
    keys = ('method', 'run', 'seed', 'steps', 'mean_difference', 'largest_difference', 'last_losses')
    return '\n'.join([*lines, *(f'| {" | ".join(row[key] for key in keys)} |' for row in rows), ''])


def case(row: dict[str, str]) -> tuple[str, ...]:
    """What was measured in one interleaved run."""
    return tuple(row[key] for key in ('processor', 'case', 'batch', 'height', 'width', 'threads'))
