"""Train a binary detector on handwritten digits, pack it, run the bits, write one page about it. Interrupted? Run it again."""

from argparse import ArgumentParser

from ..command_line import add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where everything goes; default %(default)s')
    parser.add_argument('--data', default='work_dirs/digits', help='the digits set, made if missing; default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the training; default %(default)s')
    parser.add_argument('--short', action='store_true',
                        help='one epoch on few pictures: every step in about a minute, and a detector that finds nothing yet')
    add_overrides(parser)


def main(**flags) -> None:
    from ..demo import run_demo
    run_demo(**flags)
