"""Index files of the configs, generated from the configs, ``PAPERS`` and the result files.

``python -m benchmarks.metafiles`` writes ``configs/*/metafile.yml`` and ``configs/*/README.md``; ``--check`` compares.
"""

import argparse
import csv
import re
import sys
from pathlib import Path
from statistics import mean

import yaml

from bnn_plugins import zoo

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
ARXIV = 'https://arxiv.org/abs/'
# folder -> (collection, page of the documentation, architecture, tool that trains)
COLLECTIONS = {
    'classification': ('BinaryClassifiers', 'docs/classification.md', ['Binary convolution', 'RSign', 'RPReLU'], 'train'),
    'detection': ('BinaryDetectors', 'docs/start/detection.md', ['Binary convolution', 'RSign', 'RPReLU'], 'train'),
    'diffusion': ('BinaryDiffusionModels', 'docs/diffusion.md', ['Binary convolution', 'UNet'], 'train_diffusion'),
    'sequence': ('BinaryRecurrentNetworks', 'docs/sequence.md', ['Binary LSTM'], 'train'),
}
# Words of a config's name -> paper; the first that is in the name counts.
PAPERS = {
    'bidet': '2003.03963', 'idadet': '2210.03477', 'bidiffsr': '2406.05723', 'bidm': '2412.05926', 'binarydm': '2404.05662',
    'thresholds': '2503.23709', 'es': '2503.23709', 'rep': '2207.09049', 'binaryvit': '2306.16678', 'bit': '2205.13016',
    'bnext': '2211.12933', 'adambnn': '2106.11309', 'reactnet': '2003.03488', 'real2binary': '2003.11535',
    'rebnn': '2302.00956', 'recu': '2103.12369', 'rbnn': '2009.13055', 'irnet': '1909.10788', 'bireal': '1808.00278',
    'xnorpp': '1909.13863', 'xnor': '1603.05279', 'dorefa': '1606.06160', 'binaryconnect': '1511.00363',
    'binarynet': '1602.02830', 'bnfree': '2104.08215', 'bnn': '2003.03488', 'blstm': '2003.03488',
}


# Result file -> its column and how that is written.
RESULTS = {
    'detection/results/bccd.csv': ('test_map50', lambda value: f'test mAP@0.5 {100 * value:.1f} %'),
    'detection/results/raccoon.csv': ('test_map50', lambda value: f'test mAP@0.5 {100 * value:.1f} %'),
    'sequence/results/detectors.csv': ('test_map50', lambda value: f'test mAP@0.5 {100 * value:.1f} %'),
    'sequence/results/text.csv': ('bpc', lambda value: f'{value:.3f} bits per character'),
    'diffusion/results/digits.csv': ('mse', lambda value: f'noise MSE {value:.4f}'),
    'diffusion/results/emoji.csv': ('mse', lambda value: f'noise MSE {value:.4f}'),
    'diffusion/results/sr.csv': ('psnr', lambda value: f'PSNR {value:.2f} dB'),
}


def results() -> dict[str, dict]:
    """``{config: {'Results', 'MB packed', 'OPs (M)'}}`` of what was measured here; the mean of several seeds."""
    found = {}
    for path, (column, written) in RESULTS.items():
        rows = list(csv.DictReader((ROOT / 'benchmarks' / path).open()))
        for config in dict.fromkeys(row['config'] for row in rows if row[column]):
            mine = [row for row in rows if row['config'] == config and not row.get('recipes')]
            mine = [row for row in mine if row.get('epochs') == mine[0].get('epochs')]  # not a longer control beside it
            entry = {'Results': written(mean(float(row[column]) for row in mine))}
            if size := mine[0].get('bytes_packed'):
                entry['MB packed'] = round(float(size) / 1e6, 2)
            if ops := mine[0].get('ops_m'):
                entry['OPs (M)'] = round(float(ops), 1)
            found.setdefault(config, entry)
    return found


def published() -> dict[str, str]:
    """``{config: accuracy that the authors published}``, for the networks of the papers without an expansion."""
    rows = csv.DictReader((ROOT / 'benchmarks/accuracy/published.csv').open())
    return {f'{row["network"]}_{row["method"]}_{row["data"].replace("-", "").lower()}':
            f'top-1 {row["top1"]} % ({row["source"]})' for row in rows if row['expand'] == 'none'}


def paper(name: str) -> str | None:
    words = re.split(r'[_-]', re.sub(r'-?tau\d|-w\da\d', '', name))
    return next((number for word, number in PAPERS.items() if word in words), None)


def models(folder: str) -> list[dict]:
    """The entries of a metafile, in the order of the names."""
    collection, _, _, tool = COLLECTIONS[folder]
    measured, authors = results(), published()
    entries = []
    for path in sorted((CONFIGS / folder).glob('*.py')):
        name, config = path.stem, f'configs/{folder}/{path.name}'
        entry = {'Name': name, 'In Collection': collection, 'Config': config}
        if number := paper(name):
            entry['Paper'] = {'URL': ARXIV + number}
        entry['Metadata'] = {'Training Command': f'python tools/{tool}.py {config}'}
        if name in authors:
            entry['Published'] = authors[name]
        entry |= measured.get(name, {'Results': 'not yet run'})
        if name in zoo.names():
            entry['Weights'] = f'bnn_plugins/zoo/{name}.safetensors'
        entries.append(entry)
    return entries


def metafile(folder: str) -> str:
    collection, page, architecture, _ = COLLECTIONS[folder]
    content = {'Collections': [{'Name': collection, 'README': page, 'Metadata': {'Architecture': architecture}}],
               'Models': models(folder)}
    return '# Written by python -m benchmarks.metafiles.\n' + yaml.safe_dump(content, sort_keys=False, width=120)


def readme(folder: str) -> str:
    _, page, _, tool = COLLECTIONS[folder]
    lines = [f'# {folder.capitalize()}', '',
             f'Written by `python -m benchmarks.metafiles`. How to use these configs: [{page}](../../{page}).', '',
             '```shell', f'bnn {tool.replace("_", "-")} bnn_plugins::{folder}/{models(folder)[0]["Name"]}.py', '```', '',
             '| config | paper | published | measured here | MB packed | weights |', '|---|---|---|---|---|---|']
    for entry in models(folder):
        url = entry.get('Paper', {}).get('URL', '')
        cell = f'[{url.removeprefix(ARXIV)}]({url})' if url else ''
        weights = f'`bnn_plugins.load({entry["Name"]!r})`' if 'Weights' in entry else ''
        lines.append(f'| [{entry["Name"]}]({entry["Name"]}.py) | {cell} | {entry.get("Published", "")} | {entry["Results"]} | '
                     f'{entry.get("MB packed", "")} | {weights} |')
    return '\n'.join(lines) + '\n'


def files() -> dict[Path, str]:
    return {CONFIGS / folder / name: text(folder) for folder in COLLECTIONS
            for name, text in (('metafile.yml', metafile), ('README.md', readme))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='exit with 1 when a file is out of date')
    check = parser.parse_args().check
    for path, text in files().items():
        if check and (not path.is_file() or path.read_text() != text):
            sys.exit(f'{path.relative_to(ROOT)} is out of date; run python -m benchmarks.metafiles')
        path.write_text(text)


if __name__ == '__main__':
    main()
