#!/usr/bin/env python
"""Detections for all pictures below a folder, by several workers; a run that was interrupted goes on where it was."""

import argparse

import bnn_plugins  # noqa: F401  (the mmcv stand-in comes before mmdet)
from bnn_plugins.apps.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint or packed .safetensors')
    parser.add_argument('pictures', help='folder of pictures')
    parser.add_argument('--out', default='predictions', help='folder of the .jsonl files, one for each worker')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--device', default='cpu', help='cpu, cuda:0, ...')
    parser.add_argument('--score', type=float, default=0.05, help='least score of a detection')
    args = vars(parser.parse_args())

    from bnn_plugins.integrations.mmdet.predict import predict
    print(f'{predict(**args)} new pictures in {args["out"]}')


if __name__ == '__main__':
    run(main)
