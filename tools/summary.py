#!/usr/bin/env python
"""Parameters, BOPs, FLOPs, OPs and memory of the model of a config, layer by layer."""

import argparse

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'),
                        help='input size; default 800 1333 for detectors, image_size of the config for classifiers')
    parser.add_argument('--csv', help='also write the table to this file')
    parser.add_argument('--signs', action='store_true', help='also show the balance of signs on a random image')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value')
    args = parser.parse_args()

    from bnn_plugins.integrations.mmengine.summarize import print_summary
    print_summary(**vars(args))


if __name__ == '__main__':
    run(main)
