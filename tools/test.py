#!/usr/bin/env python
"""Evaluate a checkpoint, or a packed .safetensors file: the flags of mmdet's tools/test.py."""

import argparse
import os

import bnn_plugins  # noqa: F401  (the mmcv stand-in comes before mmdet)
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint or packed .safetensors')
    parser.add_argument('--work-dir', help='where the metrics go; default work_dirs/<config name>')
    parser.add_argument('--out', help='dump the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='folder for painted images')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between images with --show')
    parser.add_argument('--tta', action='store_true', help='test time augmentation: also the mirror image of each image')
    parser.add_argument('--no-fuse', dest='fuse', action='store_false', help='run a packed file layer by layer')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))

    from bnn_plugins.integrations.mmengine.run import test
    test(**args)


if __name__ == '__main__':
    run(main)
