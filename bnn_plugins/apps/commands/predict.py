"""Detections for all pictures below a folder, by several workers; a run that was interrupted goes on where it was."""

from argparse import ArgumentParser


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint or packed .safetensors')
    parser.add_argument('pictures', help='folder of pictures')
    parser.add_argument('--out', default='predictions', help='folder of the .jsonl files, one for each worker')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--device', default='cpu', help='cpu, cuda:0, ...')
    parser.add_argument('--score', type=float, default=0.05, help='least score of a detection')


def main(out: str, **flags) -> None:
    from ...integrations.mmdet.predict import predict
    print(f'{predict(out=out, **flags)} new pictures in {out}')
