"""Train a detector, a classifier or a sequence model: the flags of mmdet's tools/train.py."""

from argparse import ArgumentParser

from ..command_line import add_launcher, add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file, or a name like mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; default work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (bfloat16 on a CPU)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--resume', nargs='?', const='auto', help='resume from the newest checkpoint of the work dir, or this')
    add_overrides(parser)
    add_launcher(parser)


def main(local_rank: int, **flags) -> None:
    from ...integrations.mmengine.run import train
    train(**flags)
