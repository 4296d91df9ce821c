"""Compare a packed file, as it is and fused, with the checkpoint that it was made from, layer by layer."""

from argparse import ArgumentParser

from ..command_line import add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint')
    parser.add_argument('packed', help='packed .safetensors file')
    parser.add_argument('--images', type=int, default=4, help='of the test set; default %(default)s')
    add_overrides(parser)


def main(**flags) -> int:
    from ...integrations.mmengine.pack import verify_checkpoint
    report = verify_checkpoint(**flags)
    print(report)
    return int(not report.ok)
