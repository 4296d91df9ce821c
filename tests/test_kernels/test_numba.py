"""The numba backend against the reference, bit by bit."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_kernels import Epilogue, dispatch
from bnn_kernels.epilogue import ACTS
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.numba_backend import Numba
from bnn_kernels.reference import Reference

from . import cases, oracle

NUMBA, REFERENCE = Numba(), Reference()
ABLE, REASON = NUMBA.available()
PROPERTY = settings(deadline=None, max_examples=500)
needs_numba = pytest.mark.skipif(not ABLE, reason=REASON)


@needs_numba
@PROPERTY
@given(channels=cases.CHANNELS, groups=st.integers(1, 3), image=cases.pairs(0, 5), threshold=st.sampled_from([None, 1, 'all']),
       dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])] * 2),
       channels_last=st.booleans(), seed=oracle.SEEDS)
def test_pack_activations(channels, groups, image, threshold, dtypes, channels_last, seed):
    channels *= groups
    x = oracle.values(seed, 2, channels, *image).to(dtypes[0])
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    if threshold is not None:
        threshold = oracle.values(seed + 1, channels if threshold == 'all' else 1).to(dtypes[1])
    assert cases.same(NUMBA.pack_activations(x, threshold, groups), REFERENCE.pack_activations(x, threshold, groups))
    rows = x.movedim(1, -1)
    assert cases.same(NUMBA.pack_features(rows, threshold), REFERENCE.pack_features(rows, threshold))


@needs_numba
def test_pack_compares_in_the_wider_dtype_and_takes_nan_for_minus_one():
    x = torch.tensor([[0.1, float('nan'), float('inf'), -0.0]], dtype=torch.float16)
    for tau in torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64), torch.zeros(4), torch.full((4,), float('nan')):
        assert torch.equal(NUMBA.pack_features(x, tau), REFERENCE.pack_features(x, tau))


@needs_numba
@PROPERTY
@given(call=cases.convolutions())
def test_binary_conv2d(call):
    assert cases.same(NUMBA.binary_conv2d(**call), REFERENCE.binary_conv2d(**call), torch.channels_last)


@needs_numba
@PROPERTY
@given(lead=st.lists(st.integers(0, 4), max_size=3), features=cases.CHANNELS, outputs=cases.OUTPUTS, seed=oracle.SEEDS)
def test_binary_linear(lead, features, outputs, seed):
    random = np.random.default_rng(seed)
    x_words, w_words = cases.words(random, *lead, features), cases.words(random, outputs, features)
    call = dict(x_words=x_words, w_words=w_words, features=features)
    assert cases.same(NUMBA.binary_linear(**call), REFERENCE.binary_linear(**call))


@needs_numba
@PROPERTY
@given(call=cases.signs())
def test_binary_conv2d_sign(call):
    assert cases.same(NUMBA.binary_conv2d_sign(**call), REFERENCE.binary_conv2d_sign(**call))


@needs_numba
@PROPERTY
@given(call=cases.blocks())
def test_binary_block2d(call):
    (words, stream), (expected_words, expected) = cases.run_block(NUMBA, call), cases.run_block(REFERENCE, call)
    assert cases.same(words, expected_words)
    assert cases.same(stream, expected, torch.channels_last if call['keep'] else torch.contiguous_format)


@needs_numba
def test_in_place_writes_the_given_tensor():
    stream = torch.zeros(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    words = torch.zeros(1, 3, 3, 1, dtype=torch.int32)
    conv = words, torch.zeros(2, 1, 1, 1, dtype=torch.int32), Conv2dGeometry(5, 2, 1)
    for out in stream, stream.bfloat16():
        _, result = NUMBA.binary_block2d(*conv, Epilogue(torch.ones(2), torch.ones(2)), out, out.dtype, False, True, out)
        assert result is out
        assert out.unique().tolist() == [6]


@needs_numba
def test_special_floats_pass_the_epilogue():
    x, w = torch.zeros(1, 1, 6, 1, dtype=torch.int32), torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    shortcut = torch.tensor([float('nan'), float('inf'), -float('inf'), -0.0, 1e-45, -2.0]).reshape(1, 1, 1, 6)
    for act in ACTS:
        slope = torch.zeros(1) if act == 'prelu' else None
        call = dict(x_words=x, w_words=w, geometry=Conv2dGeometry(1, 1, 1),
                    epilogue=Epilogue(torch.zeros(1), torch.zeros(1), act, slope=slope), shortcut=shortcut,
                    dtype=torch.float32, pack=True, keep=True)
        for result, expected in zip(NUMBA.binary_block2d(**call), REFERENCE.binary_block2d(**call), strict=True):
            assert torch.equal(result.nan_to_num(7), expected.nan_to_num(7))


@needs_numba
def test_threads_give_the_same(monkeypatch):
    x, w = torch.randint(-2**31, 2**31 - 1, (2, 30, 20, 2), dtype=torch.int32), torch.randint(-9, 9, (70, 3, 3, 2)).int()
    call = dict(x_words=x, w_words=w, geometry=Conv2dGeometry(64, 70, 3, padding=1))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    assert torch.equal(NUMBA.binary_conv2d(**call), REFERENCE.binary_conv2d(**call))


@needs_numba
def test_other_devices_are_refused_with_a_reason():
    able, reason = NUMBA.supports('pack_features', x=torch.ones(3, device='meta'), threshold=None)
    assert (able, reason) == (False, 'numba runs on the CPU, got tensors on meta')


def test_without_numba_the_backend_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'numba', None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert Numba().available() == (False, "numba is not installed: pip install 'bnn_plugins[numba]', or pip install numba")


def test_preferred_to_the_reference_only():
    names = list(dispatch.BACKENDS)
    assert names.index('numba') == names.index('reference') - 1
