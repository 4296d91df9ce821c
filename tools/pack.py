#!/usr/bin/env python
"""Pack a checkpoint: bits, scales, the layers that stay real and the config in one .safetensors file."""

import argparse

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint of tools/train.py')
    parser.add_argument('out', help='.safetensors file to write')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value')
    parser.add_argument('--verify', nargs='?', type=int, const=4, default=0, metavar='N',
                        help='compare with the checkpoint, layer by layer, on N images of the test set (4)')
    parser.add_argument('--rest', choices=('float32', 'int8'), default='float32',
                        help='the layers that are not binary; int8: a quarter of the bytes, calibrated; default %(default)s')
    parser.add_argument('--calibration', default='32', metavar='N|FOLDER',
                        help='for int8: images of the validation set, or a folder of images; default %(default)s')
    args = parser.parse_args()

    from bnn_plugins.integrations.mmengine import pack_checkpoint
    path = pack_checkpoint(**vars(args))
    print(f'{path}: {path.stat().st_size:,} bytes')


if __name__ == '__main__':
    run(main)
