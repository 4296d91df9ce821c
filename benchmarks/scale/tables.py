"""The tables of docs/scale.md."""

from pathlib import Path

from ..rows import read_rows

HERE = Path(__file__).parent


def estimate() -> str:
    """One line per plan, computed and not measured."""
    rows = read_rows(HERE / 'results/estimate.csv')
    lines = [f'| {" | ".join(rows[0])} |', '|---' * len(rows[0]) + '|']
    return '\n'.join([*lines, *(f'| {" | ".join(row.values())} |' for row in rows), ''])


def updates() -> str:
    """One line per rule: milliseconds of Python a step."""
    rows = read_rows(HERE / 'results/updates.csv')
    if not rows:
        return 'No results yet: `python -m benchmarks.scale.updates`.\n'
    lines = ['| rule | layers | module by module (ms) | now (ms) |', '|---|---|---|---|']
    lines += [f'| {row["rule"]} | {row["layers"]} | {row["before_ms"]} | {row["now_ms"]} |' for row in rows]
    return '\n'.join([*lines, '', f'Machine: {rows[0]["processor"]}, torch {rows[0]["torch"]}.', ''])


TABLES = {'scale_estimate': estimate, 'scale_updates': updates}
