"""Pack a checkpoint: bits, scales, the layers that stay real and the config in one .safetensors file."""

from argparse import ArgumentParser

from ..command_line import add_overrides


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.pth checkpoint of bnn train; a packed file, for --rest int8 or bfloat16')
    parser.add_argument('out', help='.safetensors file to write')
    parser.add_argument('--verify', nargs='?', type=int, const=4, default=0, metavar='N',
                        help='compare with the checkpoint, layer by layer, on N images of the test set (4)')
    parser.add_argument('--rest', choices=('float32', 'bfloat16', 'int8'), default='float32',
                        help='the layers that are not binary; int8: a quarter of the bytes, calibrated; default %(default)s')
    parser.add_argument('--calibration', default='32', metavar='N|FOLDER',
                        help='for int8: images of the validation set, or a folder of images; default %(default)s')
    add_overrides(parser)


def main(**flags) -> None:
    from ...integrations.mmengine import pack_checkpoint
    path = pack_checkpoint(**flags)
    print(f'{path}: {path.stat().st_size:,} bytes')
