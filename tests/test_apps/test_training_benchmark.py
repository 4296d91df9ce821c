"""tools/benchmark.py --train on a classifier, a detector and a UNet."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from bnn_plugins.apps import training_benchmark as tool
from bnn_plugins.layers import training

ROOT = Path(__file__).parents[2]
CLASSIFIER = str(ROOT / 'configs/classification/resnet8_reactnet_digits.py')
DETECTOR = str(ROOT / 'configs/detection/retinanet_bnn-r18_fpn_bccd.py')
UNET = str(ROOT / 'configs/diffusion/ddpm_reactnet_digits.py')
THIN = {'model.backbone.base_channels': 8, 'model.neck.in_channels': [8, 16, 32, 64], 'model.neck.out_channels': 8,
        'model.bbox_head.in_channels': 8, 'model.bbox_head.feat_channels': 8}


@pytest.mark.parametrize(('config', 'options', 'size'), [
    (CLASSIFIER, {'model.backbone.base_channels': 4}, None), (CLASSIFIER, {'model.backbone.base_channels': 4}, (16, 16)),
    (DETECTOR, THIN, (64, 96)), (UNET, {'model.block_out_channels': [8, 16]}, None)],
    ids=['classifier', 'classifier on noise', 'detector', 'unet'])
def test_each_kind(config, options, size, tmp_path):
    rows = tool.benchmark_training(config, str(tmp_path), [4], [size] if size else (), rounds=1, cfg_options=options)
    lines = list(csv.DictReader((tmp_path / 'training.csv').open()))
    assert [line['variant'] for line in lines] == ['float32', 'bfloat16', 'binary']
    twin, _, binary = rows
    assert binary.path == 'torch'
    assert (twin.path, twin.of_float32) == ('', 1.0)
    assert twin.kinds['binary_forward_ms'] == 0 < binary.kinds['binary_forward_ms']
    assert {row.batch for row in rows} == {4}
    assert {(row.height, row.width) for row in rows} == {size or {CLASSIFIER: (16, 16), UNET: (8, 8)}[config]}
    assert lines[2]['torch']
    assert float(lines[2]['of_float32']) > 0


@pytest.mark.nightly
def test_several_models_of_one_config(monkeypatch):
    variants = {'a': {'model.method': 'binarynet'}, 'b': {'model.method': 'recu', 'model.expand': dict(tau=2)}}
    seen, product = set(), training.SignProduct
    monkeypatch.setattr(training, 'LEAST_WORK', 0)
    monkeypatch.setattr(training, 'SignProduct', lambda *fields: (seen.add(fields[-1]), product(*fields))[1])
    rows = tool.train_benchmark(UNET, variants, 2, rounds=1, cfg_options={'model.block_out_channels': [8, 16]},
                                gradients=['float32', 'bfloat16'])
    names = ['a', 'a, bfloat16 gradients', 'b', 'b, bfloat16 gradients']
    assert [row.variant for row in rows[2:]] == names
    assert rows[4].saved_bytes > rows[2].saved_bytes
    assert seen == {'float32', 'bfloat16'}, 'the precision of gradients is that of the variant'


def test_the_float_unet_of_a_binary_one():
    binary = dict(type='BinaryUNet2DModel', method='xnor', down_block_types=('BinaryDownBlock2D', 'DownBlock2D'),
                  mid_block_type='BinaryUNetMidBlock2D', sample_size=8, expand=dict(tau=2))
    assert tool.float_unet(binary) == dict(type='UNet2DModel', down_block_types=('DownBlock2D', 'DownBlock2D'),
                                           mid_block_type='UNetMidBlock2D', sample_size=8)


@pytest.mark.parametrize(('flags', 'sentence'), [
    (['--train', '--variants', 'fused'], 'variants is for the throughput of packed models'),
    (['--compiled'], '--compiled is for --train'), (['--gradients', 'bfloat16'], '--gradients is for --train')])
def test_flags_that_do_not_fit(flags, sentence):
    done = subprocess.run([sys.executable, 'tools/benchmark.py', CLASSIFIER, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
