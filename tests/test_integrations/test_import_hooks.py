"""Every change that ``import bnn_plugins`` makes in another package: it works on the real one, it can be turned off, and there
is an error when the package has moved what the change relies on."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import wrapt

from bnn_plugins.integrations import import_hooks
from bnn_plugins.integrations.import_hooks import HOOKS, ImportHook

ROOT = Path(__file__).parents[2]
BY_VARIABLE = {hook.variable: hook for hook in HOOKS}

# Variable of the hook -> whether its effect is there, as Python that runs in a fresh process. A new hook needs a line here.
EFFECTS = {
    'BNN_PLUGINS_MMCV_EXT': "any(type(finder).__name__ == 'StandInFinder' for finder in sys.meta_path)",
    'BNN_PLUGINS_CONFIGS': "bool(load('mmengine.hub').get_config('bnn_plugins::detection/fcos_r18_fpn_bccd.py').model)",
    'BNN_PLUGINS_PACKED_FILES': "load('mmengine.runner.checkpoint').CheckpointLoader._get_checkpoint_loader('a.safetensors')"
                                ".__module__.startswith('bnn_plugins')",
    'BNN_PLUGINS_ZOO': "hasattr(load('mmengine.infer.infer').BaseInferencer._load_model_from_metafile, '__wrapped__')",
    'BNN_PLUGINS_MMDET_RULES': "'mmdet' in bnn_plugins.list_rules()",
    'BNN_PLUGINS_DIFFUSERS_RULES': "'diffusers' in bnn_plugins.list_rules()",
    'BNN_PLUGINS_FUSE_CONV_BN': "hasattr(load('mmcv.cnn') and sys.modules['mmcv.cnn.utils.fuse_conv_bn']._fuse_conv_bn, "
                                "'__wrapped__')",
    'BNN_PLUGINS_MMCV_EFFICIENT_BN': "hasattr(load('mmcv.cnn.bricks.conv_module').efficient_conv_bn_eval_forward, "
                                     "'__wrapped__')",
    'BNN_PLUGINS_MMENGINE_EFFICIENT_BN': "hasattr(load('mmengine.model.efficient_conv_bn_eval')"
                                         ".turn_on_efficient_conv_bn_eval_for_single_model, '__wrapped__')",
    'BNN_PLUGINS_TORCH_FUSION': "hasattr(load('torch.nn.utils').fuse_conv_bn_eval, '__wrapped__') and "
                                "hasattr(load('torch.nn.utils.fusion').fuse_linear_bn_eval, '__wrapped__')",
    'BNN_PLUGINS_QUANTIZER': "load('diffusers').UNet2DModel.from_pretrained(folder, "
                             "quantization_config=bnn_plugins.BNNConfig()).config.quantization_config.method == 'reactnet'",
    'BNN_PLUGINS_FROM_CONFIG': "hasattr(load('diffusers').ConfigMixin.from_config, '__wrapped__')",
    'BNN_PLUGINS_FROM_UNET': "hasattr(load('diffusers').ControlNetModel.from_unet, '__wrapped__')",
    'BNN_PLUGINS_FROM_UNET2D': "hasattr(load('diffusers').UNetMotionModel.from_unet2d, '__wrapped__')",
    'BNN_PLUGINS_PIPELINE_QUANTIZER': "bool(load('diffusers').PipelineQuantizationConfig('bnn', dict(method='bireal')))",
    # diffusers' own is a wrapper, too.
    'BNN_PLUGINS_TO': "type(vars(load('diffusers').ModelMixin)['to']).__name__ == 'FunctionWrapper'",
    'BNN_PLUGINS_SAME_BYTES': "type(vars(load('diffusers').ModelMixin)['save_pretrained']).__name__ == 'FunctionWrapper'",
    'BNN_PLUGINS_LORA': "hasattr(load('peft.tuners.lora.model').dispatch_default, '__wrapped__')",
    'BNN_PLUGINS_MODELS': "binary(load('diffusers').DDPMPipeline.from_pretrained(new))",
    'BNN_PLUGINS_OLD_MODULES': "binary(load('diffusers').DDPMPipeline.from_pretrained(old))",
    'BNN_PLUGINS_OFFLOAD': "hasattr(load('accelerate.hooks').attach_align_device_hook, '__wrapped__')",
    'BNN_PLUGINS_GROUP_OFFLOAD': "load('bnn_plugins.deploy').PackedModule in "
                                 "load('diffusers.hooks.group_offloading')._GO_LC_SUPPORTED_PYTORCH_LAYERS",
    'BNN_PLUGINS_PEFT': "hasattr(load('peft.tuners.lora.layer').Linear.merge, '__wrapped__')",
}
SCRIPT = '''
import json, sys
from importlib import import_module as load
import bnn_plugins

def binary(pipe):
    return type(pipe.unet).__name__ == 'BinaryUNet2DModel'

effects, folder, new, old = json.loads(sys.argv[1])
found = {}
for variable, effect in effects.items():
    try:
        found[variable] = eval(effect)
    except Exception as error:
        found[variable] = f'{type(error).__name__}: {error}'
print(json.dumps(found))
'''


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> list[str]:
    """A float UNet, a pipeline with a binary one, and the same as it was saved when the class was in another module."""
    pytest.importorskip('diffusers')
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from bnn_plugins import BinaryUNet2DModel
    unet, new, old = (tmp_path_factory.mktemp(name) for name in ('unet', 'new', 'old'))
    options = dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32),
                   norm_num_groups=8)
    UNet2DModel(**options, down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2).save_pretrained(unet)
    binary = BinaryUNet2DModel(**options, down_block_types=('BinaryDownBlock2D',) * 2, up_block_types=('BinaryUpBlock2D',) * 2)
    for folder in (new, old):
        DDPMPipeline(binary, DDPMScheduler()).save_pretrained(folder)
    index = (old / 'model_index.json').read_text()
    assert 'bnn_plugins.integrations.diffusers.unet_2d' in index
    (old / 'model_index.json').write_text(index.replace('bnn_plugins.integrations.diffusers', 'bnn_plugins.hosts.diffusers'))
    return [str(unet), str(new), str(old)]


def effects(folders: list[str], variables: list[str], **environment: str) -> dict:
    chosen = {variable: EFFECTS[variable] for variable in variables}
    paths = os.pathsep.join([str(ROOT / 'kernels'), str(ROOT)])
    clean = {key: value for key, value in os.environ.items() if key not in EFFECTS}
    done = subprocess.run([sys.executable, '-c', SCRIPT, json.dumps([chosen, *folders])], text=True, timeout=300,
                          capture_output=True, check=False, cwd=ROOT, env={**clean, 'PYTHONPATH': paths, **environment})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def present() -> list[str]:
    return [hook.variable for hook in HOOKS if find_spec(hook.host)]


def test_every_hook_has_a_variable_of_its_own_and_a_test():
    assert len(BY_VARIABLE) == len(HOOKS)
    assert BY_VARIABLE.keys() == EFFECTS.keys()


def test_the_real_packages_are_changed(folders):
    found = effects(folders, present())
    assert found == dict.fromkeys(present(), True)


def test_the_real_packages_are_left_alone(folders):
    found = effects(folders, present(), **dict.fromkeys(BY_VARIABLE, '0'))
    assert [variable for variable, effect in found.items() if effect is True] == []


@pytest.mark.parametrize('variable', BY_VARIABLE)
def test_a_variable_turns_off_its_hook_only(variable, monkeypatch):
    arranged = []
    monkeypatch.setattr(wrapt, 'register_post_import_hook', lambda hook, module: arranged.append((hook, module)))
    monkeypatch.setenv(variable, '0')
    for other in BY_VARIABLE.keys() - {variable}:
        monkeypatch.setenv(other, '1')
    import_hooks.install.__wrapped__()
    assert arranged == [(hook, hook.module) for hook in HOOKS if hook.variable != variable]


@pytest.mark.parametrize('variable', BY_VARIABLE)
def test_another_value_is_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, 'never')
    with pytest.raises(ValueError, match=rf"{variable} must be '0' \(off\) or '1' \(on, the default\), but got 'never'"):
        import_hooks.install.__wrapped__()


def test_installing_again_changes_nothing(monkeypatch):
    monkeypatch.setattr(wrapt, 'register_post_import_hook', lambda *_: pytest.fail('a second time'))
    import_hooks.install()


@pytest.mark.parametrize(('variable', 'attribute'), [(hook.variable, name) for hook in HOOKS for name in hook.needs])
def test_a_host_that_moved_what_is_needed(variable, attribute):
    """Everything else is there; nothing may be changed before the error."""
    hook = BY_VARIABLE[variable]
    module = SimpleNamespace()
    for needed in set(hook.needs) - {attribute}:
        owner, _, name = needed.rpartition('.')
        if owner:
            setattr(module, owner, SimpleNamespace())
        setattr(getattr(module, owner) if owner else module, name, object())
    before = dict(vars(module))
    with pytest.raises(RuntimeError) as error:
        hook(module)
    assert str(error.value).startswith(f'{hook.module} of {import_hooks.installed(hook.host)} has no {attribute}, ')
    assert f'set {variable}=0' in str(error.value)
    assert vars(module) == before


def test_the_error_names_the_installed_version():
    pytest.importorskip('mmengine')
    assert re.fullmatch(r'(onedl-)?mmengine \d+\.\d+\.\d+\S*', import_hooks.installed('mmengine'))
    assert import_hooks.installed('no_such_package') == 'no_such_package'


def test_every_hook_that_changes_a_module_says_what_it_needs():
    """A hook that only imports or registers something of ours needs nothing of the host."""
    assert {hook.variable for hook in HOOKS if not hook.needs} == {
        'BNN_PLUGINS_MMCV_EXT', 'BNN_PLUGINS_MMDET_RULES', 'BNN_PLUGINS_DIFFUSERS_RULES', 'BNN_PLUGINS_MODELS',
        'BNN_PLUGINS_OLD_MODULES'}


def test_the_table_is_in_the_documentation():
    assert import_hooks.table() in (ROOT / 'docs/integrations.md').read_text()


def test_a_row():
    hook = ImportHook('host', 'host.module', 'something is so', 'BNN_PLUGINS_X', lambda module: module.append(1), ('append',))
    rows = []
    hook(rows)
    assert rows == [1]
