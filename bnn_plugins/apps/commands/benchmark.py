"""The model of a config against its float twin, in turns: throughput of the packed model, or with --train its training.

Throughput: CSV files, plots and one HTML page. Training: time of a step and its parts, memory; a table and a CSV file.
"""

from argparse import ArgumentError, ArgumentParser, ArgumentTypeError
from pathlib import Path

from ..command_line import add_overrides

PACKED_ONLY = dict(checkpoint=None, float_checkpoint=None, backends=[None], variants=[], parts=[])


def image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit()):
        raise ArgumentTypeError(f'{text!r} is no size: write HEIGHTxWIDTH, such as 256x320')
    return int(height), int(width)


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('config', help='config file, or a name like mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    parser.add_argument('checkpoint', nargs='?', help='.pth checkpoint or packed .safetensors; default random weights')
    parser.add_argument('--train', action='store_true', help='measure training steps; also of a diffusion config')
    parser.add_argument('--compiled', action='store_true', help='with --train: the float twin with torch.compile, too')
    parser.add_argument('--gradients', nargs='+', choices=('float32', 'bfloat16'), default=['float32'],
                        help='with --train: of binary layers; default float32')
    parser.add_argument('--out', help='folder for CSV files and page; default work_dirs/<config name>/benchmark')
    parser.add_argument('--batch', type=int, nargs='+', help='batch sizes to sweep; default 1, with --train the usual one')
    parser.add_argument('--size', type=image_size, nargs='+', default=[], metavar='HxW',
                        help='image sizes to sweep; default the images of the test set, of the training set with --train')
    parser.add_argument('--threads', type=int, nargs='+', default=[1], help='thread counts to sweep; default 1')
    parser.add_argument('--backends', nargs='+', help='such as cpu:avx2 numba; default automatic')
    parser.add_argument('--variants', nargs='+', help='such as fused packed float32-compiled; default all')
    parser.add_argument('--parts', nargs='+', help='such as backbone network detector; default all')
    parser.add_argument('--float-config', help='config of the float twin; default: the binary pieces are taken out')
    parser.add_argument('--float-checkpoint', help='weights of the float twin; default random')
    parser.add_argument('--device', default='cpu', help='cpu or cuda; default cpu')
    parser.add_argument('--rounds', type=int, default=15, help='samples of each variant; default %(default)s')
    parser.add_argument('--budget', type=float, default=20.0, help='seconds for each table, at most; default %(default)s')
    parser.set_defaults(**PACKED_ONLY)
    add_overrides(parser)


def main(train: bool, compiled: bool, gradients: list[str], **flags) -> int:
    flags['out'] = flags['out'] or str(Path('work_dirs') / Path(flags['config']).stem / 'benchmark')
    if train:
        for name, default in PACKED_ONLY.items():
            if flags.pop(name) != default:
                raise ArgumentError(None, f'{name} is for the throughput of packed models: leave it out with --train')
        from ..training_benchmark import benchmark_training
        benchmark_training(compiled=compiled, gradients=gradients, **flags)
        return 0
    if compiled:
        raise ArgumentError(None, '--compiled is for --train: the throughput has variants such as float32-compiled')
    if gradients != ['float32']:
        raise ArgumentError(None, '--gradients is for --train: the throughput has none')
    from ...integrations.mmengine.benchmark import benchmark
    return int(not benchmark(**{**flags, 'batch': flags['batch'] or [1]}).ok)
