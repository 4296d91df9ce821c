"""The calls of the engine on real-valued maps, as those of lowering.py."""

from collections.abc import Callable
from math import prod

import torch

from .. import checks
from .calls import PLANES, POOL2D
from .engine import DTYPES, fields
from .lowering import image, is_image, lowered, rows


def lower_pool2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x, geometry, shortcut = call['x'], call['geometry'], call['shortcut']
    if 'x' not in inputs or 'shortcut' in fixed or not (is_image(x) and is_image(shortcut)):
        return None
    shape = checks.pool2d(**call)
    ranges = [torch.tensor(axis) for axis in geometry.ranges(x.shape[2:], None if shortcut is None else shortcut.shape[2:])]
    record = fields('Pool', images=x.shape[0], height=x.shape[2], width=x.shape[3], channels=shape[1], fold=geometry.fold,
                    out_h=shape[2], out_w=shape[3], dtype=DTYPES[x.dtype], largest=geometry.kind == 'max',
                    rows=ranges[0].data_ptr(), columns=ranges[1].data_ptr(), x='x',
                    shortcut=0 if shortcut is None else 'shortcut', y='y')
    return lowered(cpu, 'pool2d', POOL2D, ['isa', 'threads', *record], fixed, inputs, dict(y=image(shape, x.dtype)), ['y'],
                   holds=ranges)


def lower_to_planes(cpu, fixed: dict, inputs: dict) -> Callable | None:
    x = (fixed | inputs)['x']
    if 'x' not in inputs or not is_image(x):
        return None
    record = fields('Planes', images=x.shape[0], pixels=prod(x.shape[2:]), channels=x.shape[1], bytes=x.element_size(), x='x',
                    y='y')
    return lowered(cpu, 'to_planes', PLANES, ['threads', *record], fixed, inputs, dict(y=rows(x.shape, x.dtype)), ['y'])


LOWERINGS: dict[str, Callable[..., Callable | None]] = {'pool2d': lower_pool2d, 'to_planes': lower_to_planes}
