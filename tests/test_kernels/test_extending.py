"""A backend of another package, by public calls only."""

import pytest
import torch

import bnn_kernels as bk
from bnn_kernels import dispatch

WORDS = torch.zeros(2, 2, dtype=torch.int32)


class Outside(bk.Backend):
    """Runs binary_linear for whole words; every result is 7."""

    name = 'outside'

    def supports(self, op, **call):
        able, reason = super().supports(op, **call)
        if able and call['features'] % 32:
            return False, f"outside wants whole words, not {call['features']} features"
        return able, reason

    def binary_linear(self, x_words, w_words, features):
        return torch.full((len(x_words), len(w_words)), 7, dtype=torch.int32)


@pytest.fixture
def outside():
    """The table is as before when the test is over: there is no public way to take a backend out."""
    before = dict(dispatch.BACKENDS)
    bk.binary_linear(WORDS, WORDS, 64)  # operators that ran already learn of it, too
    bk.register_backend('outside', Outside, before=next(iter(before)))
    yield
    dispatch.BACKENDS.clear()
    dispatch.BACKENDS.update(before)


def test_it_runs_and_is_named(outside):
    assert next(iter(bk.available_backends().items())) == ('outside', 'available')
    assert bk.binary_linear(WORDS, WORDS, 64).unique().tolist() == [7]
    assert bk.last_backend('binary_linear') == 'outside'


def test_it_refuses_with_its_reason(outside):
    call = dict(x_words=WORDS, w_words=WORDS, features=63)
    assert bk.binary_linear(*call.values()).unique().tolist() == [63]
    assert bk.last_backend('binary_linear') != 'outside'
    assert bk.selection('binary_linear', **call).refusals['outside'] == 'outside wants whole words, not 63 features'
    refusals = bk.selection('pack_features', x=torch.ones(3), threshold=None).refusals
    assert refusals['outside'] == 'outside does not implement pack_features'
    with bk.set_backend('outside'), pytest.raises(RuntimeError, match='outside wants whole words, not 63 features'):
        bk.binary_linear(*call.values())


def test_its_place_in_the_order():
    before = dict(dispatch.BACKENDS)
    try:
        bk.register_backend('last', f'{__name__}:Outside', before=None)
        bk.register_backend('middle', Outside)
        assert list(dispatch.BACKENDS)[-3:] == ['middle', 'reference', 'last']
        assert bk.available_backends()['last'] == 'available'
    finally:
        dispatch.BACKENDS.clear()
        dispatch.BACKENDS.update(before)


def test_names_that_cannot_be():
    with pytest.raises(ValueError, match="'reference' is registered already"):
        bk.register_backend('reference', Outside)
    with pytest.raises(ValueError, match=r"Unknown backend 'referense'.*did you mean 'reference'"):
        bk.register_backend('outside', Outside, before='referense')
