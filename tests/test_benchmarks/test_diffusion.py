"""The diffusion benchmark: rows that are kept, tables that say what the file says, pictures."""

import csv

import pytest
import torch

pytest.importorskip('diffusers')

from PIL import Image

from benchmarks.diffusion import run, tables
from bnn_plugins.apps.diffusion.flags import parse_args


def row(config, **values):
    return dict(config=config, threads='1', processor='a processor', torch='2', diffusers='1', denoising_steps=5) | values


def test_rows_that_are_not_measured_anew_stay(tmp_path):
    path = tmp_path / 'results/sr.csv'
    names = run.SUITES['sr']
    run.write(path, [row('bicubic', psnr=20), row(names[0], psnr=21), row(names[2], psnr=23)], names)
    run.write(path, [row('bicubic', psnr=20), row(names[1], psnr=22), row(names[2], psnr=24)], names)
    rows = list(csv.DictReader(path.open()))
    assert [(r['config'], float(r['psnr'])) for r in rows] == [
        ('bicubic', 20), (names[0], 21), (names[1], 22), (names[2], 24)]


def test_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    assert tables.super_resolution() == 'No results yet: `python -m benchmarks.diffusion.run sr`.\n'
    run.write(tmp_path / 'sr.csv', [
        dict(config='bicubic', psnr=20.126, ssim=0.5),
        row('sr_bidiffsr_emoji', psnr=21.5, ssim=0.75, train_steps=1000, cpu_minutes=7.25, pictures=64, params=1000,
            binary_weights=900, macs_m=640, ops_m=20, bytes=4000, bytes_packed=500, layer_compression=25.5,
            packed_max_difference=1.2e-6)], run.SUITES['sr'])
    text = tables.super_resolution()
    assert '| bicubic |  |  |  | 20.13 | 0.5000 |  |' in text
    assert '| sr_bidiffsr_emoji | 1000 | 7.2 | 64 | 21.50 | 0.7500 | 1.2e-06 |' in text
    assert '5 denoising steps' in text
    assert '| sr_bidiffsr_emoji | 1000 | 900 | 640.0 | 20.0 | 4 | 0 | 25.5 |' in tables.sizes()
    assert tables.digits().startswith('No results yet')


def test_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'DOCS', tmp_path / 'docs')
    images = torch.arange(20 * 3 * 64, dtype=torch.uint8).view(20, 3, 8, 8)
    run.show('colour', images, is_row=True)
    run.show('grey', images[:, :1], is_row=False)
    colour, grey = (Image.open(tmp_path / f'docs/{name}.png') for name in ('colour', 'grey'))
    assert colour.width > 5 * colour.height, 'six in a row'
    assert grey.height > grey.width / 2
    assert (tmp_path / 'docs/colour.png').stat().st_size < 300_000


def test_steps_of_a_config():
    assert run.train_steps('ddpm_float_digits', 1438, []) == 120 * (1438 // 64)
    assert run.train_steps('ddpm_float_digits', 1438, ['--max_train_steps', '7']) == 7


@pytest.mark.parametrize('suite', run.SUITES)
def test_suites_name_configs(suite):
    for name in run.SUITES[suite]:
        assert parse_args([run.config_path(name)]).output_dir == f'work_dirs/{name}'
