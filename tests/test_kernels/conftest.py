"""Oracles for every backend."""

import pytest

import bnn_kernels


@pytest.fixture(scope='module', params=['reference', 'the chosen one'])
def reference_and_chosen(request):
    """Operators run on the reference, and on what this machine prefers.

    Other tests compare backends with the reference: an oracle that saw only the chosen one would leave it to itself.
    """
    with bnn_kernels.set_backend('reference' if request.param == 'reference' else None):
        yield
