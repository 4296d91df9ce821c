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
from diffusers import DiffusionPipeline
from PIL import Image

from bnn_plugins import pack_, summarize
from bnn_plugins.analysis import processor
from bnn_plugins.apps.diffusion import metrics
from bnn_plugins.apps.diffusion.data import Images, build_dataset
from bnn_plugins.apps.diffusion.flags import parse_args
from bnn_plugins.apps.diffusion.grid import picture_grid
from bnn_plugins.apps.diffusion.sample import generate, kind_of
from bnn_plugins.apps.diffusion.train import main as train
from bnn_plugins.integrations.diffusers.loading import load_pipeline

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / 'results'
DOCS = ROOT / 'docs/diffusion'
SUITES = {
    'digits': ('ddpm_float_digits', 'ddpm_reactnet_digits', 'ddpm_binarydm_digits', 'ddpm_bidm_digits', 'ddpm_scan_digits',
               'ddpm_transformer_digits'),
    'emoji': ('ddpm_float_emoji', 'ddpm_bidm_emoji'),
    'sr': ('sr_float_emoji', 'sr_bidiffsr_emoji', 'sr_bidiffsr_es2_emoji'),
}
COLUMNS = ('config', 'model', 'train_steps', 'cpu_minutes', 'denoising_steps', 'pictures', 'params', 'binary_weights',
           'macs_m', 'ops_m', 'bytes', 'bytes_packed', 'layer_compression', 'mse', 'vlb', 'recognised', 'fd_clf', 'kid_clf',
           'c2st', 'fid', 'psnr', 'ssim', 'twin_psnr', 'packed_max_difference', *(f'mse_{i}' for i in range(10)), 'processor',
           'threads', 'torch', 'diffusers')
COMPARED = 16  # pictures that the latent and the packed UNet both draw
SHOWN = {False: 64, True: 6}  # pictures of a grid; super-resolution: of a row


def config_path(name: str) -> str:
    return str(ROOT / f'configs/diffusion/{name}.py')


def finished(name: str, folder: Path, flags: list[str]) -> float:
    """Train, resume or skip one config; minutes of processor time that the training took in all."""
    clock = folder / 'minutes.json'
    minutes = json.loads(clock.read_text()) if clock.is_file() else 0.0
    if not (folder / 'finished').is_file():
        start = time.process_time()
        try:
            train([config_path(name), '--output_dir', str(folder), '--resume_from_checkpoint', 'latest', *flags])
            (folder / 'finished').touch()
        finally:
            minutes += (time.process_time() - start) / 60
            if folder.is_dir():
                clock.write_text(json.dumps(minutes))
    return minutes


def train_steps(name: str, pictures: int, flags: list[str]) -> int:
    args = parse_args([config_path(name), *flags])
    return args.max_train_steps or args.num_epochs * (pictures // args.train_batch_size)


def sources(name: str) -> tuple[Images, Images]:
    args = parse_args([config_path(name)])
    return build_dataset(args.dataset, args.resolution, args.center_crop).split(args.holdout)


def as_images(pictures: list[np.ndarray]) -> torch.Tensor:
    """Float ``[H, W, C]`` in [0, 1] to uint8 ``[N, C, H, W]``, rounded as pipelines do."""
    return torch.from_numpy((np.stack(pictures) * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def costs(pipe: DiffusionPipeline) -> dict:
    """Size and operations of one call of the UNet for one picture of its sample size."""
    config = pipe.unet.config
    inputs = (torch.zeros(1, config.in_channels, config.sample_size, config.sample_size), torch.zeros(1, dtype=torch.long))
    summary = summarize(pipe.unet, inputs)
    totals = summary.totals
    row = dict(params=sum(p.numel() for p in pipe.unet.parameters()), binary_weights=totals.params_binary,
               macs_m=round(totals.macs / 1e6, 3), ops_m=round(totals.ops / 1e6, 3), bytes=totals.bytes_float)
    if totals.params_binary:
        row |= dict(bytes_packed=totals.bytes_packed, layer_compression=round(summary.layer_compression, 2))
    return row


def quality(pipe: DiffusionPipeline, held: Images, net, images: torch.Tensor, inception: str | None) -> dict:
    if held.conditions is not None:
        return metrics.restoration(images.float() / 255, held.images[:len(images)].float() / 255)
    real = held.images[:len(images)]
    row = metrics.noise_prediction(pipe.unet, pipe.scheduler, held) | metrics.distances(net, real, images)
    if held.labels is not None:
        row['recognised'] = metrics.recognised(net, images)
    return row if inception is None else row | dict(fid=metrics.inception_distance(inception, real, images))


def measure(name: str, folder: Path, held: Images, net, args: argparse.Namespace) -> tuple[dict, torch.Tensor]:
    """Cost and quality of one trained pipeline, packed where it is binary, how far that is from the latent one; pictures."""
    pipe = load_pipeline(str(folder))
    pipe.set_progress_bar_config(disable=True)
    conditions = None
    if held.conditions is not None:
        conditions = torch.stack([held[i]['condition'] for i in range(min(args.count, len(held)))])

    def draw(count: int) -> list[np.ndarray]:
        return generate(pipe, count, args.steps, conditions=conditions, output_type='np')

    row = dict(model=kind_of(pipe.unet), denoising_steps=args.steps) | costs(pipe)
    if row['model'] == 'latent':
        latent = draw(COMPARED)
        pack_(pipe.unet)
        row |= dict(model='packed', packed_max_difference=float(np.abs(np.stack(draw(COMPARED)) - np.stack(latent)).max()))
    pictures = draw(min(args.count, len(held)))
    row |= dict(pictures=len(pictures)) | quality(pipe, held, net, as_images(pictures), args.inception_weights)
    show(name, as_images(pictures), conditions is not None)
    return row, as_images(pictures)


def show(name: str, images: torch.Tensor, is_row: bool) -> None:
    """uint8 ``[N, C, H, W]`` as one picture beside the prose."""
    DOCS.mkdir(parents=True, exist_ok=True)
    arrays = [image.permute(1, 2, 0).squeeze(2).numpy() for image in images[:SHOWN[is_row]]]
    grid = picture_grid([Image.fromarray(array) for array in arrays], len(arrays) if is_row else None)
    grid.quantize(256).save(DOCS / f'{name}.png', optimize=True)


def floor(suite: str, data: tuple[Images, Images], net, count: int) -> dict:
    """What real pictures get: training pictures against held-out ones; for super-resolution, bicubic enlargement."""
    training, held = data
    if held.conditions is not None:
        for name, images in (('original', held.images), ('bicubic', held.conditions)):
            show(f'{suite}_{name}', images, is_row=True)
        return dict(config='bicubic', pictures=min(count, len(held))) | metrics.restoration(
            held.conditions[:count].float() / 255, held.images[:count].float() / 255)
    real = held.images[:count]
    show(f'{suite}_real', real, is_row=False)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(1))[:len(real)]
    row = dict(config='real pictures', pictures=len(real)) | metrics.distances(net, real, training.images[order])
    return row if held.labels is None else row | dict(recognised=metrics.recognised(net, real))


def write(path: Path, rows: list[dict], names: tuple[str, ...]) -> None:
    """Rows that were measured before stay where they are not measured anew."""
    known = {row['config']: row for row in csv.DictReader(path.open())} if path.is_file() else {}
    known |= {row['config']: row for row in rows}
    path.parent.mkdir(exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(known[name] for name in (rows[0]['config'], *names) if name in known)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('suite', choices=SUITES)
    parser.add_argument('--work-dir', default='work_dirs/diffusion', help='where the trainings go')
    parser.add_argument('--count', type=int, default=359, help='pictures to draw and to compare with')
    parser.add_argument('--steps', type=int, default=50, help='denoising steps')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--only', nargs='*', help='configs of the suite to run')
    parser.add_argument('--inception-weights', help='file with the weights of Inception v3, for the real FID')
    args, flags = parser.parse_known_args()  # the rest goes to tools/train_diffusion.py
    torch.set_num_threads(args.threads)
    names = args.only or SUITES[args.suite]
    work_dir = Path(args.work_dir)
    twin = SUITES[args.suite][0]
    minutes = {}
    for name in names:
        has_teacher = parse_args([config_path(name)]).teacher_config is not None
        if has_teacher and name != twin:
            finished(twin, work_dir / twin, flags)
        minutes[name] = finished(name, work_dir / name, [*(['--teacher_model', str(work_dir / twin)] if has_teacher else []),
                                                         *flags])
    data = sources(names[0])
    net = None if data[1].conditions is not None else metrics.train_feature_net(data[0])
    facts = dict(processor=processor(), threads=args.threads, torch=torch.__version__, diffusers=version('diffusers'))
    rows, of_twin = [floor(args.suite, data, net, args.count)], None
    for name in names:
        row, pictures = measure(name, work_dir / name, data[1], net, args)
        if name == twin:
            of_twin = pictures
        elif of_twin is not None:  # from the same noise
            row['twin_psnr'] = metrics.psnr(pictures.float() / 255, of_twin.float() / 255)
        rows.append(dict(config=name, train_steps=train_steps(name, len(data[0]), flags), cpu_minutes=round(minutes[name], 1))
                    | row | facts)
    write(RESULTS / f'{args.suite}.csv', rows, SUITES[args.suite])
    print(f'{len(rows)} rows in {RESULTS / f"{args.suite}.csv"}')


if __name__ == '__main__':
    main()
