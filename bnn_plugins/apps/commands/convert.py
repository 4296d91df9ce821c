"""Write a packed file of an earlier version again, with its config as data: the Python text is printed and parsed, not run."""

from argparse import ArgumentParser


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('packed', help='.safetensors file of an earlier version')
    parser.add_argument('out', help='.safetensors file to write')


def main(packed: str, out: str) -> None:
    from ...deploy.file import convert_packed
    print(f'{convert_packed(packed, out)} written')
