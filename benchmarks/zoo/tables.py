"""The tables of docs/models.md, from the results files of this benchmark."""

from collections import Counter
from functools import partial
from pathlib import Path

from ..rows import read_rows

HERE = Path(__file__).parent
OK, SKIPPED = 'ok', 'not reached'
STAGES = ('float', 'build', 'loss', 'gradients', 'real', 'packed', 'saved', 'fused', 'summary')


def rows_of(host: str) -> list[dict[str, str]]:
    return [row for row in read_rows(HERE / f'results/{host}.csv') if not row['float'].startswith('no such way')]


def counts() -> str:
    """One line per host and way: how many reach each stage."""
    lines = ['| host | way | models | float runs here | ' + ' | '.join(STAGES[1:]) + ' |', '|---' * (len(STAGES) + 3) + '|']
    for host in ('mmdet', 'diffusers'):
        for way in sorted({row['way'] for row in rows_of(host)}):
            rows = [row for row in rows_of(host) if row['way'] == way]
            passed = Counter(stage for row in rows for stage in STAGES if row[stage] == OK)
            cells = [host, way, str(len(rows)), *(str(passed[stage]) for stage in STAGES)]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, ''])


def models(host: str) -> str:
    """One line per model and way, and the first stage that it fails."""
    rows = rows_of(host)
    lines = ['| model | way | layers | binary | data flow | result |', '|---|---|---|---|---|---|']
    for row in rows:
        failed = next((f'{stage}: {row[stage]}' for stage in STAGES if row[stage] not in (OK, SKIPPED)), 'works')
        failed = failed.replace('float:', 'float does not run:').replace('|', '\\|')[:160]
        traced = {'': '', 'a forward pass decided, then names and classes': 'whole'}.get(row['traced'], 'in part')
        lines.append(f'| {row["name"]} | {row["way"]} | {row["layers"]} | {row["binary"]} | {traced} | {failed} |')
    versions = sorted({f'{host} {row["host"]}, commit {row["commit"]}' for row in rows})
    return '\n'.join([*lines, '', f'Versions: {"; ".join(versions)}.', ''])


TABLES = {'models': counts, 'models_mmdet': partial(models, 'mmdet'), 'models_diffusers': partial(models, 'diffusers')}
