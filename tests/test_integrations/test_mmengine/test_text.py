"""Character models: windows, bits per character, samples, every text config through the real tools."""

import math
from pathlib import Path

import pytest
import torch

from bnn_plugins.apps.sample_text import sample_text
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import test as evaluate
from bnn_plugins.integrations.mmengine.sequence import BitsPerCharacter, TextWindows
from bnn_plugins.models import BinaryLanguageModel

from ..conftest import REPOSITORY, as_arguments
from .test_train import run_tool

CONFIGS = sorted((REPOSITORY / 'configs/sequence').glob('*_text.py'))
TEXT = 'the quick brown fox jumps over the lazy dog. ' * 40


@pytest.fixture(scope='module')
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('text') / 'text.txt'
    path.write_text(TEXT)
    return path


def options(text: Path) -> dict:
    """Two iterations of a text config on a small text."""
    changes = {f'{split}_dataloader.dataset.path': str(text) for split in ('train', 'val', 'test')}
    changes.update({f'{split}_dataloader.dataset.{key}': value for split in ('val', 'test')
                    for key, value in (('length', 50), ('stride', 30))})
    return {**changes, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'train_dataloader.batch_size': 4,
            'train_dataloader.dataset.length': 20, 'model.vocabulary': len(set(TEXT)), 'model.rnn.hidden_size': 16,
            'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.interval': 2}


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_config_trains_packs_and_writes(config, text, tmp_path, monkeypatch):
    run_tool(monkeypatch, config, '--work-dir', tmp_path, '--cfg-options', *as_arguments(options(text)))
    checkpoint = str(tmp_path / 'iter_2.pth')
    weights = torch.load(checkpoint, weights_only=False)
    assert weights['meta']['iter'] == 2
    assert all(value.isfinite().all() for value in weights['state_dict'].values())
    latent = evaluate(str(config), checkpoint, str(tmp_path / 'test'), cfg_options=options(text))['bpc']
    assert latent < math.log2(len(set(TEXT))) + 0.5
    sample = sample_text(str(config), checkpoint, 'the ', 20, cfg_options=options(text))
    assert sample.startswith('the ')
    assert len(sample) == 24
    if 'blstm' in config.stem:
        file = str(pack_checkpoint(str(config), checkpoint, str(tmp_path / 'packed.safetensors'), options(text)))
        assert evaluate(str(config), file, str(tmp_path / 'packed'), cfg_options=options(text))['bpc'] == latent
        assert sample_text(str(config), file, 'the ', 20, cfg_options=options(text)) == sample


def test_the_digits_config_trains(tmp_path, monkeypatch):
    changes = {'train_cfg.max_epochs': 1, 'train_dataloader.num_batch_per_epoch': 2, 'train_cfg.val_interval': 9,
               'default_hooks.checkpoint.interval': 1}
    run_tool(monkeypatch, REPOSITORY / 'configs/sequence/blstm_digits.py', '--work-dir', tmp_path, '--cfg-options',
             *as_arguments(changes))
    assert torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['meta']['iter'] == 2


@pytest.mark.parametrize(('length', 'stride'), [(50, 30), (50, 50), (20, 7), (179, 100)])
def test_every_held_out_character_counts_once(text, length, stride):
    windows = TextWindows(str(text), 'val', length, stride)
    counted = [windows[i]['labels'][windows[i]['skip']:] for i in range(len(windows))]
    assert torch.equal(torch.cat(counted), windows.tokens[1:])
    assert all(len(windows[i]['inputs']) == length for i in range(len(windows)))
    assert all(windows[i]['skip'] >= length - stride for i in range(1, len(windows))), 'context'


def test_parts_of_a_text(text):
    train, val = TextWindows(str(text)), TextWindows(str(text), 'val')
    assert ''.join(train.characters[i] for i in torch.cat([train.tokens, val.tokens])) == TEXT
    assert len(val.tokens) == len(TEXT) // 10
    item = train[3]
    assert torch.equal(item['labels'][:-1], item['inputs'][1:])
    assert item['skip'] == 0
    assert torch.equal(train[len(train) - 1]['labels'][-1], train.tokens[-1])
    with pytest.raises(ValueError, match='no window of 1000'):
        TextWindows(str(text), 'val', 1000)
    with pytest.raises(ValueError, match="unknown part 'tset'"):
        TextWindows(str(text), 'tset')
    with pytest.raises(FileNotFoundError, match='set path in the config'):
        TextWindows('nowhere.txt')


def test_bits():
    """A model that knows nothing needs log2 K bits; skipped labels do not count."""
    torch.manual_seed(0)
    model = BinaryLanguageModel(8, dict(type='bnn_plugins.BinaryLSTM', hidden_size=16), embed_dims=8).eval()
    model.head.weight.data.zero_(), model.head.bias.data.zero_()
    metric = BitsPerCharacter()
    tokens = torch.randint(8, (3, 11))
    with torch.no_grad():
        rows = model(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 4, 10]), mode='predict')
    assert [int(row['count']) for row in rows] == [10, 6, 0]
    metric.process(None, rows)
    assert metric.compute_metrics(metric.results)['bpc'] == pytest.approx(3.0)
    with pytest.raises(ValueError, match='mode is'):
        model(tokens, tokens, mode='train')


def test_generation_carries_the_state():
    """Greedy text character by character is that of the whole text at once."""
    torch.manual_seed(0)
    model = BinaryLanguageModel(8, dict(type='bnn_plugins.BinaryLSTM', hidden_size=16), embed_dims=8).eval()
    prompt = torch.tensor([1, 2, 3])
    drawn = model.generate(prompt, 6, temperature=1e-6)
    for step in range(6):
        text = torch.cat([prompt, drawn[:step]])[None]
        assert model(text)[0, -1].argmax() == drawn[step]
    assert torch.equal(model.generate(prompt, 6, seed=1), model.generate(prompt, 6, seed=1))
    with pytest.raises(ValueError, match='needs a character'):
        model.generate(prompt[:0], 3)


def test_every_config_is_in_the_index():
    index = (REPOSITORY / 'configs/sequence/metafile.yml').read_text()
    configs = sorted(path.name for path in (REPOSITORY / 'configs/sequence').glob('*.py'))
    assert [line.split('/')[-1] for line in index.splitlines() if 'Config:' in line] == configs


def test_a_prompt_of_unknown_characters(text):
    with pytest.raises(ValueError, match="'§'"):
        sample_text(str(CONFIGS[0]), 'none.pth', 'a§', cfg_options=options(text))
