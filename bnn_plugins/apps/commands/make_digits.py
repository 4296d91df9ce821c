"""Make the digits set: real handwritten digits of scikit-learn on small canvases, COCO format, no download."""

from argparse import ArgumentParser
from dataclasses import fields

from ..digits import DigitsRecipe, make_digits


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('out', help='folder of the set, e.g. work_dirs/digits')
    for field in fields(DigitsRecipe):
        flag = f'--{field.name.replace("_", "-")}'
        parser.add_argument(flag, type=field.type, default=field.default, help='default %(default)s')


def main(out: str, **recipe) -> None:
    print(make_digits(out, DigitsRecipe(**recipe)))
