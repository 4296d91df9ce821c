#!/usr/bin/env python
"""Make clips of BCCD: python tools/make_clips.py data/bccd/BCCD work_dirs/bccd_clips"""

import argparse
from dataclasses import fields

import bnn_plugins  # noqa: F401
from bnn_plugins.apps.command_line import run
from bnn_plugins.apps.clips import ClipsRecipe, make_clips


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('source', help='folder in Pascal VOC layout')
    parser.add_argument('out')
    for field in fields(ClipsRecipe):
        parser.add_argument(f'--{field.name.replace("_", "-")}', type=type(field.default), default=field.default, help=' ')
    args = vars(parser.parse_args())
    print(make_clips(args.pop('source'), args.pop('out'), ClipsRecipe(**args)))


if __name__ == '__main__':
    run(main)
