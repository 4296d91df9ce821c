"""`Derived`: what is made from tensors is found again, made again when they change, and goes when they go."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

from bnn_kernels import derived as module
from bnn_kernels.derived import Derived


class Made:
    """An object that weak references can point to."""

    def __init__(self, *arguments):
        self.arguments = arguments


def total(*tensors: torch.Tensor) -> float:
    return float(sum(tensor.double().sum() for tensor in tensors))


def made_alone(*arguments) -> Made:
    return Made()  # without the arguments, which would keep the tensors


@pytest.fixture
def weight():
    return torch.arange(24, dtype=torch.int32).reshape(4, 6)


# --- what is the same ------------------------------------------------------------------------------------------------

VIEWS = {
    'itself': lambda w: w,
    'an item': lambda w: w[1],
    'an item of an iteration': lambda w: list(w)[2],
    'a slice': lambda w: w[1:, ::2],
    'another dimension': lambda w: w[:, None, None],
    'transposed': lambda w: w.t(),
    'detached': lambda w: w.detach(),
    'another dtype': lambda w: w.view(torch.float32),
    'a parameter': lambda w: nn.Parameter(w, requires_grad=False),
}


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_a_view_made_anew_finds_what_was_made(weight, view):
    derived = Derived(Made)
    first = derived([view(weight)], (1,))
    assert derived([view(weight)], (1,)) is first
    assert len(derived.entries) == 1
    with torch.inference_mode():
        same = view(weight)
        assert same.is_inference() or derived([same], (1,)) is first


def test_different_views_of_one_storage_are_different_tensors(weight):
    derived = Derived(Made)
    views = [weight, weight[0], weight[1], weight[:2], weight[::2], weight.t(), weight.view(6, 4), weight.view(torch.float32)]
    made = [derived([view]) for view in views]
    assert len({id(one) for one in made}) == len(views)
    assert [derived([view]) for view in views] == made


def test_settings_and_the_number_of_tensors_are_part_of_it(weight):
    derived, other = Derived(Made), torch.zeros(3)
    calls = [([weight], (1,)), ([weight], (2,)), ([weight], ()), ([weight, other], (1,)), ([other, weight], (1,)), ([], (1,))]
    made = [derived(*call) for call in calls]
    assert len({id(one) for one in made}) == len(calls)
    for _ in range(2):
        assert [derived(*call) for call in calls] == made
    assert [one.arguments for one in made] == [(*tensors, *settings) for tensors, settings in calls]


def test_make_may_take_other_arguments(weight):
    derived = Derived(Made)
    made = derived([weight], (1,), 'what', 'else')
    assert made.arguments == ('what', 'else')
    assert derived([weight], (1,), 'is not', 'compared') is made


# --- what has changed ------------------------------------------------------------------------------------------------

def load(w):
    holder = nn.Module()
    holder.register_buffer('w', w)
    holder.load_state_dict({'w': torch.full_like(w, 5)})


def step(w):
    p = nn.Parameter(w.detach())  # of the same storage and version
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], lr=1.0).step()


@pytest.mark.parametrize('write', [
    torch.Tensor.zero_, load, step, lambda w: w[2:].fill_(7), lambda w: w.view(-1)[3].add_(1), lambda w: w.detach().neg_(),
    lambda w: w.copy_(torch.ones_like(w)), lambda w: w.t_(), lambda w: w.resize_(2, 3), lambda w: w.set_(torch.zeros(4, 6)),
    lambda w: nn.Module.half(nn.ParameterList([w])), lambda w: setattr(w, 'data', torch.zeros(4, 6))],
    ids=['zero_', 'load_state_dict', 'optimizer', 'slice', 'element', 'alias', 'copy_', 't_', 'resize_', 'set_', 'half',
         'data assigned'])
def test_what_changes_is_made_again(write):
    w = nn.Parameter(torch.arange(24.0).reshape(4, 6), requires_grad=False)
    of_all, of_view, object_of = Derived(total), Derived(total), Derived(made_alone)
    assert (of_all([w]), of_view([w[1:]])) == (276, 261)
    first = object_of([w])
    write(w)
    assert (of_all([w]), of_view([w[1:]])) == (total(w), total(w[1:]))
    assert object_of([w]) is not first


def test_what_is_written_through_data_is_not_seen():
    """As the documentation says: it raises no version."""
    w, derived = torch.ones(3), Derived(total)
    assert derived([w]) == 3
    w.data.mul_(2)
    assert derived([w]) == 3
    w.mul_(2)
    assert derived([w]) == 12


def test_any_of_several_tensors_may_change():
    a, b, derived = torch.ones(3), torch.ones(2), Derived(total)
    assert derived([a, b]) == 5
    b.add_(1)
    assert derived([a, b]) == 7
    a.add_(1)
    assert derived([a, b]) == 10
    assert derived([a, b[:1]]) == 8
    assert len(derived.entries) == 2, 'what was made before a change is not kept'


def test_tensors_of_inference_mode_are_looked_at_each_time():
    derived = Derived(total)
    with torch.inference_mode():
        w = torch.ones(3)
        for _ in range(3):
            assert derived([w, torch.ones(1)]) == total(w) + 1
            w.mul_(2)
    assert derived([w]) == total(w) == 24
    assert not derived.entries


def test_what_is_made_is_an_ordinary_tensor_without_gradient():
    w = nn.Parameter(torch.ones(3))
    with torch.inference_mode():
        made = Derived(torch.neg)([w])
    assert not made.is_inference()
    assert not made.requires_grad
    assert not Derived(torch.neg)([w]).requires_grad


# --- what is gone ----------------------------------------------------------------------------------------------------

def test_an_address_that_is_used_again():
    derived, identities = Derived(total), set()
    for value in range(500):
        w = torch.full((4,), float(value))
        identities.add(id(w.untyped_storage()))
        assert derived([w]) == derived([w[:]]) == 4 * value
        assert len(derived.entries) == 1
    assert len(identities) < 500, 'no address was used twice: this test has tested nothing'


def test_it_goes_with_the_storage_not_with_the_tensor():
    derived, weight = Derived(made_alone), torch.zeros(4, 6)
    made, view = weakref.ref(derived([weight])), weight[1:]
    del weight
    assert made() is not None
    assert len(derived.entries) == 1
    del view
    assert made() is None
    assert not derived.entries


@pytest.mark.parametrize('first', [0, 1])
def test_it_goes_with_the_first_of_several(first):
    derived, tensors = Derived(made_alone), [torch.zeros(2), torch.zeros(3)]
    made = weakref.ref(derived(tensors))
    del tensors[first]
    assert made() is None
    assert not derived.entries


def test_nothing_keeps_a_derived_alive(weight):
    derived = Derived(made_alone)
    made, itself = weakref.ref(derived([weight])), weakref.ref(derived)
    gc.disable()
    try:
        del derived
        assert itself() is made() is None
    finally:
        gc.enable()
    del weight  # the callback finds nothing to forget


# --- copies ----------------------------------------------------------------------------------------------------------

class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.total = Derived(total)

    def forward(self):
        return self.total([self.weight])


@pytest.mark.parametrize('duplicate', [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))],
                         ids=['copy', 'deepcopy', 'pickle'])
def test_copies_start_with_nothing(duplicate):
    derived, w = Derived(total), torch.ones(2)
    derived([w])
    twin = duplicate(derived)
    assert twin.make is total
    assert not twin.entries
    assert twin.last == module.NOTHING_LAST


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=['deepcopy', 'pickle'])
def test_copies_of_an_owner_have_tensors_of_their_own(duplicate):
    owner = Owner()
    assert owner() == 3
    twin = duplicate(owner)
    with torch.no_grad():
        twin.weight.mul_(2)
    assert (owner(), twin()) == (3, 6)
    twin.load_state_dict(owner.state_dict())
    assert (owner(), twin()) == (3, 3)


# --- threads ---------------------------------------------------------------------------------------------------------

def test_threads():
    """They share, change and drop weights, each at its own time."""
    derived, shared = Derived(total), [torch.full((5,), float(i)) for i in range(3)]
    failures, together = [], threading.Barrier(6)
    handed = []  # tensors that another thread than their maker drops

    def work(seed: int) -> None:
        together.wait()
        for i in range(400):
            w = shared[(i + seed) % 3]
            own = torch.full((4,), float(i))
            found = derived([w[:]]), derived([own]), derived([w, own])
            if found != (total(w), 4 * i, total(w, own)):
                failures.append((seed, i, found))
            own.add_(1)
            if derived([own]) != 4 * (i + 1):
                failures.append((seed, i))
            handed.append(own)
            del own
            if len(handed) > 20:
                handed.pop(0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    handed.clear()
    assert len(derived.entries) == 3, 'one for each of the shared'


# --- streams of a GPU, in structure ----------------------------------------------------------------------------------

class Stream:
    def __init__(self, log: list, number: int):
        self.log, self.cuda_stream = log, number

    def record_event(self):
        self.log.append(('record', self.cuda_stream))
        return f'event of {self.cuda_stream}'

    def wait_event(self, event):
        self.log.append(('wait', self.cuda_stream, event))


class OnGpu:
    """A tensor of the main memory that says it is on a GPU."""

    is_cuda, device = True, torch.device('cuda', 0)

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        return getattr(self.tensor, name)


@pytest.fixture
def gpu(monkeypatch):
    class Gpu:
        log: list = []
        capturing = False

        def use(self, number: int):
            monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: Stream(self.log, number))

    gpu = Gpu()
    gpu.log = []
    gpu.use(1)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: gpu.capturing)
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: gpu.log.append(('memory', stream.cuda_stream)))
    return gpu


def test_another_stream_waits_for_what_it_did_not_make(gpu):
    derived, w = Derived(lambda w: (torch.ones(1), None, torch.ones(2))), OnGpu(torch.zeros(3))
    made = derived([w])
    assert derived([w]) is made
    assert gpu.log == [('record', 1)]
    gpu.use(2)
    for tensor in (w, w, OnGpu(w.tensor)):
        assert derived([tensor]) is made
    assert gpu.log[1:] == [('wait', 2, 'event of 1'), ('memory', 2), ('memory', 2)], 'once'
    gpu.use(1)
    assert derived([w]) is made
    assert len(gpu.log) == 4


def test_a_view_made_anew_on_another_stream_waits_too(gpu):
    derived, w = Derived(lambda w: torch.ones(1)), torch.zeros(3)
    made = derived([OnGpu(w)])
    gpu.use(2)
    assert derived([OnGpu(w)]) is made
    assert gpu.log == [('record', 1), ('wait', 2, 'event of 1'), ('memory', 2)]


def test_while_a_graph_is_captured(gpu):
    derived, w, other = Derived(lambda w: torch.ones(1)), OnGpu(torch.zeros(3)), OnGpu(torch.zeros(2))
    made = derived([w])
    gpu.use(2)
    gpu.capturing = True
    assert derived([w]) is made, 'made before: the graph reads it'
    assert derived([other]) is not derived([other]), 'made inside: it exists when the graph runs'
    assert gpu.log == [('record', 1)]
    gpu.capturing = False
    assert derived([w]) is made
    assert gpu.log[1:] == [('wait', 2, 'event of 1'), ('memory', 2)], 'no wait was remembered'
