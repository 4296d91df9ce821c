"""The demo, end to end in minutes: make data, train a binary detector, pack it, evaluate the packed file, write a page."""

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import torch
from mmengine.config import Config
from mmengine.fileio import load

import bnn_kernels

from ..analysis import processor
from ..integrations.mmdet.boxes import match_boxes
from ..integrations.mmengine.pack import pack_checkpoint
from ..integrations.mmengine.run import latest_checkpoint, load_config, test, train
from ..integrations.mmengine.summarize import summarize_config
from .digits import DigitsRecipe, make_digits, read_recipe
from .report import Boxes, Report, Sample, read_scalars, write_report

CONFIG = 'bnn_plugins::detection/retinanet_bnn-r18_fpn_digits.py'
DATA = 'work_dirs/digits'
SCORE_THR = 0.3
SAMPLES = 6
SHORT = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.indices': 48, 'val_dataloader.dataset.indices': 24,
         'test_dataloader.dataset.indices': 24, 'model.test_cfg.score_thr': 0.0}


def run_demo(work_dir: str = 'work_dirs/demo', data: str = DATA, config: str = CONFIG, seed: int = 0,
             cfg_options: dict | None = None, short: bool = False) -> Path:
    """Make the digits set where it is missing, train, evaluate, pack, evaluate the packed file, write the report.

    What is done already is not done again: an interrupted training continues at its last epoch.

    Args:
        work_dir: for ``train/``, ``latent/``, ``packed/``, ``model.safetensors``, ``summary.csv``, ``report.html`` and
            ``report.json``. data: for the digits set.
        seed: of the training (the digits set keeps its own).
        cfg_options: further overrides of the config.
        short: one epoch on few pictures: it shows that every step runs here, and the detector finds nothing yet.

    Returns:
        the path of ``report.html``.

    Raises:
        ValueError: ``work_dir`` holds a run of another config. OSError: a folder cannot be written.
    """
    start = time.perf_counter()
    out, recipe = Path(work_dir), DigitsRecipe()
    options = {f'{split}_dataloader.dataset.data_root': f'{data}/' for split in ('train', 'val', 'test') if data != DATA}
    options |= {'randomness.seed': seed} if seed else {}
    options |= (SHORT if short else {}) | (cfg_options or {})
    cfg = load_config(config, cfg_options=options)

    say(1, f'digits set in {data}')
    if read_recipe(data) != asdict(recipe):
        make_digits(data, recipe)

    say(2, f'train {Path(config).stem}, {cfg.train_cfg.max_epochs} epochs')
    check_same_run(cfg, out / 'train' / Path(config).name)
    runner = train(config, str(out / 'train'), resume='auto', cfg_options=options)
    checkpoint = os.path.relpath(latest_checkpoint(out / 'train'))

    say(3, 'evaluate the latent model on the test split')
    latent, latent_found = evaluate(config, checkpoint, out / 'latent', options)

    say(4, 'pack it')
    packed_file = pack_checkpoint(config, checkpoint, str(out / 'model.safetensors'), cfg_options=options)
    print(f'{packed_file}: {packed_file.stat().st_size:,} bytes')

    say(5, 'evaluate the packed file on the test split')
    packed, packed_found = evaluate(config, str(packed_file), out / 'packed', options)
    backend = bnn_kernels.last_backend()
    print(f'backend: {backend}')

    say(6, 'report')
    _, summary = summarize_config(cfg, cfg.img_scale[::-1])
    summary.to_csv(out / 'summary.csv')
    training, validation = read_scalars(out / 'train')
    numbers = {
        'latent_map50': latent['coco/bbox_mAP_50'], 'packed_map50': packed['coco/bbox_mAP_50'],
        'latent_map': latent['coco/bbox_mAP'], 'packed_map': packed['coco/bbox_mAP'],
        'boxes': asdict(matched := match_boxes(latent_found, packed_found)),
        'bytes_float': summary.totals.bytes_float, 'bytes_packed': summary.totals.bytes_packed,
        'bytes_packed_file': packed_file.stat().st_size, 'seed': seed,
        'minutes_training': mean(training['time'].values()) * runner.max_iters / 60,
        'minutes': (time.perf_counter() - start) / 60}
    method = cfg.get('method', 'float')
    facts = {
        'Training': f'{cfg.train_cfg.max_epochs} epochs of {recipe.train} images, from scratch, seed {seed}',
        'Method': method if isinstance(method, str) else json.dumps(method),
        'Config': config,
        'Data': f'handwritten digits of scikit-learn, {recipe.train}/{recipe.val}/{recipe.test} canvases for training, '
                f'validation and test in {data}',
        'Backend of the packed layers': str(backend),
        'Latent against packed': f'on the test split: {matched}',
        'Packed file': f'{packed_file}, {numbers["bytes_packed_file"]:,} bytes, config included',
        **environment()}
    page = write_report(Report(
        title='A binary detector, trained and packed',
        lead='RetinaNet with 1-bit weights and activations in backbone and neck finds handwritten digits. The latent model '
             f'was trained with the method {facts["Method"]!r} and packed into bits; both were evaluated on the same '
             f'{recipe.test} test images.',
        numbers=numbers, facts=facts, commands=commands(config, checkpoint, packed_file, out, data, options),
        classes=cfg.metainfo.classes, palette=cfg.metainfo.palette, samples=choose_samples(latent_found, packed_found),
        training=training, validation=validation, summary=summary, score_thr=SCORE_THR), out)
    print(f'mAP@0.5: latent {numbers["latent_map50"]:.3f}, packed {numbers["packed_map50"]:.3f}; '
          f'{numbers["minutes"]:.1f} minutes\n{page.resolve()}')
    return page


def say(step: int, what: str) -> None:
    print(f'\n=== {step}/6  {what}', flush=True)


def check_same_run(cfg: Config, dumped: Path) -> None:
    """Resuming a run of another config would report its numbers under the wrong name.

    Raises:
        ValueError: when the config that the run in the folder dumped differs in what decides about the weights.
    """
    if not dumped.is_file():
        return
    before = Config.fromfile(dumped)
    for key in ('model', 'train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'randomness'):
        if before.get(key) != cfg.get(key):
            raise ValueError(f'{dumped.parent} holds a run of another config ({key!r} is not that of {dumped.name}): '
                             'choose another folder, or delete it')


def evaluate(config: str, checkpoint: str, work_dir: Path, options: dict) -> tuple[dict, list[dict]]:
    """The metrics on the test split, and mmdet's samples as dicts, in the order of the images."""
    dump = str(work_dir / 'predictions.pkl')
    metrics = test(config, checkpoint, str(work_dir), out=dump, cfg_options={**options, 'log_level': 'WARNING'})
    print(f'mAP@0.5 {metrics["coco/bbox_mAP_50"]:.3f}, mAP@0.5:0.95 {metrics["coco/bbox_mAP"]:.3f}')
    return metrics, sorted(load(dump), key=lambda sample: sample['img_id'])


def choose_samples(latent: list[dict], packed: list[dict]) -> list[Sample]:
    """A few test images at equal distances in the split: not chosen by how well they turned out."""
    samples = []
    for index in range(0, len(latent), max(len(latent) // SAMPLES, 1)):
        truth = latent[index]['instances']
        panels = {'ground truth': Boxes([box['bbox'] for box in truth], [box['bbox_label'] for box in truth])}
        for name, predictions in (('latent', latent), ('packed', packed)):
            found = predictions[index]['pred_instances']
            # Two classes may claim one digit: the better one is drawn last, on top.
            keep = [i for i in found['scores'].argsort().tolist() if found['scores'][i] >= SCORE_THR]
            panels[name] = Boxes(*(found[key][keep].tolist() for key in ('bboxes', 'labels', 'scores')))
        height, width = latent[index]['ori_shape']
        samples.append(Sample(Path(latent[index]['img_path']), width, height, panels))
    return samples[:SAMPLES]


def environment() -> dict[str, str]:
    """Machine, versions and date for the page."""
    packages = ('torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'numpy')
    return {
        'Machine': f'{processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores, {platform.system()} '
                   f'{platform.machine()}',
        'Versions': ', '.join([f'Python {platform.python_version()}', *(f'{name} {version(name)}' for name in packages)]),
        'Date': time.strftime('%Y-%m-%d %H:%M %Z')}


def commands(config: str, checkpoint: str, packed_file: Path, out: Path, data: str, overrides: dict) -> list[str]:
    """Shell lines that repeat the demo, and its steps one by one."""
    options = ''.join(f' {key}={value}' for key, value in overrides.items())
    options = f' --cfg-options{options}' if options else ''
    return [
        f'bnn demo --work-dir {out} --data {data} --seed {overrides.get("randomness.seed", 0)}',
        '# the same, step by step',
        f'bnn make-digits {data}',
        f'bnn train {config} --work-dir {out}/train{options}',
        f'bnn test {config} {checkpoint}{options}',
        f'bnn pack {config} {checkpoint} {packed_file}',
        f'bnn test {config} {packed_file}{options}',
    ]
