"""``bnn sample``: pictures from a saved pipeline or a name of the zoo, latent, packed on the way, or packed already."""

import argparse
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import bnn_kernels

from ... import zoo
from ...deploy import PackedLayer, pack_
from ...integrations.diffusers.class_pipeline import ClassConditionalPipeline
from ...integrations.diffusers.loading import load_pipeline
from ...integrations.diffusers.sr_pipeline import SuperResolutionPipeline
from ...layers import BinaryLayer
from ...progress import track
from ..zoo import load
from .data import build_dataset
from .grid import picture_grid


def kind_of(unet: torch.nn.Module) -> str:
    """``'packed'``, ``'latent'`` or ``'float'``."""
    modules = list(unet.modules())
    if any(isinstance(module, PackedLayer) for module in modules):
        return 'packed'
    return 'latent' if any(isinstance(module, BinaryLayer) for module in modules) else 'float'


def generate(pipe: DiffusionPipeline, count: int, steps: int, seed: int = 0, batch_size: int = 64,
             conditions: torch.Tensor | None = None, output_type: str = 'pil') -> list:
    """``count`` PIL pictures, or arrays ``[H, W, C]`` in [0, 1] (``'np'``); a batch's noise does not depend on the others.

    ``conditions``: enlarged pictures, or classes; by default all classes of a class-conditional pipeline in turn.
    """
    images = []
    if conditions is None and isinstance(pipe, ClassConditionalPipeline):
        conditions = torch.arange(count) % pipe.unet.config.num_class_embeds
    pipe.set_progress_bar_config(disable=True)
    for start in track(range(0, count, batch_size), 'sample'):
        size = min(batch_size, count - start)
        options = dict(generator=torch.Generator().manual_seed(seed + start), num_inference_steps=steps,
                       output_type=output_type)
        batch = pipe(batch_size=size, **options) if conditions is None else pipe(conditions[start:start + size], **options)
        images += list(batch.images)
    return images


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser('sample.py', description='Draws pictures from a saved pipeline.',
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('pipeline', help='folder of a pipeline, or a name of the zoo (bnn zoo list)')
    parser.add_argument('--out', default='samples.png', help='the picture of all pictures')
    parser.add_argument('--num', type=int, default=64, help='how many pictures')
    parser.add_argument('--steps', type=int, default=50, help='denoising steps')
    parser.add_argument('--seed', type=int, default=0, help=' ')
    parser.add_argument('--pack', action='store_true', help='pack the binary layers first')
    parser.add_argument('--save-packed', help='folder to save the packed pipeline in')
    parser.add_argument('--classes', type=int, nargs='+', help='class-conditional: which classes, in turn (default: all)')
    parser.add_argument('--low', help='super-resolution: folder of small pictures')
    parser.add_argument('--high', help='super-resolution: folder of the same names in full size')
    args = parser.parse_args(argv)
    for flag, value in (('--num', args.num), ('--steps', args.steps)):
        if value < 1:
            raise ValueError(f'{flag} must be at least 1, but got {value}')
    pipe = load(args.pipeline) if args.pipeline in zoo.names() else load_pipeline(args.pipeline)
    if args.pack or args.save_packed:
        pack_(pipe.unet)
    if args.save_packed:
        pipe.save_pretrained(args.save_packed)
    conditions = None
    if isinstance(pipe, SuperResolutionPipeline):
        if args.low is None or args.high is None:
            raise ValueError('super-resolution needs pictures: pass --low and --high')
        pairs = dict(type='sr_folders', low=args.low, high=args.high, limit=args.num)
        data = build_dataset(pairs, pipe.unet.config.sample_size)
        conditions = torch.stack([data[i]['condition'] for i in range(len(data))])
    if args.classes is not None:
        if not isinstance(pipe, ClassConditionalPipeline):
            raise ValueError('--classes is for pipelines that were trained with classes (num_class_embeds)')
        conditions = torch.tensor(args.classes).repeat(-(-args.num // len(args.classes)))[:args.num]
    start = time.perf_counter()
    images = generate(pipe, args.num if conditions is None else len(conditions), args.steps, args.seed, conditions=conditions)
    kind, seconds = kind_of(pipe.unet), time.perf_counter() - start
    ran = f' on the backend {bnn_kernels.last_backend()!r}' if kind == 'packed' else ''
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    picture_grid(images).save(args.out)
    print(f'{len(images)} pictures by the {kind} UNet{ran} in {seconds:.1f} s: {args.out}')
    return Path(args.out)
