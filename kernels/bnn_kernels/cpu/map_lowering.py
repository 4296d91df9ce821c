"""The calls of the engine on real-valued maps, as those of lowering.py."""

from collections.abc import Callable
from math import prod

import torch

from .. import checks
from .calls import CONCAT, PLANES, POOL2D, WEIGHTED_SUM
from .engine import DTYPES, fields
from .lowering import fused_fields, image, is_image, lowered, rows, vectors


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


def lower_concat2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    maps = [name for name in inputs if name.startswith('x')]
    places, held = vectors(fixed, inputs, 'threshold')
    if places is None or 'x' not in maps or not all(is_image(call[name]) for name in maps):
        return None
    words, stream = checks.concat2d(**call)
    channels, dtype = [call[name].shape[1] for name in maps], call['x'].dtype
    pixels, empty = call['x'].numel() // channels[0], checks.MOST_MAPS - len(maps)
    kinds = dict(pixels=pixels, channels=sum(channels), dtype=DTYPES[dtype])
    record = fields('Concat', **kinds, maps=len(maps), y='stream',
                    **{f'widths[{number}]': width for number, width in enumerate(channels + [0] * empty)},
                    **{f'x[{number}]': name for number, name in enumerate(maps + [0] * empty)})
    record += fields('Packing', **kinds, groups=call['groups'], plane=0, x=0, words='words', **places)
    made = dict(words=rows(words), stream=(image if call['keep'] else rows)(stream, dtype))
    # What is not wanted has the shape [0], and null for an address.
    return lowered(cpu, 'concat2d', CONCAT, ['isa', 'threads', *record], fixed, inputs, made, ['words', 'stream'], holds=held)


def lower_weighted_sum2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    maps, gate = [name for name in inputs if name.startswith('x')], call.get('gate')
    fused, held = fused_fields(fixed, inputs, call['dtype'], None, 'stream')
    places, kept = vectors(fixed, inputs, 'weight')
    readable = all(is_image(call[name]) for name in maps) and is_image(gate) and fixed.get('gate') is None
    if fused is None or places is None or 'x' not in maps or not readable:
        return None
    x, *spread, empty = call['x'], *call['spread'][:-1], checks.MOST_MAPS - len(maps)
    words, stream = checks.weighted_sum2d(**call)
    record = fields('WeightedSum', images=x.shape[0], height=x.shape[2], width=x.shape[3], channels=x.shape[1],
                    dtype=DTYPES[x.dtype], maps=len(maps), gate_spread=call['spread'][-1], **places,
                    gate=0 if gate is None else 'gate',
                    **{f'spread[{number}]': size for number, size in enumerate(spread + [1] * empty)},
                    **{f'x[{number}]': name for number, name in enumerate(maps + [0] * empty)})
    made = dict(words=rows(words), stream=(image if call['keep'] else rows)(stream, call['dtype']))
    # What is not wanted has the shape [0], and null for an address.
    return lowered(cpu, 'weighted_sum2d', WEIGHTED_SUM, ['isa', 'threads', *record, *fused], fixed, inputs, made,
                   ['words', 'stream'], holds=[held, kept])


LOWERINGS: dict[str, Callable[..., Callable | None]] = {'pool2d': lower_pool2d, 'to_planes': lower_to_planes,
                                                       'concat2d': lower_concat2d, 'weighted_sum2d': lower_weighted_sum2d}
