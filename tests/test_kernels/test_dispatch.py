import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import bnn_kernels as bk
from bnn_kernels import dispatch
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.prepared_op import shared_op

WORDS = torch.zeros(2, 2, dtype=torch.int32)


def linear(features=64):
    return bk.binary_linear(WORDS, WORDS, features)


class Picky(dispatch.Backend):
    """Runs binary_linear, and only for whole words."""

    name = 'picky'

    def supports(self, op, **call):
        able, reason = super().supports(op, **call)
        if able and call['features'] % 32:
            return False, f"picky wants whole words, not {call['features']} features"
        return able, reason

    def binary_linear(self, x_words, w_words, features):
        return torch.full((len(x_words), len(w_words)), 7, dtype=torch.int32)


class Absent(dispatch.Backend):
    name = 'absent'

    def available(self):
        return False, 'this machine has no unicorn'


@pytest.fixture(autouse=True)
def backends(monkeypatch):
    """Three more backends in front of the reference, one line each, as a kernel author would add them."""
    monkeypatch.setattr(dispatch, 'BACKENDS', {
        'broken': 'a_module_that_is_missing:Backend',
        'absent': f'{__name__}:Absent',
        'picky': f'{__name__}:Picky',
        'reference': dispatch.BACKENDS['reference'],
    })
    monkeypatch.setattr(dispatch, '_forced', None)
    shared_op.cache_clear()  # operators remember who runs them
    yield
    shared_op.cache_clear()


def test_available_backends_give_their_reasons():
    assert bk.available_backends() == {
        'broken': "ModuleNotFoundError: No module named 'a_module_that_is_missing'",
        'absent': 'this machine has no unicorn',
        'picky': 'available',
        'reference': 'available',
    }


def test_the_preferred_backend_that_can_runs():
    assert linear(64).unique().tolist() == [7]
    assert bk.last_backend() == 'picky'
    assert linear(63).unique().tolist() == [63]
    assert bk.last_backend() == 'reference'


def test_selection_explains():
    chosen = bk.selection('binary_linear', x_words=WORDS, w_words=WORDS, features=63)
    assert chosen.backend == 'reference'
    assert chosen.refusals['absent'] == 'this machine has no unicorn'
    assert chosen.refusals['picky'] == 'picky wants whole words, not 63 features'
    chosen = bk.selection('pack_features', x=torch.ones(3), threshold=None)
    assert chosen.refusals['picky'] == 'picky does not implement pack_features'


def test_explain_tells_of_a_call_that_ran_before():
    linear(63)  # chosen and kept
    why = bk.explain(lambda: (linear(63), bk.pack_features(torch.ones(3))))
    assert why['binary_linear'] == bk.selection('binary_linear', x_words=WORDS, w_words=WORDS, features=63)
    assert why['pack_features'].refusals['picky'] == 'picky does not implement pack_features'
    assert list(why) == ['binary_linear', 'pack_features']
    assert bk.explain(linear, 64)['binary_linear'].backend == 'picky'
    with bk.set_backend('reference'):
        assert bk.explain(linear, 64) == {'binary_linear': ('reference', {})}
    with pytest.raises(ZeroDivisionError):
        bk.explain(lambda: 1 // 0)
    assert bk.explain(int) == {}


def test_explain_leaves_earlier_choices_alone(monkeypatch):
    linear(64)
    bk.explain(linear, 64)
    monkeypatch.setattr(dispatch, 'bind', None)  # nothing is chosen again
    linear(64)


def test_last_backend_by_operator_and_thread():
    linear()
    bk.pack_features(torch.ones(3))
    assert (bk.last_backend(), bk.last_backend('binary_linear')) == ('reference', 'picky')
    seen = []
    thread = threading.Thread(target=lambda: seen.append(bk.last_backend()))
    thread.start()
    thread.join()
    assert seen == [None]


def test_recorded_calls_are_those_inside_of_the_block_in_this_thread():
    with bk.set_backend('reference'):
        linear()
    bk.pack_features(torch.ones(3))
    with dispatch.recorded() as ran:
        linear(64)
        thread = threading.Thread(target=lambda: bk.pack_activations(torch.ones(1, 3, 2, 2)))
        thread.start()
        thread.join()
        with dispatch.recorded() as inner:
            bk.pack_activations(torch.ones(1, 3, 2, 2))
        linear(63)
        assert ran == {}, 'filled at the end'
    assert inner == {'pack_activations': 'reference'}
    assert ran == {'binary_linear': 'reference', 'pack_activations': 'reference'}, 'the last of each, inner blocks included'
    with dispatch.recorded() as ran:
        linear(64)
    assert ran == {'binary_linear': 'picky'}


def test_recording_takes_nothing_from_last_backend():
    bk.pack_features(torch.ones(3))
    with bk.set_backend('reference'):
        linear()
    with dispatch.recorded() as ran:
        pass
    assert ran == {}
    assert (bk.last_backend(), bk.last_backend('binary_linear')) == ('reference', 'reference')
    with pytest.raises(ZeroDivisionError), dispatch.recorded() as ran:
        linear().numel() // 0
    assert ran == {'binary_linear': 'picky'}, 'what ran before the error'
    assert (bk.last_backend(), bk.last_backend('binary_linear')) == ('picky', 'picky')
    assert bk.last_backend('pack_features') == 'reference', 'from before'


def test_forced_backend_runs_or_raises_its_reason():
    bk.set_backend('reference')
    assert linear(64).unique().tolist() == [64]
    bk.set_backend('picky')
    before = bk.last_backend()
    with pytest.raises(RuntimeError, match=r'forced backend .* binary_linear .*picky: picky wants whole words, not 63 f'):
        linear(63)
    with pytest.raises(RuntimeError, match='picky does not implement pack_features'):
        bk.pack_features(torch.ones(3))
    assert bk.last_backend() == before
    bk.set_backend(None)
    assert linear(63).unique().tolist() == [63]


def test_set_backend_as_a_context():
    with bk.set_backend('picky'):
        with bk.set_backend('reference'):
            linear()
            assert bk.last_backend() == 'reference'
        linear()
        assert bk.last_backend() == 'picky', 'the one before'
        with pytest.raises(RuntimeError, match='forced backend'):
            linear(63)
    assert dispatch._forced is None
    with pytest.raises(ZeroDivisionError), bk.set_backend('reference'):
        raise ZeroDivisionError
    assert dispatch._forced is None


def test_set_backend_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"Unknown backend 'referense' .* did you mean 'reference'"):
        bk.set_backend('referense')
    with pytest.raises(RuntimeError, match="'absent' is not available: this machine has no unicorn"):
        bk.set_backend('absent')
    assert dispatch._forced is None


def test_calls_of_several_backends_are_not_joined(monkeypatch):
    def never(*_):
        raise AssertionError('it cannot run what another backend has chosen')

    monkeypatch.setattr(Picky, 'join', never, raising=False)
    first = bk.PreparedOp('binary_linear', w_words=WORDS, features=64)
    second = bk.PreparedOp('pack_features', threshold=None)
    calls = [first.choose(dict(x_words=WORDS)), second.choose(dict(x=torch.ones(2, 2)))]
    ios = [bk.OpIO(dict(x_words='words'), ('sums',)), bk.OpIO(dict(x='x'), ('packed',))]
    assert bk.join(calls, ios, ['words', 'x'], ['sums', 'packed']) is None
    calls[0](x_words=WORDS), calls[1](x=torch.ones(2, 2))
    assert [bk.last_backend(op) for op in ('binary_linear', 'pack_features')] == ['picky', 'reference']


def test_no_backend_at_all_gives_every_reason(monkeypatch):
    monkeypatch.setattr(dispatch, 'BACKENDS', {'absent': f'{__name__}:Absent', 'picky': f'{__name__}:Picky'})
    shared_op.cache_clear()
    with pytest.raises(RuntimeError, match=r'No backend can run binary_linear .*absent: .*unicorn; picky: picky wants'):
        linear(63)


def test_the_choice_is_made_when_compiled_code_runs():
    compiled = torch.compile(linear, fullgraph=True, backend='eager')
    assert compiled().unique().tolist() == [7]
    with bk.set_backend('reference'):
        assert compiled().unique().tolist() == [64]
        assert bk.last_backend() == 'reference'


def python(code, **environment):
    return subprocess.run([sys.executable, '-c', code], env=os.environ | environment, capture_output=True, text=True)


def test_environment_variable_sets_the_first_choice():
    use = 'import bnn_kernels as bk, torch; bk.pack_features(torch.ones(3)); print(bk.last_backend())'
    assert python(use, BNN_KERNELS_BACKEND='reference').stdout == 'reference\n'
    failed = python(use, BNN_KERNELS_BACKEND='refernce')
    assert ("Unknown backend 'refernce' in set_backend, register_backend or BNN_KERNELS_BACKEND: did you mean 'reference'?"
            in failed.stderr)


def test_readme_example_runs():
    readme = Path(__file__).parents[2] / 'kernels' / 'README.md'
    example = re.search(r'```python\n(.+?)```', readme.read_text(), re.DOTALL)[1]
    scope = {}
    exec(example, scope)
    assert scope['y'].shape == (1, 64, 14, 14)


def test_import_is_light():
    code = ('import sys, torch; before = set(sys.modules); import bnn_kernels; '
            'print(*sorted(m for m in set(sys.modules) - before if not m.startswith("bnn_kernels.")))')
    loaded = python(code)
    assert loaded.stdout == 'bnn_kernels\n', loaded.stderr
    assert 'bnn_kernels.reference' not in python('import sys, bnn_kernels; print(*sys.modules)').stdout


# --- bound operators -----------------------------------------------------------------------------------------

def test_bound_gives_what_the_operator_gives():
    x, weight = torch.randn(2, 40, 5, 4), torch.randn(6, 40, 3, 3)
    words, packed = bk.pack_activations(x), bk.pack_weight(weight)
    conv = bk.PreparedOp('binary_conv2d', w_words=packed, geometry=Conv2dGeometry(40, 6, 3, padding=1))
    for _ in range(2):
        assert torch.equal(conv(x_words=words), bk.binary_conv2d(words, packed, 40, padding=1))
    packed.bitwise_not_()  # values may change
    assert torch.equal(conv(x_words=words), bk.binary_conv2d(words, packed, 40, padding=1))
    with pytest.raises(ValueError, match='1 words in its last dimension'):
        conv(x_words=words[..., :1].contiguous())
    with pytest.raises(TypeError, match='must be int32 words'):
        conv(x_words=words.float())


def test_bound_follows_set_backend():
    features = bk.PreparedOp('pack_features', threshold=None)
    x = torch.randn(3, 33)
    features(x=x)
    first = bk.last_backend('pack_features')
    with bk.set_backend('reference'):
        features(x=x)
        assert bk.last_backend('pack_features') == 'reference'
    features(x=x)
    assert bk.last_backend('pack_features') == first


def test_bound_stands_aside_in_dispatch_modes():
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    x = torch.randn(3)
    assert bk.PreparedOp.direct(x)
    assert not bk.PreparedOp.direct(torch.nn.Parameter(x))
    with TorchDispatchMode():
        assert not bk.PreparedOp.direct(x)
    with FakeTensorMode() as mode:
        assert not bk.PreparedOp.direct(mode.from_tensor(x))
    seen = []

    def net(x):
        seen.append(bk.PreparedOp.direct(x))
        return x + 1

    torch.compile(net, backend='eager', fullgraph=False)(x)
    assert seen[0] is False
