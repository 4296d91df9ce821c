"""Grids of detectors: which configs they make, what they skip, and the table of their rows."""

import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.dataset import Compose

from benchmarks.cpu.networks import randomise_
from benchmarks.detection import rests, run, stages, tables
from benchmarks.detection.grids import GRIDS, Entry, Grid
from benchmarks.rows import read_rows, write_row
from bnn_plugins.integrations.mmengine.pack import build_model
from bnn_plugins.integrations.mmengine.run import load_config
from tests.test_integrations.conftest import REPOSITORY

TWIN, BINARY = 'retinanet_r18-half_fpn_raccoon', 'retinanet_bnn-r18-half_fpn_raccoon'


@pytest.mark.parametrize('grid', GRIDS)
def test_what_entries_name_is_there_and_twins_come_first(grid):
    before = set()
    for entry in GRIDS[grid].entries:
        assert (REPOSITORY / f'configs/detection/{entry.config}.py').is_file()
        assert all((REPOSITORY / f'configs/_base_/recipes/{name}.py').is_file() for name in entry.recipes)
        assert not entry.twin or entry.twin in before
        before.add(entry.config)


def test_epochs_are_divided_among_steps():
    whole = run.scheduled(Config(dict()), 5)
    assert whole == {'train_cfg.max_epochs': 5, 'train_cfg.val_interval': 5, 'param_scheduler.1.T_max': 5}
    halves = run.scheduled(Config(dict(steps=[dict(), dict()])), 5)
    assert [halves[f'steps.{step}.train_cfg.max_epochs'] for step in (0, 1)] == [3, 2]


def test_a_config_has_the_recipes_and_the_twin_of_its_seed(tmp_path, monkeypatch):
    """Mutation: the twin of another seed or length."""
    monkeypatch.setattr(run, 'latest_checkpoint', lambda path: f'{path}/last.pth')
    entry = Entry(BINARY, ('float_start', 'two_steps'), TWIN, times=2)
    path = run.write_config(entry, 3, 7, tmp_path, 'max_per_img = 5\n')
    cfg = load_config(str(path))
    twin = tmp_path / f'{TWIN}-7-3'
    assert cfg.float_twin == dict(config=f'{twin}/config.py', checkpoint=f'{twin}/last.pth')
    assert cfg.default_hooks.float_start.type == 'bnn_plugins.FloatStartHook'
    assert len(cfg.steps) == 2
    assert cfg.max_per_img == 5
    assert path.parent.name == f'{BINARY}-float_start-two_steps-14-3'


def test_rows_that_are_there_are_left_alone(tmp_path, monkeypatch):
    def row(entry, seed, work_dir, threads, epochs, text):
        ran.append((entry.config, seed))
        values = dict.fromkeys(run.Row.__annotations__, 1)
        return run.Row(**values | dict(config=entry.config, recipes='', seed=seed, epochs=epochs * entry.times))
    ran, out = [], tmp_path / 'rows.csv'
    monkeypatch.setattr(run, 'run', row)
    monkeypatch.setitem(run.GRIDS, 'raccoon', Grid((Entry('a'), Entry('b', times=2)), 3))
    monkeypatch.setattr(sys, 'argv', ['run', 'raccoon', '--seeds', '0', '--out', str(out)])
    run.main()
    run.main()
    monkeypatch.setattr(sys, 'argv', ['run', 'raccoon', '--seeds', '0', '1', '--out', str(out)])
    run.main()
    assert ran == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]


def test_times_are_those_beside_the_twin_of_the_same_seed(tmp_path, monkeypatch):
    """Mutation: the mean of all seeds of the twin in the place of the own one."""
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    lines = ['config,recipes,seed,epochs,test_map50,packed_map50,bytes_packed,cpu_minutes,processor,torch']
    lines += [f'{TWIN},,{seed},10,0.5,,,{minutes},cpu,1' for seed, minutes in ((0, 1.0), (1, 4.0))]
    lines += [f'{BINARY},,{seed},10,0.4,0.4,1000000,{minutes},cpu,1' for seed, minutes in ((0, 2.0), (1, 8.0), (2, 5.0))]
    (tmp_path / 'raccoon.csv').write_text('\n'.join(lines) + '\n')
    assert f'| {BINARY} |  | 3 | 10 | 40.0 ± 0.0 | 40.0 ± 0.0 | 1.00 |  | 2.0 ± 0.0x |' in tables.compared('raccoon')


def test_stages_of_a_detector_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    assert tables.stages().startswith('No results yet')
    row = stages.Row('retinanet_bnn-r18_fpn_bccd', 'int8', 0, 2, 1.0, 2.0, 3.0, 4.0, 10.0, 5.0, 1.25, 1.2, 1.3, 1.5)
    facts = dict(processor='p', torch='t', commit='c')
    for seed, total in (0, 10.0), (1, 12.0):
        write_row(tmp_path / 'bccd_stages.csv', asdict(replace(row, seed=seed, total=total)) | facts, ('seed',),
                  lambda r: r['seed'])
    ratios = '1.25 (1.20 to 1.30), 1.25 (1.20 to 1.30) | 1.50, 1.50 |'
    assert f'| binary | int8 | 2 | 1.00 | 2.00 | 3.00 | 4.00 | 11.00 | {ratios}' in tables.stages()


def test_stages_from_a_file_to_its_boxes(tmp_path):
    """Boxes are those of ``inference_detector`` on the same file. Mutation: they are not rescaled."""
    import cv2
    from mmdet.apis import inference_detector
    path, _ = str(tmp_path / 'image.png'), torch.manual_seed(0)
    cv2.imwrite(path, torch.randint(256, (90, 130, 3), dtype=torch.uint8).numpy())
    cfg = load_config(str(REPOSITORY / 'configs/detection/retinanet_r18_fpn_bccd.py'))
    model = randomise_(build_model(cfg)).eval()
    model.cfg = cfg
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations']
    dataset = SimpleNamespace(pipeline=Compose(steps), get_data_info=lambda place: dict(img_path=path, img_id=place))
    form = SimpleNamespace(model=model, loader=SimpleNamespace(dataset=dataset))
    spent, boxes = stages.staged(form)(dataset.get_data_info(0))
    assert len(spent) == len(tables.STAGES)
    with torch.no_grad():
        expected = inference_detector(model, path, Compose(steps)).pred_instances
    assert len(boxes) > 0
    assert torch.equal(boxes.bboxes, expected.bboxes)


def test_forms_of_a_detector_are_compared_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    config = 'retinanet_bnn-r18_fpn_bccd'
    facts = dict(epochs='8', ms='2', size='1000000', processor='p', torch='t', commit='c')
    assert tables.rests().startswith('No results yet')
    rows = [dict(config=config, rest=rest, seed=str(seed), test_map50=str(value)) | facts
            for rest, values in (('float32', (0.5, 0.6)), ('int8', (0.49, 0.61))) for seed, value in enumerate(values)]
    for row in rows:
        write_row(tmp_path / 'bccd_rests.csv', row, ('rest', 'seed'), lambda r: (r['rest'], r['seed']))
    assert '| binary | float32 | 2 | 55.0 ± 7.1 |  | 2.00 | 1.00 |' in tables.rests()
    assert '| binary | int8 | 2 | 55.0 ± 8.5 | -1.00, +1.00 | 2.00 | 1.00 |' in tables.rests()
    out = rests.plot(read_rows(tmp_path / 'bccd_rests.csv'), tmp_path / 'rests.png')
    assert out.read_bytes().startswith(b'\x89PNG')
