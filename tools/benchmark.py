#!/usr/bin/env python
"""Throughput of the model of a config: packed against its float twin, in turns; CSV, plots and one HTML page."""

import argparse
import sys
from pathlib import Path

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from mmengine.config import DictAction


def image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f'{text!r} is no size: write HEIGHTxWIDTH, such as 256x320')
    return int(height), int(width)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or a name like mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    parser.add_argument('checkpoint', nargs='?', help='.pth checkpoint or packed .safetensors; default random weights')
    parser.add_argument('--out', help='folder for CSV files and page; default work_dirs/<config name>/benchmark')
    parser.add_argument('--batch', type=int, nargs='+', default=[1], help='batch sizes to sweep; default 1')
    parser.add_argument('--size', type=image_size, nargs='+', default=[], metavar='HxW',
                        help='image sizes to sweep; default the images of the test set')
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

    from bnn_plugins.integrations.mmengine.benchmark import benchmark
    try:
        result = benchmark(**vars(args))
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    sys.exit(not result.ok)


if __name__ == '__main__':
    main()
