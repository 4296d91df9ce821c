"""The trained models that travel with the package: a list, the card of one, the path of its packed file."""

import json
from argparse import ArgumentParser


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument('action', choices=['list', 'card', 'path'], nargs='?', default='list',
                        help='list: name, task, data, metrics, size of each; default %(default)s')
    parser.add_argument('name', nargs='?', help='whose card or path')


def main(action: str, name: str | None) -> None:
    from ... import zoo
    if action == 'list':
        print(zoo.table())
    elif name is None:
        raise ValueError(f'bnn zoo {action} needs a name: one of {", ".join(zoo.names())}')
    else:
        print(json.dumps(zoo.card(name), indent=2) if action == 'card' else zoo.path(name))
