"""Make a saved pipeline of diffusers loadable in programs that do not import bnn_plugins, with trust_remote_code=True."""

from argparse import ArgumentParser


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('pipeline', help='folder with model_index.json')
    parser.add_argument('--component', default='unet', help='the binary one; default %(default)s')


def main(pipeline: str, component: str) -> None:
    from ...integrations.diffusers import export_loader_shim
    print(f'{export_loader_shim(pipeline, component)} written')
