"""mmengine's readers and packed files: checked as by ``load_packed_``; a file of somebody else goes where it went before."""

import contextlib
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip('mmengine.runner')
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, Registry
from mmengine.runner import CheckpointLoader, Runner, checkpoint, load_checkpoint

from bnn_plugins import pack_, save_packed
from bnn_plugins.deploy import PackedLinear, PackedModule, fused_parts
from bnn_plugins.deploy.file import read_checked, sealed
from bnn_plugins.integrations.packed_files import SCHEME, register_scheme
from bnn_plugins.layers import BinaryLayer, BinaryLinear


class Net(BaseModel):
    def __init__(self, width=8, method='reactnet'):
        super().__init__()
        self.body = nn.Sequential(BinaryLinear(8, width, method=method), nn.BatchNorm1d(width), BinaryLinear(width, 8))
        self.body[1].running_mean.normal_()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.body(inputs)
        return {'loss': out.square().mean()} if mode == 'loss' else out


@pytest.fixture
def packed(tmp_path):
    """``(inputs, outputs, path)`` of a packed model."""
    model, x = Net().eval(), torch.randn(5, 8)
    expected = model(x)
    return x, expected, str(save_packed(pack_(model), tmp_path / 'net.safetensors'))


def runner(model, work_dir, **kwargs):
    data = dict(batch_size=5, dataset=[{'inputs': torch.randn(8)}] * 5, sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(model, str(work_dir), train_dataloader=data, train_cfg=dict(by_epoch=True, max_epochs=1),
                  optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), default_hooks=dict(logger=None),
                  experiment_name=f'packed_{work_dir.name}', **kwargs)


# --- ours -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fuse', ['', '0', '1'])
def test_a_runner_loads_and_fuses(packed, fuse, tmp_path, monkeypatch):
    monkeypatch.setenv('BNN_PLUGINS_FUSE', fuse)
    said = []
    monkeypatch.setattr('bnn_plugins.integrations.packed_files.print_log', lambda text, **_: said.append(text))
    x, expected, path = packed
    run = runner(Net(), tmp_path / fuse, load_from=path)
    run.load_or_resume()
    assert not any(isinstance(module, BinaryLayer) for module in run.model.modules())
    assert bool(list(fused_parts(run.model))) == (fuse != '0')
    assert [text.split(' (')[0] for text in said] == ['2 of 2 packed layers fused'] * (fuse != '0')
    assert run.model.training, 'mmengine says when to evaluate'
    assert not any(m.training for p in run.model.modules() if isinstance(p, PackedModule) for m in p.modules())
    out = run.model.eval()(x)
    assert torch.allclose(out, expected, atol=1e-5) if fuse != '0' else torch.equal(out, expected)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(('other', 'sentence'), [
    (lambda: Net(method='xnor'), r"the layer 'body.0' is .* method xnor. in the model, but .* method reactnet. in the file"),
    (lambda: Net(width=16), r"the layer 'body.0' is .linear 8->16 .* in the model, but .linear 8->8 .* in the file"),
    (lambda: nn.ModuleDict({'body': nn.Linear(8, 8)}), r"the layer 'body.0' is .not binary. in the model"),
], ids=['method', 'width', 'float'])
def test_what_does_not_fit_is_refused(packed, other, sentence, strict):
    """mmengine would only warn of missing and unexpected keys, and of another method not even that."""
    model = other()
    before = [type(module) for module in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf'net\.safetensors is for another config: {sentence}'):
        load_checkpoint(model, packed[2], strict=strict)
    assert [type(module) for module in model.modules()] == before[0]
    assert all(torch.equal(value, before[1][key]) for key, value in model.state_dict().items())


def test_missing_and_unknown_tensors_are_refused(packed):
    for change, sentence in ((lambda body: body.append(nn.Linear(8, 8)), "2 tensors missing in the file, such as 'body.3"),
                             (lambda body: body.__setitem__(1, nn.Identity()), '5 tensors unknown to the model')):
        model = Net()
        change(model.body)
        with pytest.raises(ValueError, match=f'for another config: {sentence}'):
            load_checkpoint(model, packed[2])


def test_names_are_revised_in_signatures_too(packed):
    x, expected, path = packed
    model = Net().body
    load_checkpoint(model, path, revise_keys=[(r'^body\.', '')])
    assert torch.allclose(model.eval()(x), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"config: the layer '0' is .*xnor.* in the model, but .*reactnet.* in the file"):
        load_checkpoint(Net(method='xnor').body, path, revise_keys=[(r'^body\.', '')])


def test_a_training_cannot_be_resumed_from_it(packed, tmp_path):
    run = runner(Net(), tmp_path / 'resumed', load_from=packed[2], resume=True)
    with pytest.raises(ValueError, match=r"a packed file has no 'epoch', .*: set load_from, not resume"):
        run.load_or_resume()


def test_an_average_of_latents_is_refused(packed, tmp_path):
    """mmengine's EMAHook loads the state dict into its copy of the model itself."""
    run = runner(Net(), tmp_path / 'average', load_from=packed[2], custom_hooks=[EMAHook()])
    run.call_hook('before_run')
    with pytest.raises(ValueError, match=r"weights of a packed model, but the layer 'body.0' is latent"):
        run.load_or_resume()


def test_a_model_that_is_a_layer_is_refused(tmp_path):
    path = save_packed(pack_(BinaryLinear(8, 8)), tmp_path / 'layer.safetensors')
    with pytest.raises(ValueError, match='this BinaryLinear is a layer itself, which mmengine cannot replace'):
        load_checkpoint(BinaryLinear(8, 8), str(path))
    layer = pack_(BinaryLinear(8, 8))
    load_checkpoint(layer, str(path))
    assert torch.equal(layer.weight_bits, load_file(path)['weight_bits'])


def test_readers_that_were_imported_sooner(packed):
    """``custom_imports`` and registries import bnn_plugins when mmengine's modules have taken one another's functions."""
    script = f'''
        from mmengine.runner import runner
        from mmengine.infer import infer
        original = runner._load_checkpoint_to_model
        import bnn_plugins, torch
        from mmengine.runner import checkpoint
        for module in (runner, infer, checkpoint):
            assert module._load_checkpoint_to_model.__wrapped__ is original, module
        model = torch.nn.ModuleDict(dict(body=torch.nn.Sequential(
            bnn_plugins.layers.BinaryLinear(8, 8), torch.nn.BatchNorm1d(8), bnn_plugins.layers.BinaryLinear(8, 8))))
        content = checkpoint._load_checkpoint({packed[2]!r})
        runner._load_checkpoint_to_model(model, content)
        assert type(model.body[0]).__name__ == 'PackedLinear'
    '''
    subprocess.run([sys.executable, '-c', textwrap.dedent(script)], check=True)


# --- others ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def foreign(tmp_path):
    tensors = {'weight': torch.randn(2, 3), 'bias': torch.randn(2)}
    save_file(tensors, tmp_path / 'linear.safetensors', {'format': 'pt'})
    return tensors, str(tmp_path / 'linear.safetensors')


@pytest.mark.parametrize('prefix', [r'.*\.safetensors$', r'.*linear\.safetensors', '/'])
@pytest.mark.parametrize('first', [True, False])
def test_another_file_goes_to_another_scheme(packed, foreign, prefix, first, monkeypatch):
    """Registered before or after, and not only for the same pattern; packed files are still ours."""
    tensors, path = foreign
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    if first:
        CheckpointLoader._schemes = {key: value for key, value in CheckpointLoader._schemes.items() if key != SCHEME}
    CheckpointLoader.register_scheme(prefix, lambda filename, map_location: load_file(filename))
    if first:
        register_scheme(CheckpointLoader)
    linear = nn.Linear(3, 2)
    load_checkpoint(linear, path, strict=True)
    assert torch.equal(linear.weight, tensors['weight'])
    if re.match(prefix, packed[2]) and prefix > SCHEME:
        return  # sorted before ours, so the other scheme reads all
    model = Net()
    load_checkpoint(model, packed[2])
    assert type(model.body[0]) is PackedLinear


def test_without_another_scheme_mmengine_reads_it(foreign, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    seen = []
    CheckpointLoader._schemes[''] = lambda filename, map_location: seen.append((filename, map_location)) or foreign[0]
    assert checkpoint._load_checkpoint(foreign[1], 'cpu') is foreign[0]
    assert checkpoint._load_checkpoint('nowhere.safetensors', 'cpu') is foreign[0]
    assert seen == [(foreign[1], 'cpu'), ('nowhere.safetensors', 'cpu')]


def test_other_checkpoints_are_loaded_as_ever(tmp_path):
    model, twin = Net(), Net()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'latent.pth')
    load_checkpoint(twin, str(tmp_path / 'latent.pth'), strict=True)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    del (state := model.state_dict())['body.1.weight']
    torch.save(state, tmp_path / 'part.pth')
    load_checkpoint(twin, str(tmp_path / 'part.pth'))
    with pytest.raises(RuntimeError, match=r'missing keys in source state_dict: body\.1\.weight'):
        load_checkpoint(twin, str(tmp_path / 'part.pth'), strict=True)


# --- its config -----------------------------------------------------------------------------------------------------------

GOOD = dict(default_scope='bnn_plugins', model=dict(type='bnn_plugins.BinaryClassifier', backbone=dict(
    type='bnn_plugins.BNNResNet', depth=18, method=dict(type='recu')), head=dict(num_classes=3)), image_size=32)


def config_of(path):
    """What mmengine does with the file when it is given no config."""
    return Config.fromstring(CheckpointLoader.load_checkpoint(path)['message_hub']['runtime_info']['cfg'], file_format='.py')


@pytest.fixture
def write_config(tmp_path):
    model = pack_(Net())
    return lambda config: str(save_packed(model, tmp_path / 'net.safetensors', config))


def test_the_config_arrives_as_data(write_config):
    extra = dict(work_dir='x', custom_imports=dict(imports=['antigravity']), _base_=['/x.py'], load_from='x.pth')
    init = dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth'), pretrained='y.pth')
    config = config_of(write_config(GOOD | extra | {'model': GOOD['model'] | init}))
    assert config.to_dict() == GOOD, 'without what loads other weights, and without what only training needs'


def test_text_that_is_python_is_not_run(write_config, tmp_path):
    """The file that the issue describes: two lines of Python before the config, and a right checksum. It used to run."""
    path, mark = write_config(GOOD), tmp_path / 'it_ran'
    tensors, metadata = read_checked(path)
    for text in (f'import pathlib\npathlib.Path({str(mark)!r}).touch()\nmodel = dict()',
                 f'{{"model": __import__("pathlib").Path({str(mark)!r}).touch()}}'):
        Path(path).write_bytes(sealed(tensors, metadata | {'config': text}))
        with pytest.warns(UserWarning, match='is not data and was not read'), pytest.raises(ValueError, match='has no config'):
            config_of(path)
        if find_spec('mmdet'):
            from mmdet.apis import DetInferencer
            with pytest.warns(UserWarning, match='is not data'), pytest.raises(ValueError, match='has no config of a model'):
                DetInferencer(weights=path, device='cpu', show_progress=False)
        assert not mark.exists()


def nested(**change):
    return GOOD | {'model': GOOD['model'] | change}


@pytest.mark.parametrize('config', [
    nested(type='os.system', command='touch it_ran'), nested(type='antigravity'), nested(type='antigravity.X'),
    nested(type='mmengine.utils.misc.get_object_from_string'), nested(neck=dict(type='subprocess.call', args=['x'])),
    nested(type=['os.system']), nested(type=None), nested(_scope_='antigravity'), GOOD | dict(default_scope='antigravity'),
    nested(test_cfg=[(dict(rcnn=dict(nms=dict(type="__import__('os').system('touch it_ran')"))),)]),
    nested(backbone=dict(type='CameraMotionCompensation', warp_mode='exit()')),
    GOOD | dict(test_dataloader=dict(collate_fn='os.system')),
    GOOD | dict(test_dataloader=dict(collate_fn=dict(type='os.system'))),
    nested(teacher=dict(checkpoint='beside.PTH')), nested(teacher_config='beside.py'), nested(a='https://example.com/x'),
    nested(backbone=dict(checkpoint_path='x.pth.tar')),
], ids=lambda config: str(config['model'])[-60:])
def test_names_that_no_registry_holds(config, write_config, monkeypatch, tmp_path):
    """Mutation: without the check, mmengine imports the name and calls it."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r'net\.safetensors was not built: config\..*; if you trust the model') as error:
        MODELS.build(config_of(write_config(config)).model)
    assert '\n' not in str(error.value)
    assert not Path('it_ran').exists()
    assert 'antigravity' not in set(sys.modules) - before


def test_names_that_the_user_registered(write_config):
    """What this process holds is trusted: the user imported it."""
    registry = Registry('model', parent=MODELS, scope='mylib')
    registry.register_module(name='MyNet')(Net)
    try:
        for name in ('mylib.MyNet', 'bnn_plugins.models.BNNResNet', 'ResNetOfMine'):
            with also_registered(name):
                assert config_of(write_config(dict(model=dict(type=name)))).model.type == name
    finally:
        MODELS.children.pop('mylib')


@contextlib.contextmanager
def also_registered(name):
    """``ResNetOfMine`` in mmengine's own registry."""
    if name == 'ResNetOfMine':
        MODELS.register_module(name=name)(Net)
    try:
        yield
    finally:
        MODELS.module_dict.pop(name, None)


def test_a_visualizer_writes_nowhere(write_config):
    visualizer = dict(type='Visualizer', name='v', save_dir='/etc', vis_backends=[dict(type='WandbVisBackend')])
    config = config_of(write_config(GOOD | dict(visualizer=visualizer)))
    assert config.visualizer.to_dict() == dict(type='Visualizer', name='v')
