"""Make clips of BCCD: data/bccd/BCCD work_dirs/bccd_clips"""

from argparse import ArgumentParser
from dataclasses import fields

from ..clips import ClipsRecipe, make_clips


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('source', help='folder in Pascal VOC layout')
    parser.add_argument('out')
    for field in fields(ClipsRecipe):
        parser.add_argument(f'--{field.name.replace("_", "-")}', type=type(field.default), default=field.default,
                            help='default %(default)s')


def main(source: str, out: str, **recipe) -> None:
    print(make_clips(source, out, ClipsRecipe(**recipe)))
