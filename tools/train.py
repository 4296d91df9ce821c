#!/usr/bin/env python
"""Train a detector or a classifier: the flags of mmdet's tools/train.py."""

import argparse
import os

import bnn_plugins  # noqa: F401  (the mmcv stand-in comes before mmdet)
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or a name like mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; default work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (bfloat16 on a CPU)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--resume', nargs='?', const='auto', help='resume from the newest checkpoint of the work dir, or this')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, such as train_cfg.max_epochs=1')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))

    from bnn_plugins.integrations.mmengine.run import train
    train(**args)


if __name__ == '__main__':
    run(main)
