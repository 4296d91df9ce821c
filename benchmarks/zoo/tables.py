"""The tables of docs/models.md, from the results files of this benchmark."""

from collections import Counter
from functools import partial
from pathlib import Path

from ..rows import read_rows

HERE = Path(__file__).parent
HOSTS = {'mmdet': 'mmdet', 'diffusers': 'diffusers', 'pipelines': 'diffusers'}
OK, SKIPPED = 'ok', 'not reached'
STAGES = ('float', 'build', 'loss', 'gradients', 'real', 'packed', 'saved', 'fused', 'summary')
PIPELINE_STAGES = ('float', 'build', 'finite', 'packed', 'saved', 'offloaded', 'fused')


def stages_of(host: str) -> tuple[str, ...]:
    return PIPELINE_STAGES if host == 'pipelines' else STAGES


def rows_of(host: str) -> list[dict[str, str]]:
    return [row for row in read_rows(HERE / f'results/{host}.csv') if not row['float'].startswith('no such way')]


def counts() -> str:
    """One line per host and way: how many reach each stage."""
    return '\n'.join(counted('mmdet', 'diffusers'))


def counted(*hosts: str) -> list[str]:
    stages = stages_of(hosts[0])
    lines = ['| host | way | models | float runs here | ' + ' | '.join(stages[1:]) + ' |', '|---' * (len(stages) + 3) + '|']
    for host in hosts:
        for way in sorted({row['way'] for row in rows_of(host)}):
            rows = [row for row in rows_of(host) if row['way'] == way]
            passed = Counter(stage for row in rows for stage in stages if row[stage] == OK)
            cells = [host, way, str(len(rows)), *(str(passed[stage]) for stage in stages)]
            lines.append(f'| {" | ".join(cells)} |')
    return [*lines, '']


def models(host: str) -> str:
    """One line per model and way, and the first stage that it fails."""
    rows = rows_of(host)
    lines = ['| model | way | layers | binary | data flow | result |', '|---|---|---|---|---|---|']
    for row in rows:
        works = f'works; with the float one neither: {row["refused"]}' if row.get('refused') else 'works'
        failed = next((f'{stage}: {row[stage]}' for stage in stages_of(host) if row[stage] not in (OK, SKIPPED)), works)
        failed = failed.replace('float:', 'float does not run:').replace('|', '\\|')[:160]
        traced = {'': '', 'a forward pass decided, then names and classes': 'whole'}.get(row['traced'], 'in part')
        lines.append(f'| {row["name"]} | {row["way"]} | {row["layers"]} | {row["binary"]} | {traced} | {failed} |')
    versions = sorted({f'{HOSTS[host]} {row["host"]}, commit {row["commit"]}' for row in rows})
    return '\n'.join([*lines, '', f'Versions: {"; ".join(versions)}.', ''])


def pipelines() -> str:
    """How many pipelines reach each stage, and one line for each."""
    return '\n'.join([*counted('pipelines'), models('pipelines')])


TABLES = {'models': counts, 'models_pipelines': pipelines,
          'models_mmdet': partial(models, 'mmdet'), 'models_diffusers': partial(models, 'diffusers')}
