"""Training, sampling and measuring diffusion models: the real tools on scikit-learn's digits and on folders made here."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bnn_plugins import pack_
from bnn_plugins.deploy import PackedLayer

pytest.importorskip('diffusers')
pytest.importorskip('accelerate')

from diffusers import DDIMPipeline, DDPMScheduler

from bnn_plugins.apps.diffusion import metrics, sample
from bnn_plugins.apps.diffusion.data import Images, build_dataset, to_uint8
from bnn_plugins.apps.diffusion.flags import parse_args
from bnn_plugins.apps.diffusion.train import Trainer, main
from bnn_plugins.integrations.diffusers.class_pipeline import ClassConditionalPipeline
from bnn_plugins.integrations.diffusers.loading import load_pipeline
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs/diffusion').glob('*.py'))
FAST = ['--logger', 'none', '--ddpm_num_inference_steps', '2', '--eval_batch_size', '2', '--train_batch_size', '8']


def train(folder, *flags, config='ddpm_reactnet_digits'):
    return main([str(ROOT / f'configs/diffusion/{config}.py'), '--output_dir', str(folder), *FAST, *map(str, flags)])


def weights(folder, part='unet'):
    from safetensors.torch import load_file
    return load_file(Path(folder) / part / 'diffusion_pytorch_model.safetensors')


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# --- runs ----------------------------------------------------------------------------------------------------

def test_layout_and_resume(tmp_path):
    """Killed at step 4 of 6 and resumed: the weights, the average and the pipeline of a run that was not."""
    train(tmp_path / 'whole', '--max_train_steps', 6, '--checkpointing_steps', 2, '--checkpoints_total_limit', 2)
    assert {p.name for p in (tmp_path / 'whole').iterdir()} == {
        'checkpoint-4', 'checkpoint-6', 'model_index.json', 'samples', 'scheduler', 'unet'}
    checkpoint = {p.name for p in (tmp_path / 'whole/checkpoint-6').iterdir()}
    assert {'unet', 'unet_ema', 'optimizer.bin', 'scheduler.bin', 'random_states_0.pkl'} <= checkpoint
    part = tmp_path / 'part'
    args = parse_args([str(ROOT / 'configs/diffusion/ddpm_reactnet_digits.py'), '--output_dir', str(part), *FAST,
                       '--max_train_steps', '6', '--checkpointing_steps', '4'])
    trainer = Trainer(args)
    trainer.save_checkpoint, stop = stop_after(trainer.save_checkpoint), KeyboardInterrupt
    with pytest.raises(stop):
        trainer.run()
    train(part, '--max_train_steps', 6, '--checkpointing_steps', 2, '--resume_from_checkpoint', 'latest')
    for name in ('unet', 'unet_ema'):
        assert_equal(weights(part / 'checkpoint-6', name), weights(tmp_path / 'whole/checkpoint-6', name))
    assert_equal(weights(part), weights(tmp_path / 'whole'))
    (part / 'model_index.json').unlink()  # killed after the last checkpoint: the pipeline is still to be written
    train(part, '--max_train_steps', 6, '--resume_from_checkpoint', 'latest')
    assert (part / 'model_index.json').is_file()
    assert_equal(weights(part), weights(tmp_path / 'whole'))


def stop_after(save):
    def stop():
        save()
        raise KeyboardInterrupt
    return stop


def test_two_processes_have_equal_weights(tmp_path):
    script = ('import sys, torch, bnn_plugins\n'
              'from bnn_plugins.apps.diffusion.flags import parse_args\n'
              'from bnn_plugins.apps.diffusion.train import Trainer\n'
              'trainer = Trainer(parse_args(sys.argv[1:]))\n'
              'assert trainer.accelerator.num_processes == 2\n'
              'trainer.run()\n'
              'rank = trainer.accelerator.process_index\n'
              f'torch.save(trainer.bare_unet.state_dict(), {str(tmp_path)!r} + f"/rank{{rank}}")\n')
    (tmp_path / 'script.py').write_text(script)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone',
               str(tmp_path / 'script.py'), str(ROOT / 'configs/diffusion/ddpm_reactnet_digits.py'), '--output_dir',
               str(tmp_path / 'out'), *FAST, '--max_train_steps', '3']
    subprocess.run(command, check=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert_equal(torch.load(tmp_path / 'rank0'), torch.load(tmp_path / 'rank1'))


@pytest.mark.parametrize('config', [pytest.param(path, marks=pytest.mark.nightly) if 'cifar10' in path.stem else path
                                    for path in CONFIGS], ids=lambda path: path.stem)
def test_every_config_trains(config, tmp_path, monkeypatch):
    """Two steps each; the data are small ones of the real layout, whole pictures become crops of 16 pixels."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for size in (32, 128):
        (tmp_path / f'data/emoji/png/{size}').mkdir(parents=True)
        for index in range(20):
            picture = rng.integers(0, 255, (size, size, 4), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / f'data/emoji/png/{size}/{index}.png')
    if 'cifar10' in config.stem:
        write_parquet(tmp_path / 'data/cifar10/train.parquet', rng)
    crop = ['--crop', '16'] if config.stem.startswith('sr') else []
    teacher = []
    if 'teacher' in config.read_text():
        twin = 'cifar10' if 'cifar10' in config.stem else 'digits'
        train(tmp_path / 'teacher', '--max_train_steps', 1, config=f'ddpm_float_{twin}')
        teacher = ['--teacher_model', tmp_path / 'teacher']
    out = train(tmp_path / 'out', '--max_train_steps', 2, *crop, *teacher, '--log_every', 1, config=config.stem)
    assert (out / 'model_index.json').is_file()
    assert list((out / 'samples').glob('*.png'))


def write_parquet(path: Path, rng) -> None:
    """Eight pictures in the schema of the CIFAR-10 of the Hugging Face hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    rows = []
    for _ in range(8):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, 'PNG')
        rows.append(dict(bytes=file.getvalue()))
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(dict(img=rows, label=list(range(8)))), path)


def test_classes(tmp_path, capsys):
    """Mutations: the labels are not handed to the UNet, all pictures are of the first class."""
    out = train(tmp_path / 'out', '--max_train_steps', 2, config='ddpm_reactnet-classes_digits')
    pipe = load_pipeline(out)
    assert type(pipe) is ClassConditionalPipeline
    draws = [pipe(torch.tensor([label]), 2, torch.Generator().manual_seed(0), output_type='pt').images for label in (3, 7)]
    assert not torch.equal(*draws)
    both = sample.generate(pipe, 2, 2, output_type='np', conditions=torch.tensor([3, 7]))
    in_turn = sample.generate(pipe, 12, 2, batch_size=12, output_type='np')
    again = sample.generate(pipe, 12, 2, batch_size=12, output_type='np', conditions=torch.tensor([*range(10), 0, 1]))
    assert len(both) == 2
    assert all(np.array_equal(a, b) for a, b in zip(in_turn, again, strict=True))
    pack_(pipe.unet)
    packed = pipe(torch.tensor([7]), 2, torch.Generator().manual_seed(0), output_type='pt').images
    assert torch.equal(packed, draws[1])
    sample.main([str(out), '--out', str(tmp_path / 'seven.png'), '--num', '3', '--steps', '2', '--classes', '7'])
    assert '3 pictures by the latent UNet' in capsys.readouterr().out
    with pytest.raises(ValueError, match='the classes 0 to 9, but got 10 to 10'):
        sample.main([str(out), '--out', str(tmp_path / 'ten.png'), '--num', '1', '--steps', '2', '--classes', '10'])


@pytest.mark.parametrize(('lines', 'sentence'), [
    ("pipeline = dict(type='DDPMPipeline')", "needs pipeline=.*ClassConditionalPipeline.*, but got 'DDPMPipeline'"),
    ('model = dict(num_class_embeds=5)', 'the classes 0 to 4, but got 0 to 9')])
def test_classes_that_do_not_fit(lines, sentence, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(ROOT / "configs/diffusion/ddpm_reactnet-classes_digits.py")!r}\n{lines}\n')
    with pytest.raises(ValueError, match=sentence):
        main([str(config), '--output_dir', str(tmp_path / 'out'), *FAST])


def test_twin_is_trained_first(tmp_path):
    twin = tmp_path / 'twin.py'
    twin.write_text(f'_base_ = {str(ROOT / "configs/diffusion/ddpm_float_digits.py")!r}\n'
                    'train = dict(max_train_steps=1, ddpm_num_inference_steps=2, eval_batch_size=2, train_batch_size=8)\n')
    flags = ['--teacher_model', tmp_path / 'twin', '--teacher_config', twin, '--max_train_steps', 1]
    train(tmp_path / 'student', *flags, config='ddpm_bidm_digits')
    assert (tmp_path / 'twin/model_index.json').is_file()
    assert (tmp_path / 'student/model_index.json').is_file()


@pytest.mark.parametrize(('flags', 'error', 'message'), [
    (['--train_data_dir', '/nowhere'], FileNotFoundError, 'there is no folder /nowhere'),
    (['--teacher_model', '/nowhere'], FileNotFoundError, 'there is no teacher in /nowhere'),
    (['--spd_weight', '0.1'], ValueError, 'spd_weight needs --teacher_model'),
    (['--resume_from_checkpoint', 'checkpoint-7'], FileNotFoundError, 'there is no checkpoint .*checkpoint-7: there are none'),
    (['--model_config_name_or_path', '/nowhere'], FileNotFoundError, 'there is no config at'),
    (['--learning_rate', '1e30', '--log_every', '1', '--max_grad_norm', '1e30', '--lr_warmup_steps', '0'], FloatingPointError,
     'the loss is nan at step'),
])
def test_bad_input(tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        train(tmp_path, '--max_train_steps', 8, *flags)


def test_a_finished_run_is_not_overwritten(tmp_path):
    train(tmp_path, '--max_train_steps', 1)
    with pytest.raises(FileExistsError, match='--overwrite_output_dir'):
        train(tmp_path, '--max_train_steps', 1)
    train(tmp_path, '--max_train_steps', 1, '--overwrite_output_dir')


@pytest.mark.parametrize(('text', 'message'), [
    ('train = dict(num_epoch=1)', "'num_epoch'.*'num_epochs'"), ('modell = dict()', "'modell'.*'model'"),
    ("model = dict(type='UNet2DModels')", "'UNet2DModel'"), ("dataset = dict(type='digit')", "'digits'"),
    ("dataset = dict(type='imagefolder', pat='x')", "'path'"),
    ("model = dict(type='UNet2DModel', in_channels=3)", 'takes 3 channels, the pictures give 1'),
])
def test_bad_config(tmp_path, text, message):
    config = tmp_path / 'config.py'
    config.write_text("dataset = dict(type='digits')\n" + text)
    with pytest.raises((ValueError, TypeError), match=message):
        main([str(config), '--output_dir', str(tmp_path / 'out'), '--resolution', '8', *FAST])
    with pytest.raises(FileNotFoundError, match='does not exist: give a path, or a name like'):
        parse_args([str(tmp_path / 'nothing.py')])


def test_a_config_of_the_package_by_name():
    """Mutation: without names, who has a wheel and no clone has no config to start from."""
    assert parse_args(['bnn_plugins::diffusion/ddpm_reactnet_digits.py']).model['type'] == 'BinaryUNet2DModel'


def test_samples_by_a_name_of_the_zoo(tmp_path, capsys):
    sample.main(['ddpm_reactnet_digits', '--out', str(tmp_path / 'a.png'), '--num', '2', '--steps', '2'])
    assert '2 pictures by the packed UNet on the backend' in capsys.readouterr().out


# --- sampling and packing ------------------------------------------------------------------------------------

def test_sample_tool(tmp_path, capsys):
    train(tmp_path / 'run', '--max_train_steps', 2)
    latent = sample.main([str(tmp_path / 'run'), '--out', str(tmp_path / 'a.png'), '--num', '5', '--steps', '3'])
    assert 'by the latent UNet' in capsys.readouterr().out
    packed = sample.main([str(tmp_path / 'run'), '--out', str(tmp_path / 'b.png'), '--num', '5', '--steps', '3',
                          '--save-packed', str(tmp_path / 'packed')])
    assert 'by the packed UNet on the backend' in capsys.readouterr().out
    again = sample.main([str(tmp_path / 'packed'), '--out', str(tmp_path / 'c.png'), '--num', '5', '--steps', '3'])
    pictures = [np.asarray(Image.open(path)) for path in (latent, packed, again)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[1] == pictures[2]).all()
    with pytest.raises(FileNotFoundError, match=r'no model_index\.json'):
        sample.main([str(tmp_path)])


def test_pictures_do_not_depend_on_those_that_are_drawn_with_them():
    """Each batch has its own seed: more pictures begin with the same ones, and none comes twice."""
    calls = []

    def pipe(conditions=None, batch_size=None, generator=None, num_inference_steps=None, output_type=None):
        calls.append((num_inference_steps, output_type))
        noise = torch.randn(len(conditions) if batch_size is None else batch_size, generator=generator)
        return SimpleNamespace(images=(noise if conditions is None else noise + conditions).tolist())

    pipe.set_progress_bar_config = lambda **bar: None
    seven = sample.generate(pipe, 7, 5, seed=3, batch_size=2)
    assert len(set(seven)) == 7
    assert sample.generate(pipe, 4, 5, seed=3, batch_size=2) == seven[:4]
    assert sample.generate(pipe, 4, 5, seed=4, batch_size=2) != seven[:4]
    assert sample.generate(pipe, 7, 5, seed=3, batch_size=2, conditions=torch.zeros(7)) == seven
    assert set(calls) == {(5, 'pil')}


def test_packed_bytes_of_binary_layers(tmp_path):
    """At most a twentieth of the float bytes for the binarized layers."""
    unet = BinaryUNet2DModel(sample_size=8, block_out_channels=(64, 128), layers_per_block=1, norm_num_groups=8,
                             down_block_types=('BinaryDownBlock2D',) * 2, up_block_types=('BinaryUpBlock2D',) * 2)
    from bnn_plugins import pack_
    from bnn_plugins.layers import BinaryLayer
    floats = sum(4 * m.weight.numel() for m in unet.modules() if isinstance(m, BinaryLayer))
    pack_(unet)
    bits = sum(m.weight_bits.numel() * 4 + sum(t.numel() * 4 for t in (m.weight_scale,) if t is not None)
               for m in unet.modules() if isinstance(m, PackedLayer))
    assert bits * 20 <= floats


# --- data, losses, metrics -----------------------------------------------------------------------------------

def test_images_split_is_stable_and_exact():
    data = build_dataset(dict(type='digits'), 8)
    train_set, held = data.split(0.2)
    assert (len(train_set), len(held)) == (1438, 359)
    assert torch.equal(data.split(0.2)[1].images, held.images)
    rows = {tuple(row.flatten().tolist()) for row in held.images} & {tuple(row.flatten().tolist()) for row in train_set.images}
    assert len(rows) < 3  # the set has a few equal pictures
    assert torch.equal(to_uint8(data[0]['input']), data.images[0])


def test_transparent_pictures_become_white_and_middles_are_cut(tmp_path):
    picture = np.zeros((4, 8, 4), np.uint8)
    picture[:, 2:6] = (255, 0, 0, 255)
    Image.fromarray(picture).save(tmp_path / 'a.png')
    whole = build_dataset(dict(type='imagefolder', path=str(tmp_path)), 4, center_crop=True).images[0]
    assert (whole[0] == 255).all()
    assert (whole[1:] == 0).all()
    edge = build_dataset(dict(type='imagefolder', path=str(tmp_path)), 8).images[0]
    assert (edge[:, :, 0] == 255).all()


def test_metrics_tell_real_from_noise():
    torch.manual_seed(0)
    train_set, held = build_dataset(dict(type='digits'), 8).split(0.2)
    net = metrics.train_feature_net(train_set, steps=200)
    assert torch.equal(net(held.images), metrics.train_feature_net(train_set, steps=200)(held.images))
    assert float((net(held.images).argmax(1) == held.labels).float().mean()) > 0.9
    count = 120
    noise = torch.randint(0, 255, (count, 1, 8, 8)).to(torch.uint8)
    floor = metrics.distances(net, held.images[:count], held.images[count:2 * count])
    far = metrics.distances(net, held.images[:count], noise)
    assert far['fd_clf'] > 5 * floor['fd_clf']
    assert far['kid_clf'] > 5 * abs(floor['kid_clf'])
    assert far['c2st'] > 0.95
    assert floor['c2st'] < 0.65
    assert metrics.recognised(net, held.images) > metrics.recognised(net, noise)
    with pytest.raises(ValueError, match='120 real and 100 generated'):
        metrics.distances(net, held.images[:count], noise[:100])


def test_inception_distance_needs_weights(tmp_path):
    pictures = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(FileNotFoundError, match='there are no Inception weights at'):
        metrics.inception_distance(str(tmp_path / 'nothing.pth'), pictures, pictures)
    (tmp_path / 'weights.pth').write_bytes(b'')
    if not find_spec('torch_fidelity'):
        with pytest.raises(ModuleNotFoundError, match='pip install torch-fidelity'):
            metrics.inception_distance(str(tmp_path / 'weights.pth'), pictures, pictures)


def test_inception_distance(tmp_path, monkeypatch):
    """With weights drawn here: the network, the file and grey pictures fit; equal sets are at distance 0."""
    inception = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'load', lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, 'load_state_dict', lambda *args, **kwargs: None)
        net = inception.FeatureExtractorInceptionV3('x', ['2048'], feature_extractor_weights_path=__file__)
    torch.save(net.state_dict(), tmp_path / 'weights.pth')
    real, _ = build_dataset(dict(type='digits'), 8).split(0.99)
    noise = torch.randint(0, 255, (6, 1, 8, 8)).to(torch.uint8)
    same, far = (metrics.inception_distance(str(tmp_path / 'weights.pth'), real.images[:6], images)
                 for images in (real.images[:6], noise))
    assert abs(same) < 1e-3 * far


@pytest.mark.parametrize('prediction_type', ['epsilon', 'sample', 'v_prediction'])
def test_noise_prediction_of_an_oracle(prediction_type):
    """A network that knows the picture makes no error; one that always says 0 makes the variance of its target."""
    data = Images(torch.full((64, 1, 4, 4), 255, dtype=torch.uint8))  # one picture: all ones
    scheduler = DDPMScheduler(prediction_type=prediction_type)

    class Oracle(torch.nn.Module):
        def forward(self, noisy, t):
            alpha = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            noise = (noisy - alpha.sqrt()) / (1 - alpha).sqrt()
            out = {'epsilon': noise, 'sample': torch.ones_like(noisy),
                   'v_prediction': alpha.sqrt() * noise - (1 - alpha).sqrt()}[prediction_type]
            return type('Out', (), dict(sample=out))

    result = metrics.noise_prediction(Oracle(), scheduler, data)
    assert result['mse'] == pytest.approx(0, abs=1e-6)
    assert result['vlb'] == pytest.approx(0, abs=1e-3)
    assert len([key for key in result if key.startswith('mse_')]) == 10


def test_restoration():
    target = torch.rand(2, 3, 16, 16)
    noisy = (target + 0.1).clamp(0, 1)
    result = metrics.restoration(noisy, target)
    expected = np.mean([10 * np.log10(1 / float((a - b).square().mean())) for a, b in zip(noisy, target, strict=True)])
    assert result['psnr'] == pytest.approx(expected, rel=1e-5)
    assert metrics.restoration(target, target)['ssim'] == pytest.approx(1)


def test_pipeline_file_names_the_class(tmp_path):
    train(tmp_path, '--max_train_steps', 1)
    index = json.loads((tmp_path / 'model_index.json').read_text())
    assert index['unet'] == ['bnn_plugins.integrations.diffusers.unet_2d', 'BinaryUNet2DModel']
    assert isinstance(DDIMPipeline.from_pretrained(tmp_path).unet, BinaryUNet2DModel)


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path):
    """A photograph that its EXIF turns, and 16 bits of grey, which Pillow alone would clip to white."""
    turned = np.zeros((4, 4, 3), np.uint8)
    turned[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the sensor is the last column of the picture
    Image.fromarray(turned).save(tmp_path / 'turned.png', exif=exif)
    shown = build_dataset(dict(type='imagefolder', path=str(tmp_path)), 4).images[0, 0]
    assert torch.equal(shown, torch.from_numpy(turned[..., 0]).rot90(-1))

    (tmp_path / 'grey').mkdir()
    deep = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(deep).save(tmp_path / 'grey/a.png')
    grey = build_dataset(dict(type='imagefolder', path=str(tmp_path / 'grey'), channels=1), 4).images[0, 0]
    assert torch.equal(grey, torch.from_numpy((deep // 257).astype(np.uint8)))


@pytest.mark.parametrize('flags', [['--num', '0'], ['--steps', '0'], ['--num', '-3']], ids=' '.join)
def test_no_pictures_and_no_steps(flags):
    with pytest.raises(ValueError, match=f'{flags[0]} must be at least 1, but got {flags[1]}'):
        sample.main(['anywhere', *flags])
