"""What is trained beside each other: entries and the epochs of all of them."""

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


FLOAT, BINARY = 'retinanet_r18-half_fpn_raccoon', 'retinanet_bnn-r18-half_fpn_raccoon'
RACCOON = [Entry(FLOAT), Entry(BINARY), *(Entry(BINARY, recipes, FLOAT) for recipes in (
    ('float_start',),
    ('float_start', 'teacher_response'),
    ('float_start', 'teacher_features'),
    ('float_start', 'teacher_lws'),
    ('float_start', 'teacher_ida'),
    ('float_start', 'two_steps'),
    ('long_warmup',),
    ('two_steps',),
    ('float_start', 'two_steps', 'teacher_response', 'teacher_features'),
)), Entry(BINARY, times=2)]
BCCD = [Entry('retinanet_r18_fpn_bccd'), Entry('retinanet_bnn-r18_fpn_bccd')]
# entries, and epochs (None: those of each config)
GRIDS = {'bccd': (BCCD, None), 'raccoon': (RACCOON, 10)}
