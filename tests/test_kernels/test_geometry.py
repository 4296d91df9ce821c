"""Geometries against torch's own shapes, and what they refuse."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnn_kernels.geometry import Conv2dGeometry, Stem2dGeometry, linear_geometry

from .cases import pairs

NUMBERS = dict(groups=st.integers(1, 3), per_group=st.integers(1, 70), outputs=st.integers(1, 4), image=pairs(1, 12),
               kernel=pairs(1, 4), stride=pairs(1, 3), padding=pairs(0, 4), dilation=pairs(1, 3))


def meta(*shape):
    return torch.empty(shape, device='meta')


def torch_shape(function, *arguments) -> tuple[int, ...] | None:
    """None: torch says that nothing would be left."""
    try:
        shape = tuple(function(*arguments).shape)
    except RuntimeError:
        return None
    return shape if all(shape) else None


@settings(max_examples=300, deadline=None)
@given(**NUMBERS, pad_value=st.sampled_from([0, -1, 1]))
def test_sizes_are_those_of_torch(groups, per_group, outputs, image, kernel, stride, padding, dilation, pad_value):
    geometry = Conv2dGeometry(groups * per_group, groups * outputs, kernel, stride, padding, dilation, groups, pad_value)
    weight = meta(groups * outputs, per_group, *kernel)
    expected = torch_shape(F.conv2d, meta(2, groups * per_group, *image), weight, None, stride, padding, dilation, groups)
    shape = geometry.shape((2, *image, geometry.pixel_words))
    assert expected == (shape if min(shape) > 0 else None)
    assert geometry.terms == weight[0].numel()
    assert geometry.w_shape == (groups * outputs, *kernel, (per_group + 31) // 32)
    assert geometry.pixel_words == groups * geometry.words
    assert Conv2dGeometry.of(geometry.w_shape, geometry.channels, stride, padding, dilation, groups, pad_value) == geometry


@settings(max_examples=300, deadline=None)
@given(**NUMBERS, output_padding=pairs(0, 3))
def test_transposed_sizes_are_those_of_torch(groups, per_group, outputs, image, kernel, stride, padding, dilation,
                                             output_padding):
    expected = torch_shape(F.conv_transpose2d, meta(2, groups * per_group, *image), meta(groups * per_group, outputs, *kernel),
                           None, stride, padding, output_padding, groups, dilation)
    numbers = groups * per_group, groups * outputs, kernel, stride, padding, dilation, groups, 0
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        with pytest.raises(ValueError, match=r'output_padding=.* must be smaller'):
            Conv2dGeometry(*numbers, output_padding)
        return
    shape = Conv2dGeometry(*numbers, output_padding).shape((2, *image, 1))
    assert expected == (shape if min(shape) > 0 else None)


@settings(max_examples=200, deadline=None)
@given(image=pairs(3, 20), kernel=pairs(1, 3), stride=pairs(1, 3), padding=pairs(0, 2), window=pairs(1, 3),
       window_stride=pairs(1, 3), data=st.data())
def test_stem_sizes_are_those_of_torch(image, kernel, stride, padding, window, window_stride, data):
    window_padding = tuple(data.draw(st.integers(0, side // 2)) for side in window)
    geometry = Stem2dGeometry(3, 8, kernel, stride, padding, window, window_stride, window_padding)
    sums = F.conv2d(meta(1, 3, *image), meta(8, 3, *kernel), None, stride, padding)
    size, pooled = geometry.sizes(image)
    assert size == sums.shape[2:]
    expected = torch_shape(F.max_pool2d, sums, window, window_stride, window_padding)
    assert expected == ((1, 8, *pooled) if min(pooled) > 0 else None)
    assert Stem2dGeometry.of((8, 3, *kernel), *geometry[3:]) == geometry


def test_one_object_however_it_is_written():
    whole = Conv2dGeometry(64, 32, (3, 3), (2, 2), (1, 1), (1, 1), 1, 0)
    short = Conv2dGeometry(64, 32, 3, stride=2, padding=[1, 1])
    assert (whole, hash(whole)) == (short, hash(short))
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert whole._replace(groups=2).group_channels == 32
    assert linear_geometry(64, 32) == Conv2dGeometry(64, 32, 1)
    assert len({whole, short, whole._replace(pad_value=1), whole._replace(output_padding=(1, 1))}) == 3


@pytest.mark.parametrize(('change', 'sentence'), [
    (dict(channels=0), 'channels and groups must be at least 1'), (dict(outputs=0), 'at least one output channel'),
    (dict(kernel=0), 'kernel must be'), (dict(stride=(0, 1)), 'stride must be .* at least 1'),
    (dict(stride=2**31), 'below 2'), (dict(padding=(1, -1)), 'padding must be .* at least 0'),
    (dict(dilation=(1, 1, 1)), r'dilation must be .* got \[1, 1, 1\]'),
    (dict(groups=3), 'groups=3 does not divide channels=64'),
    (dict(channels=60, groups=3), 'does not divide the 32 output channels'),
    (dict(pad_value=2), 'pad_value must be 0, -1 or 1, got 2'), (dict(kernel=2**9), '16777216 terms, the limit is'),
    (dict(output_padding=2), 'must be smaller than stride'), (dict(output_padding=0, pad_value=1), 'has pad_value=0'),
])
def test_what_cannot_be_is_refused(change, sentence):
    whole = Conv2dGeometry(64, 32, 3)
    for make in (whole._replace, lambda **change: Conv2dGeometry(**whole._asdict() | change)):
        with pytest.raises(ValueError, match=sentence):
            make(**change)


@pytest.mark.parametrize(('change', 'sentence'), [
    (dict(channels=0), 'at least one channel'), (dict(window=0), 'window must be'), (dict(kernel=(3, 0)), 'kernel must be'),
    (dict(window_padding=2), r'at most half of the window \[3, 3\], got \[2, 2\]')])
def test_stems_that_cannot_be_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Stem2dGeometry(3, 8, 3, window=3)._replace(**change)
