"""Tables of docs/sequence.md."""

from functools import partial
from pathlib import Path

from ..rows import read_rows

RESULTS = Path(__file__).parent / 'results'
KINDS = {'lstm_text': 'float', 'blstm_weight-only_text': 'binary weights', 'blstm_text': 'binary weights, inputs, states',
         'blstm_binary-gates_text': 'the same and binary gates, in two stages'}

DETECTORS = ('retinanet_bnn-r18_fpn_bccd', 'retinanet_bnn-r18_fpn-bilstm_bccd', 'retinanet_bnn-r18_fpn_bccd-clips',
             'retinanet_bnn-r18_fpn-convlstm_bccd-clips')
TRANSFORMERS = ('retinanet_bnn-r18_fpn_bccd', 'retinanet_bnn-vit_fpn_bccd')


def machine(rows: list[dict[str, str]]) -> str:
    names = sorted({f'{row["processor"]}, torch {row["torch"]}' for row in rows})
    return f'Minutes of one training (threads). Machine: {"; ".join(names)}.'


def text() -> str:
    """Bits per character of each model, and what it costs over the float one."""
    rows = read_rows(RESULTS / 'text.csv')
    if not rows:
        return 'No results yet: `python -m benchmarks.sequence.run`.\n'
    floats = {row['seed']: float(row['bpc']) for row in rows if row['config'] == 'lstm_text'}
    lines = ['| config | what | seed | iterations | bits per character | more than float | packed | MB | MB packed | '
             'minutes |',
             '|---|---|---|---|---|---|---|---|---|---|']
    for row in rows:
        bpc = float(row['bpc'])
        more = f'{bpc - floats[row["seed"]]:+.3f}' if row['seed'] in floats and row['packed_bpc'] else ''
        packed = f'{float(row["packed_bpc"]):.3f}' if row['packed_bpc'] else ''
        size = f'{int(row["bytes_packed"]) / 1e6:.2f}' if row['bytes_packed'] else ''
        cells = [row['config'], KINDS[row['config']], row['seed'], row['iterations'], f'{bpc:.3f}', more, packed,
                 f'{int(row["bytes_float"]) / 1e6:.2f}', size, f'{row["minutes"]} ({row["threads"]})']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, '', machine(rows), ''])


def samples() -> str:
    """What each model writes; the binary ones from their bits."""
    rows = [row for row in read_rows(RESULTS / 'text.csv') if row['seed'] == '0']
    return '\n'.join(f'{row["config"]} ({KINDS[row["config"]]}):\n\n```text\n{row["sample"].strip()}\n```\n' for row in rows) \
        or 'No results yet: `python -m benchmarks.sequence.run`.\n'


def detectors(names: tuple[str, ...]) -> str:
    """mAP@0.5 with and without the blocks, equal epochs."""
    rows = [row for row in read_rows(RESULTS / 'detectors.csv') if row['config'] in names]
    rows.sort(key=lambda row: names.index(row['config']))
    if not rows:
        return ('No results yet: `python -m benchmarks.detection.run --configs ... --out '
                'benchmarks/sequence/results/detectors.csv`.\n')
    lines = ['| config | epochs | val mAP@0.5 (%) | test mAP@0.5 (%) | packed (%) | MB packed | minutes |',
             '|---|---|---|---|---|---|---|']
    for row in rows:
        cells = [row['config'], row['epochs'], *(f'{100 * float(row[key]):.1f}' for key in ('val_map50', 'test_map50',
                                                                                         'packed_map50')),
                 f'{int(row["bytes_packed"]) / 1e6:.2f}', f'{row["minutes"]} ({row["threads"]})']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, '', machine(rows), ''])


TABLES = {'sequence_text': text, 'sequence_samples': samples, 'sequence_detectors': partial(detectors, DETECTORS),
          'transformer_detectors': partial(detectors, TRANSFORMERS)}
