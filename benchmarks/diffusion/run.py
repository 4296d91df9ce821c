"""Train, sample, measure and pack diffusion models: one CSV row per config, and the floor of real pictures.

Finished trainings are not repeated, interrupted ones resume. ``python -m benchmarks.diffusion.run --help``.
"""

import argparse
import csv
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler

from bnn_plugins import pack_, summarize
from bnn_plugins.analysis import processor
from bnn_plugins.hosts.diffusers import metrics
from bnn_plugins.hosts.diffusers.data import Images, build_dataset
from bnn_plugins.hosts.diffusers.flags import parse_args
from bnn_plugins.hosts.diffusers.grid import picture_grid
from bnn_plugins.hosts.diffusers.sample import generate, kind_of, load_pipeline
from bnn_plugins.hosts.diffusers.train import main as train

RESULTS = Path(__file__).parent / 'results'
SUITES = {
    'digits': ('ddpm_float_digits', 'ddpm_reactnet_digits', 'ddpm_bidm_digits'),
    'emoji': ('ddpm_float_emoji', 'ddpm_bidm_emoji'),
    'sr': ('sr_float_emoji', 'sr_bidiffsr_emoji', 'sr_bidiffsr_es2_emoji'),
}
COLUMNS = ('config', 'model', 'steps', 'minutes', 'params', 'binary_weights', 'ops_m', 'bytes', 'bytes_packed', 'mse', 'vlb',
           'recognised', 'fd_clf', 'kid_clf', 'c2st', 'psnr', 'ssim', 'packed_max_difference', 'processor', 'threads', 'torch',
           'diffusers')


def config_path(name: str) -> str:
    return str(Path(__file__).parents[2] / f'configs/diffusion/{name}.py')


def finished(name: str, folder: Path, flags: list[str]) -> float:
    """Train, resume or skip one config; minutes that the training took in all."""
    clock = folder / 'minutes.json'
    minutes = json.loads(clock.read_text()) if clock.is_file() else 0.0
    if not (folder / 'finished').is_file():
        start = time.perf_counter()
        try:
            train([config_path(name), '--output_dir', str(folder), '--resume_from_checkpoint', 'latest', *flags])
            (folder / 'finished').touch()
        finally:
            minutes += (time.perf_counter() - start) / 60
            if folder.is_dir():
                clock.write_text(json.dumps(minutes))
    return minutes


def sources(name: str) -> tuple[Images, Images]:
    args = parse_args([config_path(name)])
    return build_dataset(args.dataset, args.resolution, args.center_crop).split(args.holdout)


def pixels(pictures: list) -> torch.Tensor:
    """PIL to uint8 ``[N, C, H, W]``."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2).copy())


def measure(name: str, folder: Path, data: tuple[Images, Images], net, count: int, steps: int) -> dict:
    """Quality of one trained pipeline, and of the same after packing."""
    held = data[1]
    pipe = load_pipeline(str(folder))
    pipe.set_progress_bar_config(disable=True)
    is_sr = held.conditions is not None
    conditions = torch.stack([held[i]['condition'] for i in range(min(count, len(held)))]) if is_sr else None
    if not is_sr:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pictures = pixels(generate(pipe, count if conditions is None else len(conditions), steps, conditions=conditions))
    config = pipe.unet.config
    inputs = (torch.zeros(1, config.in_channels, config.sample_size, config.sample_size), torch.zeros(1, dtype=torch.long))
    totals = summarize(pipe.unet, inputs).totals
    row = dict(params=sum(p.numel() for p in pipe.unet.parameters()), binary_weights=totals.params_binary,
               ops_m=round(totals.ops / 1e6, 3), bytes=totals.bytes_float,
               bytes_packed=totals.bytes_packed if totals.params_binary else '')
    if is_sr:
        row |= metrics.restoration(pictures.float() / 255, held.images[:len(pictures)].float() / 255)
    else:
        row |= {key: value for key, value in metrics.noise_prediction(pipe.unet, pipe.scheduler, held).items()
                if key in ('mse', 'vlb')}
        row |= metrics.distances(net, held.images[:count], pictures[:len(held.images[:count])])
        row['recognised'] = metrics.recognised(net, pictures) if held.labels is not None else ''
    row['model'] = kind_of(pipe.unet)
    if row['model'] == 'latent':
        packed = pack_(pipe.unet) and pixels(generate(pipe, len(pictures), steps, conditions=conditions))
        row['packed_max_difference'] = int((packed.int() - pictures.int()).abs().max())
    picture_grid([*map(to_pil, pictures[:64])]).save(RESULTS / f'{name}.png')
    return row


def to_pil(picture: torch.Tensor):
    from PIL import Image
    array = picture.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def floor(data: tuple[Images, Images], net, count: int) -> dict:
    """What real pictures get: training pictures against held-out ones; for super-resolution, bicubic enlargement."""
    training, held = data
    if held.conditions is not None:
        return dict(config='bicubic', model='') | metrics.restoration(held.conditions[:count].float() / 255,
                                                                      held.images[:count].float() / 255)
    real = held.images[:count]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(1))[:len(real)]
    recognised = metrics.recognised(net, real) if held.labels is not None else ''
    return dict(config='real pictures', model='', recognised=recognised) | metrics.distances(net, real, training.images[order])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('suite', choices=SUITES)
    parser.add_argument('--work-dir', default='work_dirs/diffusion', help='where the trainings go')
    parser.add_argument('--count', type=int, default=359, help='pictures to draw and to compare with')
    parser.add_argument('--steps', type=int, default=50, help='denoising steps')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--only', nargs='*', help='configs of the suite to run')
    args, flags = parser.parse_known_args()  # the rest goes to tools/train_diffusion.py
    torch.set_num_threads(args.threads)
    RESULTS.mkdir(exist_ok=True)
    names = args.only or SUITES[args.suite]
    minutes = {name: finished(name, Path(args.work_dir) / name, flags) for name in names}
    data = sources(names[0])
    net = None if data[1].conditions is not None else metrics.train_feature_net(data[0])
    facts = dict(processor=processor(), threads=args.threads, torch=torch.__version__, diffusers=version('diffusers'))
    rows = [floor(data, net, args.count)]
    for name in names:
        row = measure(name, Path(args.work_dir) / name, data, net, args.count, args.steps)
        rows.append(dict(config=name, steps=args.steps, minutes=round(minutes[name], 1)) | row | facts)
    with (RESULTS / f'{args.suite}.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f'{len(rows)} rows in {RESULTS / f"{args.suite}.csv"}')


if __name__ == '__main__':
    main()
