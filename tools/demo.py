#!/usr/bin/env python
"""Train a binary detector on handwritten digits, pack it, run the bits, write one page about it. Interrupted? Run it again."""

import argparse

import bnn_plugins  # noqa: F401  (the mmcv stand-in comes before mmdet)
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where everything goes; default %(default)s')
    parser.add_argument('--data', default='work_dirs/digits', help='the digits set, made if missing; default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the training; default %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config, key=value')
    args = vars(parser.parse_args())

    from bnn_plugins.apps.demo import run_demo
    run_demo(**args)


if __name__ == '__main__':
    run(main)
