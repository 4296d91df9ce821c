#!/usr/bin/env python
"""Make the digits set: real handwritten digits of scikit-learn on small canvases, COCO format, no download."""

import argparse
from dataclasses import fields

from bnn_plugins.apps.command_line import run
from bnn_plugins.apps.digits import DigitsRecipe, make_digits


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder of the set, e.g. work_dirs/digits')
    for field in fields(DigitsRecipe):
        flag = f'--{field.name.replace("_", "-")}'
        parser.add_argument(flag, type=field.type, default=field.default, help='default %(default)s')
    args = vars(parser.parse_args())
    print(make_digits(args.pop('out'), DigitsRecipe(**args)))


if __name__ == '__main__':
    run(main)
