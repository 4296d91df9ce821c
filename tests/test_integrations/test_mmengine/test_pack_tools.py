"""From a checkpoint to bits and back to boxes: ``tools/pack.py``, ``tools/test.py``, ``DetInferencer``, summary."""

import csv
import pickle
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer, init_detector

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.deploy import PackedLayer, fused_parts, read_packed, unfuse_
from bnn_plugins.integrations.mmengine import pack as pack_module
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import build_runner, load_config, train
from bnn_plugins.integrations.mmengine.run import test as evaluate
from bnn_plugins.layers import BinaryLayer

from ..conftest import CONFIG, as_arguments, on_digits, tool


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory) -> tuple[str, str, dict]:
    """Config (a file with the options in it), checkpoint and packed file of a detector after one epoch."""
    work = tmp_path_factory.mktemp('trained')
    options = on_digits(digits, **{'train_cfg.max_epochs': 1, 'model.test_cfg.score_thr': 0.0})
    runner = train(CONFIG, str(work), cfg_options=options)
    config = work / 'config.py'
    runner.cfg.dump(config)
    checkpoint = str(work / 'epoch_1.pth')
    return str(config), checkpoint, str(pack_checkpoint(str(config), checkpoint, str(work / 'packed.safetensors')))


def predictions(config: str, checkpoint: str, out: Path, **kwargs) -> tuple[dict, list[dict]]:
    metrics = evaluate(config, checkpoint, work_dir=str(out.parent / out.stem), out=str(out), **kwargs)
    return metrics, pickle.loads(out.read_bytes())


def test_the_packed_detector_gives_the_latent_detectors_boxes(trained, tmp_path):
    config, checkpoint, packed = trained
    latent_metrics, latent = predictions(config, checkpoint, tmp_path / 'latent.pkl')
    packed_metrics, bits = predictions(config, packed, tmp_path / 'packed.pkl', fuse=False)
    assert latent_metrics == packed_metrics
    assert len(latent) == len(bits) == 8
    assert sum(len(image['pred_instances']['scores']) for image in latent) > 0
    for one, other in zip(latent, bits, strict=True):
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(one['pred_instances'][key], other['pred_instances'][key])


def test_the_fused_detector_gives_the_same_boxes_within_rounding(trained, tmp_path):
    config, checkpoint, packed = trained
    latent_metrics, latent = predictions(config, checkpoint, tmp_path / 'latent.pkl')
    fused_metrics, fused = predictions(config, packed, tmp_path / 'fused.pkl')
    for name, value in latent_metrics.items():
        assert fused_metrics[name] == pytest.approx(value, abs=0.003)
    for one, other in zip(latent, fused, strict=True):
        one, other = one['pred_instances'], other['pred_instances']
        near = torch.isclose(one['scores'].sort().values, other['scores'].sort().values, atol=1e-4)
        assert near.float().mean() > 0.9, 'a sign that flipped reaches few boxes'


@pytest.mark.nightly
def test_augmented_images(trained, digits, tmp_path):
    """Mutation: without loading into the model inside, mmengine only warns of all keys; boxes are of random weights."""
    config, checkpoint, packed = trained
    options = dict(tta=True, cfg_options={'test_evaluator.ann_file': f'{digits}/annotations/test.json'})
    latent_metrics, latent = predictions(config, checkpoint, tmp_path / 'latent.pkl', **options)
    packed_metrics, bits = predictions(config, packed, tmp_path / 'packed.pkl', fuse=False, **options)
    assert latent_metrics == packed_metrics
    plain = predictions(config, checkpoint, tmp_path / 'plain.pkl')[1]
    for one, other, without in zip(latent, bits, plain, strict=True):
        assert torch.equal(one['pred_instances']['bboxes'], other['pred_instances']['bboxes'])
        assert not torch.equal(one['pred_instances']['scores'], without['pred_instances']['scores']), 'the mirror image counts'


@pytest.mark.parametrize('with_config', [True, False])
def test_det_inferencer_runs_a_packed_file(trained, digits, with_config):
    config, checkpoint, packed = trained
    image = str(next((digits / 'test').glob('*.png')))
    inferencer = DetInferencer(model=config if with_config else None, weights=packed, device='cpu', show_progress=False)
    assert any(isinstance(m, PackedLayer) for m in inferencer.model.modules())
    assert not any(isinstance(m, BinaryLayer) for m in inferencer.model.modules())
    assert inferencer.model.dataset_meta['classes'] == list('0123456789')
    latent = DetInferencer(model=config, weights=checkpoint, device='cpu', show_progress=False)
    expected = latent(image)['predictions']
    assert dict(fused_parts(inferencer.model)).keys() == {'backbone', 'neck'}, 'it runs fused'
    assert inferencer(image)['predictions'][0]['scores'] == pytest.approx(expected[0]['scores'], abs=1e-3)
    unfuse_(inferencer.model)
    assert inferencer(image)['predictions'] == expected


def test_fusing_can_be_turned_off(trained, monkeypatch):
    config, _, packed = trained
    monkeypatch.setenv('BNN_PLUGINS_FUSE', '0')
    inferencer = DetInferencer(model=config, weights=packed, device='cpu', show_progress=False)
    assert not list(fused_parts(inferencer.model))


def test_packing_verifies(trained, tmp_path, monkeypatch):
    config, checkpoint, _ = trained
    logged = []
    monkeypatch.setattr(pack_module, 'print_log', lambda text, **_: logged.append(text))
    pack_checkpoint(config, checkpoint, str(tmp_path / 'verified.safetensors'), verify=2)
    (text,) = logged
    assert '0 violations' in text
    assert 'conv, norm, shortcut in place, RPReLU, sign of' in text


@pytest.mark.parametrize('source', ['2', 'folder'])
def test_the_real_layers_in_int8(trained, digits, tmp_path, monkeypatch, source):
    """Packed, calibrated, verified, loaded anew and run by the tools."""
    config, checkpoint, packed = trained
    logged = []
    monkeypatch.setattr(pack_module, 'print_log', lambda text, **_: logged.append(text))
    file = pack_checkpoint(config, checkpoint, str(tmp_path / 'int8.safetensors'), rest='int8', verify=1,
                           calibration=source if source != 'folder' else str(digits / 'test'))
    rest, verification = logged
    assert 'real layers in int8; largest error' in rest
    assert ': ok' in verification or 'explained by the signs' in verification
    assert Path(file).stat().st_size < 0.7 * Path(packed).stat().st_size
    stored = read_packed(file)
    assert any(text.startswith('int8 conv') for text in stored.layers.values())
    assert any(text.startswith('int8-pixels conv') for text in stored.layers.values())
    assert stored.config['model']['data_preprocessor']['type'] == 'bnn_plugins.PixelPreprocessor'
    again = pack_checkpoint(config, packed, str(tmp_path / 'again.safetensors'), rest='int8',
                            calibration=source if source != 'folder' else str(digits / 'test'))
    assert Path(again).read_bytes() == Path(file).read_bytes(), 'the bits of a packed file are those of its checkpoint'
    found = predictions(config, str(file), tmp_path / 'int8.pkl')[1]
    expected = predictions(config, packed, tmp_path / 'float.pkl')[1]
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        one, other = (x['pred_instances']['scores'].sort().values for x in (one, other))
        assert torch.isclose(one, other, atol=0.05).float().mean() > 0.8


def test_an_inferencer_hands_over_pixels(trained, digits, tmp_path):
    """By the config in the file; by another one they are normalised, and turned back: the same boxes."""
    config, checkpoint, _ = trained
    file = str(pack_checkpoint(config, checkpoint, str(tmp_path / 'int8.safetensors'), rest='int8', calibration=4))
    image, found = str(next((digits / 'test').glob('*.png'))), []
    for model, dtype in (None, torch.uint8), (config, torch.float32):
        inferencer = DetInferencer(model=model, weights=file, device='cpu', show_progress=False)
        seen = []
        inferencer.model.backbone.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].dtype))
        found.append(inferencer(image)['predictions'])
        assert seen == [dtype]
    assert found[0] == found[1]
    assert found[0][0]['scores']


def test_what_is_packed_cannot_be_packed_again(trained, tmp_path):
    for options in {}, dict(rest='int8', verify=1):
        with pytest.raises(ValueError, match=r'is packed already: .* --rest int8 or bfloat16, without --verify'):
            pack_checkpoint(trained[0], trained[2], str(tmp_path / 'x.safetensors'), **options)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(rest='int4'), 'float32, bfloat16, int8, but got'),
    (dict(rest='int8', calibration='nowhere'), "'nowhere' is no folder"),
    (dict(rest='int8', calibration='{tmp}'), 'no images to calibrate with'),
    (dict(rest='int8', calibration=0), 'no images to calibrate with')])
def test_mistakes_about_the_real_layers(trained, tmp_path, options, message):
    options = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pack_checkpoint(trained[0], trained[1], str(tmp_path / 'x.safetensors'), **options)


def test_a_file_that_computes_something_else_does_not_pass(trained, tmp_path, monkeypatch):
    config, checkpoint, _ = trained
    load = pack_module.load_packed_

    def damaged(model, path):
        load(model, path)
        model.backbone.layer1[0].conv1.weight_bits.bitwise_xor_(1)
        return model

    monkeypatch.setattr(pack_module, 'load_packed_', damaged)
    with pytest.raises(ValueError, match=r'does not compute what .* computes: .* NOT OK'):
        pack_checkpoint(config, checkpoint, str(tmp_path / 'damaged.safetensors'), verify=1)


def test_the_tools_from_the_shell(trained, tmp_path):
    config, checkpoint, packed = trained
    done = tool('tools/pack.py', config, checkpoint, tmp_path / 'again.safetensors')
    assert done.returncode == 0, done.stderr
    one, other = read_packed(packed), read_packed(tmp_path / 'again.safetensors')
    assert (one.layers, one.config, one.meta) == (other.layers, other.config, other.meta)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)

    done = tool('tools/test.py', config, packed, '--work-dir', tmp_path / 'test')
    assert done.returncode == 0, done.stderr
    assert "packed layers ran on the backend '" in done.stderr + done.stdout

    done = tool('tools/summary.py', config, '--shape', '64', '64', '--signs', '--csv', tmp_path / 'summary.csv')
    assert done.returncode == 0, done.stderr
    assert 'OPs = FLOPs + BOPs / 64' in done.stdout
    assert 'backbone.layer1.0.conv1' in done.stdout
    with (tmp_path / 'summary.csv').open() as file:
        total = list(csv.DictReader(file))[-1]
    assert int(total['bytes_packed']) <= Path(packed).stat().st_size


def test_the_file_has_the_size_that_the_summary_predicts(trained):
    from bnn_plugins.integrations.mmengine.summarize import summarize_config
    config, _, packed = trained
    _, summary = summarize_config(load_config(config), (64, 64))
    # The prediction knows no class names yet: the file holds them too.
    assert Path(packed).stat().st_size == pytest.approx(summary.bytes_file, rel=0.01)
    tensors = read_packed(packed).tensors
    assert sum(t.nbytes for t in tensors.values()) == summary.totals.bytes_packed


def test_a_packed_file_for_another_config_is_refused(trained, digits, tmp_path):
    config, _, packed = trained
    wider = on_digits(digits, **{'model.backbone.base_channels': 12, 'model.neck.in_channels': [12, 24, 48, 96]})
    with pytest.raises(ValueError, match=r"another config: the layer 'backbone.layer1.0.conv1' is .conv 12->12 .* in the"):
        evaluate(config, packed, str(tmp_path), cfg_options=wider)
    other = on_digits(digits, **{'model.backbone.method': 'xnor'})
    with pytest.raises(ValueError, match=r'the layer .* method xnor. in the model, but .* method reactnet. in the file'):
        evaluate(config, packed, str(tmp_path), cfg_options=other)


READERS = {
    'init_detector': lambda cfg, path: init_detector(cfg, path, device='cpu'),
    'DetInferencer': lambda cfg, path: DetInferencer(model=cfg, weights=path, device='cpu'),
    'Runner': lambda cfg, path: build_runner(load_config(cfg, str(Path(cfg).parent), {'load_from': path})).load_or_resume(),
}


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize(('key', 'change', 'sentence'), [
    ('backbone', dict(method='xnor'), 'the layer .* method xnor. in the model, but .* method reactnet. in the file'),
    ('bbox_head', dict(num_classes=9), r'size mismatch for bbox_head\.retina_cls\.weight'),
    ('bbox_head', dict(stacked_convs=3), r"(tensors missing in the file, such as|the layer) 'bbox_head\."),
], ids=['method', 'classes', 'depth'])
def test_mmdets_readers_refuse_a_file_for_another_config(trained, tmp_path, reader, key, change, sentence):
    """mmengine itself warns and goes on, with what does not fit left as it was drawn."""
    cfg = load_config(trained[0])
    cfg.model[key].update(change)
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(ValueError, match=rf'(?s)packed\.safetensors is for another config: .*{sentence}'):
        READERS[reader](str(tmp_path / 'config.py'), trained[2])


def test_a_damaged_packed_file_is_refused_by_the_tools(trained, tmp_path):
    config, _, packed = trained
    damaged = tmp_path / 'damaged.safetensors'
    content = bytearray(Path(packed).read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match='was altered after it was written'):
        evaluate(config, str(damaged), str(tmp_path))
    damaged.write_bytes(content[:-100])
    with pytest.raises(ValueError, match='is cut short or damaged'):
        DetInferencer(model=config, weights=str(damaged), device='cpu')


@pytest.mark.parametrize(('checkpoint', 'out', 'sentence'), [
    ('nowhere.pth', 'x.safetensors', r"the checkpoint 'nowhere.pth' does not exist"),
    (None, 'x.pth', r"a packed file is called \*.safetensors, but got 'x.pth'"),
])
def test_packing_says_what_is_wrong(trained, checkpoint, out, sentence):
    with pytest.raises((FileNotFoundError, ValueError), match=sentence):
        pack_checkpoint(trained[0], checkpoint or trained[1], out)


def test_cfg_options_of_the_tools_arrive(trained):
    options = as_arguments({'test_dataloader.dataset.data_root': '/nowhere'})
    done = tool('tools/test.py', trained[0], trained[1], '--cfg-options', *options)
    assert done.returncode != 0
    assert "does not exist: set data_root" in done.stderr
