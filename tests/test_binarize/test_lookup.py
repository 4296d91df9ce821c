"""The registry: what a name may build, which options it takes, what is refused in one sentence."""

from functools import partial

import pytest
from torch import nn

from bnn_plugins.binarize.lookup import Registry, checked_arguments, keywords


class Base(nn.Module):
    pass


class Own(Base):
    def __init__(self, width: float = 1.0, *, depth: int = 2):
        super().__init__()
        self.width, self.depth = width, depth


class Inherited(Own):
    """Without an ``__init__`` of its own."""


class Passing(Own):
    def __init__(self, height: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.height = height


class Checked(Own):
    @checked_arguments
    def __init__(self, height: int = 3):
        super().__init__()


def open_ended(**options):
    return Passing(**options)


@pytest.mark.parametrize(('build', 'names'), [
    (Base, []), (Own, ['width', 'depth']), (Inherited, ['width', 'depth']), (Passing, ['height', 'width', 'depth']),
    (Checked, ['height']), (lambda a, b=1: None, ['a', 'b']), (partial(Passing, width=2.0), None), (open_ended, None)])
def test_keywords(build, names):
    assert keywords(build) == names


@pytest.fixture
def registry():
    registry = Registry('thing', Base, common=['frozen'])
    for cls in (Own, Inherited, Passing):
        registry.register(cls.__name__.lower())(cls)
    registry.register('open')(open_ended)
    return registry


def test_options_and_context(registry):
    assert registry.build('inherited').width == 1
    assert registry.build(dict(type='inherited', depth=5, frozen=True)).depth == 5
    assert registry.build(dict(type='passing', width=4.0), height=7, rows=1).height == 7, 'what has no argument is left out'
    assert registry.build(dict(type='passing', height=2), height=7).height == 2, 'what the config says wins'
    assert registry.build(dict(type='open', width=4.0)).width == 4
    assert registry.list() == ['own', 'inherited', 'passing', 'open']


def test_the_spec_stays_as_it_is(registry):
    spec = dict(type='own', width=2.0, frozen=True)
    registry.build(spec)
    assert spec == dict(type='own', width=2.0, frozen=True)


@pytest.mark.parametrize(('spec', 'error', 'sentence'), [
    ('inherit', ValueError, "unknown thing 'inherit'; did you mean 'inherited'"),
    (dict(type='inherited', widht=1), ValueError, "unknown option of the thing 'inherited' 'widht'; did you mean 'width'"),
    (dict(type='passing', widht=1), ValueError, "did you mean 'width'"),
    (dict(type='own', froze=1), ValueError, "did you mean 'frozen'"),
    (None, TypeError, 'thing must be a name or dict'),
    ('number', TypeError, "the thing 'number' must build Base, but built int"),
], ids=str)
def test_what_is_refused(registry, spec, error, sentence):
    registry.register('number')(lambda: 3)
    with pytest.raises(error, match=sentence):
        registry.build(spec)


def test_a_name_is_given_once(registry):
    with pytest.raises(ValueError, match=r"the thing 'own' is .*test_lookup\.Own already"):
        registry.register('own')(Passing)
    assert type(registry.build('own')) is Own
    again = type('Own', (Own,), {'__qualname__': 'Own', '__module__': Own.__module__})
    registry.register('own')(again)  # the module was run once more, as in a notebook
    assert type(registry.build('own')) is again
