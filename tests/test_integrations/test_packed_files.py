"""mmengine's readers and packed files: checked as by ``load_packed_``; a file of somebody else goes where it went before."""

import re
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip('mmengine.runner')
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, checkpoint, load_checkpoint

from bnn_plugins import pack_, save_packed
from bnn_plugins.deploy import PackedLinear, PackedModule, fused_parts
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
