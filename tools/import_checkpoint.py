#!/usr/bin/env python
"""A checkpoint that the authors of a paper published becomes one of this project: --from reactnet model_best.pth out.pth"""

import argparse

import bnn_plugins
from bnn_plugins.apps.command_line import run


def main():
    from bnn_plugins.models.released import RELEASES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='the published file')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--from', dest='source', required=True, choices=sorted(RELEASES), help='whose file it is')
    args = parser.parse_args()
    imported = bnn_plugins.import_checkpoint(args.checkpoint, args.source, args.out)
    options = ', '.join(f'{key}={value!r}' for key, value in imported.backbone.items())
    print(f'{imported.network}: {len(imported.state_dict)} tensors. As the backbone of a model:\n'
          f'    backbone=dict({options},\n'
          f"                  init_cfg=dict(type='Pretrained', checkpoint={args.out!r}, prefix='backbone.'))")


if __name__ == '__main__':
    run(main)
