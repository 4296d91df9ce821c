#!/usr/bin/env python
"""The model of a config against its float twin, in turns: throughput of the packed model, or with --train its training.

Throughput: CSV files, plots and one HTML page. Training: time of a step and its parts, memory; a table and a CSV file.
"""

import argparse
import sys
from pathlib import Path

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f'{text!r} is no size: write HEIGHTxWIDTH, such as 256x320')
    return int(height), int(width)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or a name like mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    parser.add_argument('checkpoint', nargs='?', help='.pth checkpoint or packed .safetensors; default random weights')
    parser.add_argument('--train', action='store_true', help='measure training steps; also of a diffusion config')
    parser.add_argument('--compiled', action='store_true', help='with --train: the float twin with torch.compile, too')
    parser.add_argument('--out', help='folder for CSV files and page; default work_dirs/<config name>/benchmark')
    parser.add_argument('--batch', type=int, nargs='+', help='batch sizes to sweep; default 1, with --train the usual one')
    parser.add_argument('--size', type=image_size, nargs='+', default=[], metavar='HxW',
                        help='image sizes to sweep; default the images of the test set, of the training set with --train')
    parser.add_argument('--threads', type=int, nargs='+', default=[1], help='thread counts to sweep; default 1')
    parser.add_argument('--backends', nargs='+', default=[None], help='such as cpu:avx2 numba; default automatic')
    parser.add_argument('--variants', nargs='+', default=[], help='such as fused packed float32-compiled; default all')
    parser.add_argument('--parts', nargs='+', default=[], help='such as backbone network detector; default all')
    parser.add_argument('--float-config', help='config of the float twin; default: the binary pieces are taken out')
    parser.add_argument('--float-checkpoint', help='weights of the float twin; default random')
    parser.add_argument('--device', default='cpu', help='cpu or cuda; default cpu')
    parser.add_argument('--rounds', type=int, default=15, help='samples of each variant; default %(default)s')
    parser.add_argument('--budget', type=float, default=20.0, help='seconds for each table, at most; default %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value')
    args = parser.parse_args()
    args.out = args.out or str(Path('work_dirs') / Path(args.config).stem / 'benchmark')

    flags = vars(args)
    train, compiled = flags.pop('train'), flags.pop('compiled')
    for name in ('checkpoint', 'float_checkpoint', 'backends', 'variants', 'parts'):
        if train and flags[name] != parser.get_default(name):
            parser.error(f'{name} is for the throughput of packed models: leave it out with --train')
    if compiled and not train:
        parser.error('--compiled is for --train: the throughput has variants such as float32-compiled')
    if train:
        from bnn_plugins.apps.training_benchmark import benchmark_training
        names = ('config', 'out', 'batch', 'size', 'threads', 'device', 'rounds', 'budget', 'float_config', 'cfg_options')
        benchmark_training(compiled=compiled, **{name: flags[name] for name in names})
    else:
        from bnn_plugins.integrations.mmengine.benchmark import benchmark
        sys.exit(not benchmark(**{**flags, 'batch': args.batch or [1]}).ok)


if __name__ == '__main__':
    run(main)
