"""What is trained beside each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One run of a grid.

    Attributes:
        config: name of a file in ``configs/detection``.
        recipes: names of files in ``configs/_base_/recipes``.
        twin: the float config, trained before it, that recipes start from or learn from.
        times: of the grid's epochs.
    """

    config: str
    recipes: tuple[str, ...] = ()
    twin: str = ''
    times: int = 1


@dataclass(frozen=True)
class Grid:
    """Entries that have something in common.

    Attributes:
        entries: in their order; a twin stands before those that name it.
        epochs: of all of them; ``None``: those of each config.
        text: what each config has at its end.
    """

    entries: tuple[Entry, ...]
    epochs: int | None = None
    text: str = ''


def raccoon() -> Grid:
    """Recipes for a small set of natural photographs."""
    real, binary = 'retinanet_r18-half_fpn_raccoon', 'retinanet_bnn-r18-half_fpn_raccoon'
    recipes = (('float_start',), ('float_start', 'teacher_response'), ('float_start', 'teacher_features'),
               ('float_start', 'two_steps', 'teacher_response', 'teacher_features'), ('float_start', 'teacher_ida'),
               ('float_start', 'teacher_lws'), ('float_start', 'two_steps'), ('two_steps',), ('long_warmup',),
               ('float_start', 'teacher_response', 'teacher_features'))
    return Grid((Entry(real), Entry(binary), *(Entry(binary, names, real) for names in recipes), Entry(binary, times=2)), 10)


# Of a config: half as wide.
HALF = 'model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))\n'


def methods() -> Grid:
    """Methods of the literature on BCCD, half as wide as their configs."""
    entries = []
    for detector in ('retinanet', 'faster-rcnn'):
        twin = f'{detector}_r18_fpn_bccd'
        entries += [Entry(twin), *(Entry(f'{detector}_{name}_fpn_bccd') for name in (
            'bnn-r18', 'bnn-r18-es2', 'bidet-r18', 'bidet-r18-es2')),
            *(Entry(f'{detector}_{name}_fpn_bccd', (), twin) for name in ('lwsdet-r18', 'idadet-r18'))]
    return Grid(tuple(entries), 8, HALF)


# Of the grid 'bccd_rests', in words.
TITLES = {'retinanet_r18_fpn_bccd': 'float twin', 'retinanet_bnn-r18_fpn_bccd': 'binary',
          'retinanet_bnn-r18_fpn-binary-head_bccd': 'binary, towers of the head too'}


def rests() -> Grid:
    """What the real layers of a binary detector cost (rests.py): of these, half as wide, all forms are compared."""
    return Grid(tuple(map(Entry, TITLES)), 8, HALF)


GRIDS = {'bccd': Grid((Entry('retinanet_r18_fpn_bccd'), Entry('retinanet_bnn-r18_fpn_bccd'))), 'raccoon': raccoon(),
         'bccd_methods': methods(), 'bccd_rests': rests()}
