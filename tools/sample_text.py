#!/usr/bin/env python
"""Write text with a character model: python tools/sample_text.py configs/sequence/blstm_text.py <checkpoint or packed file>"""

import argparse

import bnn_plugins  # noqa: F401
from bnn_plugins.apps.command_line import run
from mmengine.config import DictAction


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='.pth, or .safetensors of tools/pack.py')
    parser.add_argument('--prompt', default='\n')
    parser.add_argument('--length', type=int, default=300, help='number of characters')
    parser.add_argument('--temperature', type=float, default=0.8)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()

    from bnn_plugins.apps.sample_text import sample_text
    print(sample_text(**vars(args)))


if __name__ == '__main__':
    run(main)
