"""diffusers' own tests over our UNet, from a checkout named by DIFFUSERS_CHECKOUT (its tests are not in the package).

They also need ``parameterized`` and ``requests_mock``, those of pipelines ``transformers``.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUT = os.environ.get('DIFFUSERS_CHECKOUT', '')
pytestmark = [
    pytest.mark.skipif(not (Path(CHECKOUT) / 'tests/models/testing_utils').is_dir(),
                       reason='DIFFUSERS_CHECKOUT names no checkout of diffusers'),
    pytest.mark.skipif(not (find_spec('parameterized') and find_spec('requests_mock')),
                       reason='parameterized and requests_mock are not installed'),
]
BINARY = '''
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel
from diffusers_tests.models.testing_utils import ModelTesterMixin, TrainingTesterMixin
from diffusers_tests.models.unets.test_models_unet_2d import Unet2DModelTesterConfig


class Binary(Unet2DModelTesterConfig):
    model_class = BinaryUNet2DModel

    def get_init_dict(self):
        blocks = super().get_init_dict()
        for key in ('down_block_types', 'up_block_types'):
            blocks[key] = tuple('Binary' + name for name in blocks[key])
        return blocks


class TestModel(Binary, ModelTesterMixin):
    pass


class TestTraining(Binary, TrainingTesterMixin):
    pass
'''
# Before the tests are collected, UNet2DModel means ours.
SWAP = '''
import diffusers
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel


class UNet2DModel(BinaryUNet2DModel):
    def __new__(cls, **options):
        for key in ('down_block_types', 'up_block_types'):
            options[key] = tuple('Binary' + name for name in options[key])
        return BinaryUNet2DModel(**options)


diffusers.UNet2DModel = UNet2DModel
'''


def run(tmp_path, *arguments):
    (tmp_path / 'diffusers_tests').symlink_to(Path(CHECKOUT) / 'tests')
    (tmp_path / 'swap_plugin.py').write_text(SWAP)
    (tmp_path / 'test_binary.py').write_text(BINARY)
    env = os.environ | {'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}', 'DIFFUSERS_TEST_DEVICE': 'cpu'}
    result = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--rootdir', str(tmp_path),
                             *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])  # pytest -rP shows it
    return int(re.search(r'(\d+) passed', result.stdout)[1])


def test_model_and_training_mixins(tmp_path):
    assert run(tmp_path, 'test_binary.py') >= 15


@pytest.mark.skipif(not find_spec('transformers'), reason='transformers is not installed')
def test_pipelines_with_the_class_swapped(tmp_path):
    """All but the tests that compare with numbers of the float UNet or load from the hub."""
    golden = 'not (test_inference or test_fast_inference or IntegrationTests)'
    files = [f'diffusers_tests/pipelines/{name}/test_{name}.py' for name in ('ddim', 'ddpm')]
    assert run(tmp_path, '-p', 'swap_plugin', '-k', golden, *files) >= 10
