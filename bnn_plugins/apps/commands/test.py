"""Evaluate a checkpoint, or a packed .safetensors file: the flags of mmdet's tools/test.py."""

from argparse import ArgumentParser

from ..command_line import add_launcher, add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint or packed .safetensors')
    parser.add_argument('--work-dir', help='where the metrics go; default work_dirs/<config name>')
    parser.add_argument('--out', help='dump the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='folder for painted images')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between images with --show')
    parser.add_argument('--tta', action='store_true', help='test time augmentation: also the mirror image of each image')
    parser.add_argument('--no-fuse', dest='fuse', action='store_false', help='run a packed file layer by layer')
    add_overrides(parser)
    add_launcher(parser)


def main(local_rank: int, **flags) -> None:
    from ...integrations.mmengine.run import test
    test(**flags)
