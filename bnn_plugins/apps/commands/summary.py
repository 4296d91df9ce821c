"""Parameters, BOPs, FLOPs, OPs and memory of the model of a config, layer by layer."""

from argparse import ArgumentParser

from ..command_line import add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'),
                        help='input size; default 800 1333 for detectors, image_size of the config for classifiers')
    parser.add_argument('--csv', help='also write the table to this file')
    parser.add_argument('--signs', action='store_true', help='also show the balance of signs on a random image')
    add_overrides(parser)


def main(**flags) -> None:
    from ...integrations.mmengine.summarize import print_summary
    print_summary(**flags)
