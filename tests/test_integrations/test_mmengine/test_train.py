"""``tools/train.py`` on real (small) data: every method on a stock config, resume after a kill, several processes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset

import bnn_plugins  # before mmdet: it provides what an mmcv without compiled operators lacks
from bnn_plugins.integrations.mmengine import run
from bnn_plugins.integrations.mmengine.run import latest_checkpoint, load_config

from ..conftest import CONFIG, REPOSITORY, as_arguments, command, environment, on_digits, tool

DAILY = 'bireal', 'recu', 'bidm'  # the others at night: the contract of layers trains each
STOCK = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
method = {method!r}
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(type='bnn_plugins.BNNFPN', method=method))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook')]
"""


@pytest.fixture(scope='session')
def coco(digits, tmp_path_factory) -> Path:
    """The digits under the names of ten of COCO's classes, so that a COCO config needs no other classes."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    for split in ('train', 'val'):
        (root / split).symlink_to(digits / split)
        annotations = json.loads((digits / f'annotations/{split}.json').read_text())
        annotations['categories'] = [dict(id=index, name=name) for index, name in enumerate(CocoDataset.METAINFO['classes'])]
        (root / f'annotations/{split}.json').write_text(json.dumps(annotations))
    return root


def stock_options(coco: Path) -> dict:
    """Two iterations of a COCO config of mmdet: 64x64 instead of 1333x800, other folders."""
    options = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 10, 'train_dataloader.dataset.indices': 4,
               'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
               'train_dataloader.dataset.pipeline.2.scale': '(64,64)', 'val_dataloader.dataset.pipeline.1.scale': '(64,64)',
               'val_dataloader.dataset.indices': 1, 'val_dataloader.num_workers': 0,
               'val_dataloader.persistent_workers': False, 'val_evaluator.ann_file': f'{coco}/annotations/val.json'}
    for split in ('train', 'val'):
        options.update({f'{split}_dataloader.dataset.data_root': f'{coco}/',
                        f'{split}_dataloader.dataset.ann_file': f'annotations/{split}.json',
                        f'{split}_dataloader.dataset.data_prefix.img': f'{split}/'})
    return options


def run_tool(monkeypatch, *arguments) -> None:
    """A tool in this process: the same code as from the shell, without the seconds of importing."""
    monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, arguments)])
    monkeypatch.setenv('LOCAL_RANK', '0')  # the tool sets it; the next test, of accelerate, must not find it
    runpy.run_path(str(REPOSITORY / 'tools/train.py'), run_name='__main__')


@pytest.mark.parametrize('method', [pytest.param(name, marks=[pytest.mark.nightly] * (name not in DAILY))
                                    for name in bnn_plugins.list_methods()])
def test_a_stock_config_trains_with_each_method(method, coco, tmp_path, monkeypatch):
    config = tmp_path / f'stock_{method}.py'
    config.write_text(STOCK.format(method=method))
    assert len(STOCK.strip().splitlines()) - 1 <= 6
    run_tool(monkeypatch, config, '--work-dir', tmp_path / 'work', '--cfg-options', *as_arguments(stock_options(coco)))
    weights = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)
    assert weights['meta']['iter'] == 2
    assert all(value.isfinite().all() for value in weights['state_dict'].values())


@pytest.mark.parametrize('backbone', [
    "dict(conv_cfg=dict(type='bnn_plugins.BinaryConv2d', method='xnor', pre_norm=True), norm_eval=False, frozen_stages=-1, "
    'init_cfg=None)',
    "dict(_delete_=True, type='bnn_plugins.binarized', method='xnor', module=dict(type='mmdet.ResNet', depth=18, "
    'norm_eval=False))',
], ids=['conv_cfg', 'binarized'])
def test_the_other_two_ways_in(backbone, coco, tmp_path, monkeypatch):
    config = tmp_path / 'way.py'
    config.write_text(f"_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\nmodel = dict(backbone={backbone})\n"
                      "optim_wrapper = dict(optimizer=dict(lr=0.001))\n")
    run_tool(monkeypatch, config, '--work-dir', tmp_path / 'work', '--cfg-options', *as_arguments(stock_options(coco)))
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_a_config_that_inherits_one_of_the_package_trains_outside_of_the_repository(digits, tmp_path):
    """Mutation: with the scope that mmengine gives to all of it, nothing of mmdet's is found."""
    (tmp_path / 'mine.py').write_text("_base_ = 'bnn_plugins::detection/retinanet_bnn-r18_fpn_digits.py'\n")
    options = on_digits(digits, **{'train_cfg.max_epochs': 1, 'train_dataloader.dataset.indices': 16})
    train = [sys.executable, REPOSITORY / 'tools/train.py', 'mine.py', '--work-dir', 'work', '--cfg-options']
    done = subprocess.run([*train, *as_arguments(options)], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)['meta']['iter'] == 2


@pytest.mark.parametrize(('method', 'hook', 'warned'), [
    ('recu', True, False), ('recu', False, True), ('reactnet', False, False)])
def test_a_training_without_its_hook_is_warned_of(method, hook, warned, monkeypatch, tmp_path):
    said = []
    cfg = load_config(str(REPOSITORY / CONFIG), str(tmp_path), {'method': method, 'model.backbone.method': method,
                                                                'model.neck.method': method})
    if not hook:
        cfg.custom_hooks = []
    monkeypatch.setattr(run, 'print_log', lambda text, *args, **kwargs: said.append(text))
    monkeypatch.setattr(run.Runner, 'train', lambda self: None)
    run.train_config(cfg, None, False, False)
    assert any('has no BinaryTrainingHook' in text for text in said) == warned


def test_amp_and_auto_scale_lr(digits, tmp_path, monkeypatch):
    run_tool(monkeypatch, REPOSITORY / CONFIG, '--work-dir', tmp_path, '--amp', '--auto-scale-lr', '--cfg-options',
             *as_arguments(on_digits(digits, **{'train_cfg.max_epochs': 1})))
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())
    # Batch 8 on one process, base batch 16: the learning rate of the config is halved.
    assert checkpoint['optimizer']['param_groups'][0]['initial_lr'] == pytest.approx(3e-3 / 2)


def test_killed_training_resumes_to_the_same_weights(digits, tmp_path):
    arguments = ['tools/train.py', CONFIG, '--cfg-options', *as_arguments(on_digits(digits))]
    whole = tool(*arguments, '--work-dir', tmp_path / 'whole')
    assert whole.returncode == 0, whole.stderr[-2000:]

    process = subprocess.Popen(command(*arguments, '--work-dir', str(tmp_path / 'killed')), cwd=REPOSITORY, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marker = tmp_path / 'killed/last_checkpoint'
    deadline = time.monotonic() + 300
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert marker.exists(), 'the training ended before it could be killed'
    assert not (tmp_path / 'killed/epoch_3.pth').exists()

    resumed = tool(*arguments, '--work-dir', tmp_path / 'killed', '--resume')
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same(*(torch.load(tmp_path / name / 'epoch_3.pth', weights_only=False) for name in ('whole', 'killed')))


@pytest.mark.parametrize(('last', 'files', 'found'), [
    ('', {'epoch_1.pth': True}, 'epoch_1.pth'),  # killed while last_checkpoint was written
    ('epoch_2.pth', {'epoch_1.pth': True, 'epoch_2.pth': False}, 'epoch_1.pth'),  # killed while a checkpoint was written
    ('epoch_1.pth', {'epoch_1.pth': True, 'epoch_2.pth': True}, 'epoch_1.pth'),
    ('epoch_1.pth', {'best_coco_bbox_mAP_epoch_9.pth': True, 'pretrained.pth': True}, 'best_coco_bbox_mAP_epoch_9.pth'),
    (None, {'iter_10.pth': True, 'iter_20.pth': True, 'iter_30.pth': False}, 'iter_20.pth'),
    (None, {'epoch_1.pth': False}, None),
    (None, {}, None),
])
def test_the_newest_whole_checkpoint_is_found(last, files, found, tmp_path):
    for age, (name, whole) in enumerate(files.items()):
        torch.save({'state_dict': {}}, tmp_path / name)
        if not whole:
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
        os.utime(tmp_path / name, (age, age))
    if last is not None:
        (tmp_path / 'last_checkpoint').write_text(last and str(tmp_path / last))
    assert latest_checkpoint(tmp_path) == (found and str(tmp_path / found))


def test_a_training_killed_while_it_saved_resumes(digits, tmp_path, monkeypatch):
    arguments = [REPOSITORY / CONFIG, '--work-dir', tmp_path, '--cfg-options']
    run_tool(monkeypatch, *arguments, *as_arguments(on_digits(digits, **{'train_cfg.max_epochs': 1})))
    (tmp_path / 'epoch_2.pth').write_bytes((tmp_path / 'epoch_1.pth').read_bytes()[:1000])
    (tmp_path / 'last_checkpoint').write_text('')
    run_tool(monkeypatch, *arguments, *as_arguments(on_digits(digits, **{'train_cfg.max_epochs': 2})), '--resume')
    assert torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['meta']['epoch'] == 2


def assert_same(one: dict, other: dict) -> None:
    """The same weights, buffers and optimizer state, bit by bit."""
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for name, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][name]), name
    for index, state in one['optimizer']['state'].items():
        for key, value in state.items():
            assert torch.equal(value, other['optimizer']['state'][index][key]), (index, key)


DUMP_HOOK = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class DumpRank(Hook):
    def after_train(self, runner):
        torch.save(dict(runner.model.module.named_parameters()), f'{runner.work_dir}/rank{runner.rank}.pth')
"""


def test_two_processes_keep_their_weights_equal(digits, tmp_path):
    (tmp_path / 'dump_rank.py').write_text(DUMP_HOOK)
    config = tmp_path / 'two.py'
    config.write_text(f"_base_ = '{REPOSITORY / CONFIG}'\ncustom_imports = dict(imports=['dump_rank'])\n"
                      "custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook'), dict(type='DumpRank')]\n")
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')
    done = tool('tools/train.py', config, '--launcher', 'pytorch', '--work-dir', tmp_path / 'work', '--cfg-options',
                *as_arguments(on_digits(digits, **{'train_cfg.max_epochs': 1})), launcher=launcher, path=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [torch.load(tmp_path / f'work/rank{rank}.pth', weights_only=False) for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name


def test_a_config_of_an_installed_package_has_a_name():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', cfg_options={'train_cfg.max_epochs': 3})
    assert (cfg.model.backbone.depth, cfg.train_cfg.max_epochs) == (18, 3)
    assert cfg.work_dir == 'work_dirs/retinanet_r18_fpn_1x_coco'
    assert load_config('bnn_plugins::detection/retinanet_bnn-r18_fpn_bccd.py').method == 'reactnet'


def test_a_missing_config_is_named():
    with pytest.raises(FileNotFoundError, match=r"the config 'nowhere.py' does not exist"):
        load_config('nowhere.py')
