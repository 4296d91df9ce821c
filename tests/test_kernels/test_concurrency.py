"""Several Python threads at once, and processes that were forked from one that had computed before."""

import os
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import bnn_kernels as bk
from bnn_kernels.cpu import engine

pytestmark = pytest.mark.sanitize
ISAS = engine.available_isas() if bk.available_backends()['cpu'] == 'available' else []
BACKENDS = [f'cpu {isa}' for isa in ISAS] + [name for name in ('numba', 'reference')
                                             if bk.available_backends()[name] == 'available']
ROUNDS = 20


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """With two threads of torch, so that kernels are split: work below is large enough for it."""
    name, _, isa = request.param.partition(' ')
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with bk.set_backend(name), engine.set_isa(isa or None):
        yield name
    torch.set_num_threads(before)


def jobs() -> list:
    """Calls of different operators and sizes, each with its result by the reference.

    Tensors stay below 2**15 elements, where torch's own loops begin to ask for threads: after a fork these would hang.
    """
    x, deep, weight = torch.randn(1, 64, 20, 20), torch.randn(2, 130, 9, 9), torch.randn(70, 64, 3, 3)
    words, w_words = bk.pack_activations(x), bk.pack_weight(weight)
    deep_words, deep_weight = bk.pack_activations(deep, groups=2), bk.pack_weight(torch.randn(40, 65, 3, 2))
    epilogue = bk.Epilogue(torch.randn(70), torch.randn(70), 'prelu', torch.randn(70), torch.randn(70), torch.randn(70))
    shortcut = torch.randn(1, 70, 20, 20)
    calls = [
        lambda: bk.pack_activations(x),
        lambda: bk.pack_features(deep),
        lambda: bk.binary_conv2d(words, w_words, 64, padding=1),
        lambda: bk.binary_conv2d(deep_words, deep_weight, 130, stride=2, groups=2, pad_value=1, padding=2),
        lambda: bk.binary_linear(words, w_words[:, 0, 0], 64),
        lambda: bk.binary_conv2d_sign(words, w_words, 64, torch.zeros(70, dtype=torch.int32)),
        lambda: bk.binary_block2d(words, w_words, 64, epilogue, shortcut, padding=1)[1],
        lambda: bk.binary_block2d(words, w_words, 64, epilogue)[0],
    ]
    with bk.set_backend('reference'):
        return [(call, call()) for call in calls]


def test_threads_compute_different_operators_at_once(backend):
    failures, together = [], threading.Barrier(4)

    def work(offset: int, own: list):
        torch.set_num_threads(2)  # of this Python thread: OpenMP keeps a number for each
        together.wait()
        for i in range(ROUNDS):
            call, expected = own[(i + offset) % len(own)]
            if not torch.equal(call(), expected):
                failures.append((offset, i))
        if bk.last_backend() != backend:
            failures.append(bk.last_backend())

    shared = jobs()  # also the weights: prepared once, in whichever thread comes first
    threads = [threading.Thread(target=work, args=(2 * i, shared)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


class Jobs(Dataset):
    """Computes in the process of the loader's worker."""

    def __init__(self):
        self.jobs = jobs()

    def __len__(self):
        return len(self.jobs)

    def __getitem__(self, i):
        call, expected = self.jobs[i]
        return os.getpid(), torch.equal(call(), expected), bk.last_backend()


def check(batches, backend: str):
    processes = {process for process, _, _ in batches}
    assert os.getpid() not in processes
    assert all(equal and ran == backend for _, equal, ran in batches), batches


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
@pytest.mark.parametrize('threads', [1, 2])
def test_forked_workers_of_a_data_loader(backend, threads):
    """After the parent has used the backend and its threads; a worker that asks for threads of its own gets results too."""
    if backend == 'reference' and threads > 1:
        pytest.skip("torch's own threads hang after a fork, which is why a DataLoader's workers start with one")
    data = Jobs()
    for call, expected in data.jobs:
        assert torch.equal(call(), expected)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context='fork', timeout=60,
                        worker_init_fn=lambda _: torch.set_num_threads(threads))
    check(list(loader), backend)
    for call, expected in data.jobs:  # the parent goes on
        assert torch.equal(call(), expected)
