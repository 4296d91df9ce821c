"""A checkpoint that the authors of a paper published becomes one of this project: --from reactnet model_best.pth out.pth"""

from argparse import ArgumentParser


def arguments(parser: ArgumentParser) -> None:
    from ...models.released import RELEASES
    parser.add_argument('checkpoint', help='the published file')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--from', dest='source', required=True, choices=sorted(RELEASES), help='whose file it is')


def main(checkpoint: str, out: str, source: str) -> None:
    from ...models.importing import import_checkpoint
    imported = import_checkpoint(checkpoint, source, out)
    options = ', '.join(f'{key}={value!r}' for key, value in imported.backbone.items())
    print(f'{imported.network}: {len(imported.state_dict)} tensors. As the backbone of a model:\n'
          f'    backbone=dict({options},\n'
          f"                  init_cfg=dict(type='Pretrained', checkpoint={out!r}, prefix='backbone.'))")
