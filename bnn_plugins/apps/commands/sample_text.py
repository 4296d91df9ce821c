"""Write text with a character model: configs/sequence/blstm_text.py and its checkpoint or packed file."""

from argparse import ArgumentParser

from ..command_line import add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='.pth, or .safetensors of bnn pack')
    parser.add_argument('--prompt', default='\n')
    parser.add_argument('--length', type=int, default=300, help='number of characters')
    parser.add_argument('--temperature', type=float, default=0.8)
    parser.add_argument('--seed', type=int, default=0)
    add_overrides(parser)


def main(**flags) -> None:
    from ..sample_text import sample_text
    print(sample_text(**flags))
