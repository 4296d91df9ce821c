"""Recipes: a binary detector starts from a float one, learns from it in two steps, resumes and packs."""

import copy
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from mmengine.config import Config

from bnn_plugins import pack_  # before mmdet: the package provides what an mmcv without compiled operators lacks
from bnn_plugins.engine import BinaryTrainingHook, FloatStartHook
from bnn_plugins.integrations.mmdet.teacher_hook import TeacherHook, dense_head
from bnn_plugins.integrations.mmengine import run
from bnn_plugins.integrations.mmengine.recipes import apply_recipes_
from bnn_plugins.integrations.mmengine.run import load_config, train
from bnn_plugins.registry import MODELS

from ..conftest import REPOSITORY
from .conftest import on_cells

TEACHERS = ('teacher_response', 'teacher_features', 'teacher_lws', 'teacher_ida')
RECIPES = ('float_start', *TEACHERS, 'long_warmup')
CONFIGS = REPOSITORY / 'configs'
LOSSES = [f'loss_{name.removeprefix("teacher_")}' for name in TEACHERS]


def options(cells, **more) -> dict:
    return on_cells(cells, **{'model.backbone.base_channels': 8, 'model.neck.in_channels': [8, 16, 32, 64],
                              'model.neck.out_channels': 16, 'model.bbox_head.in_channels': 16,
                              'model.bbox_head.feat_channels': 16, **more})


@pytest.fixture(scope='module')
def twin(cells, tmp_path_factory) -> dict:
    """A float detector after two iterations."""
    work = tmp_path_factory.mktemp('float')
    runner = train(str(CONFIGS / 'detection/retinanet_r18_fpn_bccd.py'), str(work), cfg_options=options(cells))
    runner.cfg.dump(work / 'config.py')
    return dict(config=str(work / 'config.py'), checkpoint=str(work / 'epoch_1.pth'))


def write(path, twin: dict, recipes, base: str = 'retinanet_bnn-r18_fpn_bccd', text: str = '') -> str:
    bases = [f'{CONFIGS}/detection/{base}.py', *(f'{CONFIGS}/_base_/recipes/{name}.py' for name in recipes)]
    path.write_text(f'_base_ = {bases}\nfloat_twin = {twin}\n{text}')
    return str(path)


def test_all_recipes_at_once(cells, twin, tmp_path):
    config = write(tmp_path / 'config.py', twin, ('two_steps', *RECIPES))
    first, second = (f'steps.{step}.train_cfg.max_epochs' for step in (0, 1))
    settings = options(cells, **{first: 1, second: 2})
    runner = train(config, str(tmp_path), cfg_options=settings)
    scalars = runner.message_hub.log_scalars
    assert all(len(scalars[f'train/{name}'].data[0]) for name in LOSSES)
    assert runner._load_from == str(tmp_path / 'step1/epoch_1.pth'), 'the second step starts from the first one'

    cfg = load_config(config, str(tmp_path), settings)
    final = torch.load(tmp_path / 'step2/epoch_2.pth', weights_only=False)['state_dict']
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(final)  # no teacher in it
    images = torch.randn(2, 3, 64, 64)
    latent, bits = (one(images, mode='tensor') for one in (model, pack_(copy.deepcopy(model))))
    for one, other in zip(latent, bits, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))

    # Killed behind the first epoch of the second step.
    shutil.copy(tmp_path / 'step2/epoch_2.pth', tmp_path / 'whole.pth')
    (tmp_path / 'step2/epoch_2.pth').unlink()
    train(config, str(tmp_path), resume='auto', cfg_options=settings)
    again = torch.load(tmp_path / 'step2/epoch_2.pth', weights_only=False)['state_dict']
    assert all(torch.equal(value, again[name]) for name, value in final.items())


def test_float_start_gives_latents_name_by_name(cells, twin, tmp_path):
    """Mutations: without the check, a detector of another width trains from random weights; with ``--resume`` and nothing to
    resume, it starts without them."""
    config = write(tmp_path / 'config.py', twin, ('float_start',))
    settings = options(cells, **{'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': []})
    runner = train(config, str(tmp_path / 'run'), resume='auto', cfg_options=settings)
    weights, trained = torch.load(twin['checkpoint'], weights_only=False)['state_dict'], runner.model.state_dict()
    for name in ('backbone.layer2.0.conv1.weight', 'neck.fpn_convs.0.conv.weight', 'bbox_head.retina_cls.weight'):
        assert torch.equal(trained[name], weights[name]), name
    shortcut = 'backbone.layer2.0.downsample.{}.weight'  # without pooling in the float detector: one index less
    assert torch.equal(trained[shortcut.format(1)], weights[shortcut.format(0)])

    settings |= {'model.bbox_head.anchor_generator.ratios': [1.0]}
    with pytest.raises(ValueError, match=r"2 of 33 layers found no weights .* first 'bbox_head.retina_cls'"):
        train(config, str(tmp_path / 'other'), cfg_options=settings)
    config = write(tmp_path / 'skip.py', twin, (), text="default_hooks = dict(float_start=dict("
                   "type='bnn_plugins.FloatStartHook', skip=['bbox_head.retina_cls', 'bbox_head.retina_reg']))")
    train(config, str(tmp_path / 'other'), cfg_options=settings)


def test_the_second_step_and_a_resumed_run_are_left_alone():
    def refuse(source):
        raise AssertionError(source)
    for resume, load_from in ((False, 'step1/epoch_1.pth'), (True, None)):
        FloatStartHook('float.pth').before_train(SimpleNamespace(_resume=resume, _load_from=load_from, load_checkpoint=refuse))


def test_nothing_to_resume(cells, twin, tmp_path, monkeypatch):
    """``--resume`` in an empty folder: the ``load_from`` of the config is where the training starts."""
    configs = []
    monkeypatch.setattr(run, 'build_runner', lambda cfg: configs.append(cfg) or MagicMock())
    train(str(CONFIGS / 'detection/retinanet_r18_fpn_bccd.py'), str(tmp_path), resume='auto', cfg_options=options(
        cells, load_from=twin['checkpoint']))
    assert (configs[0].resume, configs[0].load_from) == (False, twin['checkpoint'])


def test_what_would_be_ignored_is_refused():
    def runner(**cfg):
        return SimpleNamespace(cfg=Config(cfg))
    with pytest.raises(ValueError, match='steps, recipe_long_warmup of the config'):
        BinaryTrainingHook().before_train(runner(steps=[], recipe_long_warmup={}))
    with pytest.raises(ValueError, match='FloatStartHook needs float_twin'):
        FloatStartHook().before_train(runner())
    with pytest.raises(ValueError, match='TeacherHook needs float_twin'):
        TeacherHook({}).before_train(runner(float_twin=dict(config='float.py')))
    with pytest.raises(ValueError, match='Linear has no dense head'):
        dense_head(torch.nn.Linear(1, 1))


def test_recipes_win_in_their_order_and_spell_out_names():
    cfg = Config(dict(model=dict(backbone=dict(method='recu')), lr=1, recipe_b=dict(lr=2, hooks=dict(x=1)), recipe_a=dict(
        lr=3, model=dict(backbone=dict(method=dict(tau_min=0.9))))))
    apply_recipes_(cfg)
    assert cfg.to_dict() == dict(model=dict(backbone=dict(method=dict(type='recu', tau_min=0.9))), lr=3, hooks=dict(x=1))
