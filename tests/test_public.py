"""The public names of both packages: documented with shapes, errors and an example, and every example in them runs.

An example uses torch, ``nn``, ``F``, ``copy``, the public names, `BinaryConv2d` and `BinaryLinear` without importing them.
"""

import ast
import copy
import doctest
import importlib
import inspect
from pathlib import Path

import mmdet.datasets  # noqa: F401 - prints when it is imported for the first time, which an example must not
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnn_kernels
import bnn_plugins
from bnn_kernels import dispatch
from bnn_plugins.binarize.estimators import ESTIMATORS
from bnn_plugins.deploy.packed import PACKED_CLASSES
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

ROOT = Path(__file__).parents[1]
PACKAGES = {'bnn_kernels': ROOT / 'kernels/bnn_kernels', 'bnn_plugins': ROOT / 'bnn_plugins'}
NAMES = {name: getattr(package, name) for package in (bnn_kernels, bnn_plugins) for name in package.__all__}
EXAMPLE_NAMES = NAMES | dict(torch=torch, nn=nn, F=F, copy=copy, BinaryConv2d=BinaryConv2d, BinaryLinear=BinaryLinear)
VERBS = {name for name, value in NAMES.items() if inspect.isroutine(value)} | {'BNNConfig', 'set_backend'}
LOW_LEVEL = {'join', 'input_signature'}  # what fuse_ is made of
NO_ERRORS = {  # they answer a question, or pass on what the layers raise
    'available_backends', 'last_backend', 'selection', 'list_methods', 'list_estimators', 'list_probabilities', 'list_rules',
    'clip_latents_', 'after_step_', 'start_epoch_', 'training_report', 'unfuse_',
}


def examples() -> list:
    """Every docstring with an example: (module, name, docstring, file, line)."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob('*.py')):
            if '.mim' in path.parts or '>>>' not in path.read_text():
                continue
            module = '.'.join((package, *path.relative_to(folder).with_suffix('').parts)).removesuffix('.__init__')
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and '>>>' in (ast.get_docstring(node) or ''):
                    name = getattr(node, 'name', 'module')
                    found.append(pytest.param(module, ast.get_docstring(node), str(path), id=f'{module}.{name}'))
    return found


@pytest.fixture
def same_registries():
    before = [(registry, dict(registry)) for registry in (dispatch.BACKENDS, PACKED_CLASSES, ESTIMATORS._builders)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize(('module', 'text', 'path'), examples())
def test_the_example_runs(module, text, path, tmp_path, monkeypatch, same_registries):
    monkeypatch.chdir(tmp_path)
    names = vars(importlib.import_module(module)) | EXAMPLE_NAMES
    test = doctest.DocTestParser().get_doctest(text, names, module, path, 0)
    output = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
    assert tried, 'no example was found'
    assert not failed, ''.join(output)


@pytest.mark.parametrize('name', sorted(NAMES))
def test_every_public_name_is_documented(name):
    value = NAMES[name]
    if callable(value):
        text = value.__doc__ or f'{name}('  # what a dataclass or a named tuple has instead of a docstring
        assert not text.startswith(f'{name}('), f'{name} needs a docstring'


@pytest.mark.parametrize('name', sorted(VERBS - LOW_LEVEL))
def test_a_public_function_has_errors_shapes_and_an_example(name):
    text = inspect.getdoc(NAMES[name])
    assert 'Example:\n    >>> ' in text
    assert name in NO_ERRORS or 'Raises' in text
    takes_tensors = any('Tensor' in str(annotation) for annotation in inspect.get_annotations(NAMES[name]).values())
    assert not takes_tensors or '[' in text.partition('Example:')[0], 'which shape has the tensor?'


def test_the_lists_of_this_file_name_public_functions():
    assert LOW_LEVEL | NO_ERRORS <= VERBS
