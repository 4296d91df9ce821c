"""Tables of docs/diffusion.md, from the results files."""

import csv
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'

MISSING = 'No results yet: `python -m benchmarks.diffusion.run {}`.\n'
NUMBERS = {  # column of a table: key, factor, digits
    'recognised (%)': ('recognised', 100, 1), 'FD_clf': ('fd_clf', 1, 2), 'KID_clf': ('kid_clf', 1, 2), 'C2ST': ('c2st', 1, 3),
    'noise MSE': ('mse', 1, 4), 'VLB (bits/dim)': ('vlb', 1, 3), 'PSNR (dB)': ('psnr', 1, 2),
    'PSNR to the twin': ('twin_psnr', 1, 1), 'SSIM': ('ssim', 1, 4),
    'params': ('params', 1, 0), 'binary weights': ('binary_weights', 1, 0), 'MACs (M)': ('macs_m', 1, 1),
    'OPs (M)': ('ops_m', 1, 1), 'KB float': ('bytes', 1e-3, 0), 'KB packed': ('bytes_packed', 1e-3, 0),
    'binarized layers': ('layer_compression', 1, 1), 'minutes': ('cpu_minutes', 1, 1), 'steps': ('train_steps', 1, 0),
    'pictures': ('pictures', 1, 0),
}


def rows_of(suite: str) -> list[dict]:
    path = RESULTS / f'{suite}.csv'
    return list(csv.DictReader(path.open())) if path.is_file() else []


def cell(row: dict, column: str) -> str:
    key, factor, digits = NUMBERS[column]
    return f'{float(row[key]) * factor:.{digits}f}' if row[key] else ''


def table(rows: list[dict], columns: tuple[str, ...], differences: bool = False) -> str:
    head = ['', *columns, *(['packed - latent'] if differences else [])]
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for row in rows:
        cells = [row['config'], *(cell(row, column) for column in columns)]
        if differences:
            difference = row['packed_max_difference']
            cells.append(f'{float(difference):.2g}' if difference else '')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def machine(rows: list[dict]) -> str:
    facts = {f'{row["processor"]}, {row["threads"]} thread, torch {row["torch"]}, diffusers {row["diffusers"]}, '
             f'{row["denoising_steps"]} denoising steps' for row in rows if row['processor']}
    return f'\nMachine: {"; ".join(sorted(facts))}.\n'


def suite_table(suite: str, columns: tuple[str, ...]) -> str:
    rows = rows_of(suite)
    return table(rows, columns, differences=True) + machine(rows) if rows else MISSING.format(suite)


def digits() -> str:
    return suite_table('digits', ('steps', 'minutes', 'recognised (%)', 'FD_clf', 'KID_clf', 'C2ST', 'noise MSE',
                                  'VLB (bits/dim)', 'PSNR to the twin'))


def timesteps() -> str:
    """Error of the noise prediction of the digits by timestep, least noise first."""
    rows = [row for row in rows_of('digits') if row['mse_0']]
    if not rows:
        return MISSING.format('digits')
    head = ['t', *(f'{100 * i}..{100 * i + 99}' for i in range(10))]
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for row in rows:
        errors = [f'{float(row[f"mse_{i}"]):.3f}' for i in range(10)]
        lines.append(f'| {row["config"]} | {" | ".join(errors)} |')
    return '\n'.join(lines) + '\n'


def emoji() -> str:
    return suite_table('emoji', ('steps', 'minutes', 'FD_clf', 'KID_clf', 'C2ST', 'noise MSE', 'VLB (bits/dim)'))


def super_resolution() -> str:
    return suite_table('sr', ('steps', 'minutes', 'pictures', 'PSNR (dB)', 'SSIM'))


def sizes() -> str:
    """Every trained config: float and packed."""
    rows = [row for suite in ('digits', 'emoji', 'sr') for row in rows_of(suite) if row['params']]
    if not rows:
        return MISSING.format('digits')
    return table(rows, ('params', 'binary weights', 'MACs (M)', 'OPs (M)', 'KB float', 'KB packed', 'binarized layers'))


TABLES = {'diffusion_digits': digits, 'diffusion_timesteps': timesteps, 'diffusion_emoji': emoji,
          'diffusion_sr': super_resolution, 'diffusion_sizes': sizes}
