"""What a training step of a diffusion model minimises, and which parameters decay: against formulas written out here."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('diffusers')
pytest.importorskip('accelerate')

from diffusers import DDPMScheduler

from bnn_plugins.apps.diffusion import metrics
from bnn_plugins.apps.diffusion.data import Images
from bnn_plugins.apps.diffusion.flags import parse_args
from bnn_plugins.apps.diffusion.train import Trainer
from bnn_plugins.integrations.diffusers import distill
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU

MODEL = dict(type='BinaryUNet2DModel', sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
             block_out_channels=(8, 16), norm_num_groups=4, down_block_types=('BinaryDownBlock2D', 'BinaryAttnDownBlock2D'),
             up_block_types=('BinaryAttnUpBlock2D', 'BinaryUpBlock2D'))


def trainer_(folder, *flags, **model):
    (folder / 'config.py').write_text(f"dataset = dict(type='digits')\nmodel = {MODEL | model!r}\n")
    return Trainer(parse_args([str(folder / 'config.py'), '--output_dir', str(folder / 'run'), '--resolution', '8',
                               '--logger', 'none', *map(str, flags)]))


class Recorder(nn.Module):
    """In the place of a UNet: remembers what it was called with, and whether gradients were recorded. Predicts 0.25."""

    def __init__(self):
        super().__init__()
        self.calls, self.config = [], {}

    def forward(self, noisy, t):
        self.calls.append((noisy, t, torch.is_grad_enabled()))
        return SimpleNamespace(sample=torch.full_like(noisy[:, :1], 0.25))


def noise_in(noisy, clean, t, scheduler):
    alpha = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()


@pytest.mark.parametrize('prediction_type', ['epsilon', 'sample', 'v_prediction'])
def test_targets(tmp_path, prediction_type):
    trainer = trainer_(tmp_path, '--prediction_type', prediction_type)
    trainer.unet, clean = Recorder(), torch.rand(64, 1, 8, 8) * 2 - 1
    loss = trainer.loss({'input': clean})
    (noisy, t, _), = trainer.unet.calls
    noise, alpha = noise_in(noisy, clean, t, trainer.noise_scheduler), trainer.noise_scheduler.alphas_cumprod[t]
    assert 0.8 < noise.std() < 1.2, 'noise of variance 1 was mixed in'
    assert 0 <= t.min() < 150, 'all timesteps occur'
    assert 850 < t.max() < 1000
    alpha = alpha.view(-1, 1, 1, 1)
    target = {'epsilon': noise, 'sample': clean, 'v_prediction': alpha.sqrt() * noise - (1 - alpha).sqrt() * clean}
    torch.testing.assert_close(loss, (0.25 - target[prediction_type]).square().mean(), rtol=1e-3, atol=0)


def test_a_cross_timestep_connection_is_trained_behind_the_step_before(tmp_path):
    """First the noisier neighbour t + 1 of the same picture with the same noise, without gradients; the last has none."""
    trainer = trainer_(tmp_path, cross_timestep=dict(initial=0.0))
    unet, steps = Recorder(), []

    @contextmanager
    def training_step():
        steps.append(len(unet.calls))
        yield
        steps.append(len(unet.calls))
    unet.cross_timestep_connection = SimpleNamespace(training_step=training_step)
    trainer.unet, clean = unet, torch.rand(512, 1, 8, 8)
    trainer.accelerator.unwrap_model = lambda model: model
    trainer.noise_scheduler = DDPMScheduler(num_train_timesteps=10)
    trainer.loss({'input': clean})
    (before, t_before, recorded), (noisy, t, also) = unet.calls
    assert torch.equal(t_before, torch.where(t < 9, t + 1, t))
    assert set(t.tolist()) == set(range(10))
    assert (recorded, also) == (False, True)
    scheduler = trainer.noise_scheduler
    torch.testing.assert_close(noise_in(before, clean, t_before, scheduler), noise_in(noisy, clean, t, scheduler),
                               rtol=0, atol=1e-3)
    assert steps == [0, 2], 'no memory comes from, or stays for, another batch'


def test_pairs_are_flipped_and_cut_together(tmp_path):
    """The condition tells what the picture is: both have the same flip and the same window; the residual is learned."""
    trainer = trainer_(tmp_path, '--random_flip', '--crop', 4, '--residual', '--prediction_type', 'sample')
    clean = torch.arange(64.).view(1, 1, 8, 8).repeat(32, 1, 1, 1) / 64
    trainer.unet = Recorder()
    condition = clean - 0.5
    windows = set()
    for trainer.batches in range(8):
        trainer.unet.calls.clear()
        loss = trainer.loss({'input': clean, 'condition': condition})
        (noisy, _, _), = trainer.unet.calls
        assert noisy.shape == (32, 2, 4, 4)
        assert loss == 0.0625, 'the residual is 0.5 where both were moved alike, and 0.25 is predicted'
        windows |= {tuple((64 * (given + 0.5)).flatten().tolist()) for given in noisy[:, 1]}
    rows = torch.arange(64.).view(8, 8)
    expected = {tuple(picture[top:top + 4, left:left + 4].flatten().tolist())
                for picture in (rows, rows.flip(1)) for top in range(5) for left in range(5)}
    assert windows <= expected
    assert len(windows) > 6
    assert any(window[0] > window[1] for window in windows), 'some are mirrored'
    assert any(window[0] < window[1] for window in windows), 'some are not'


def test_terms_of_the_distillation(tmp_path):
    trainer = trainer_(tmp_path)
    args, prediction, expected = trainer.args, torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    student, teacher = ([torch.randn(4, 6, 8, 8)] for _ in range(2))
    trainer.teacher = Recorder()
    trainer.teacher.forward = lambda inputs, t: SimpleNamespace(sample=expected)
    trainer.student_features, trainer.teacher_features = (SimpleNamespace(features=f) for f in (student, teacher))
    terms = dict(teacher_weight=(prediction - expected).square().mean(),
                 spd_weight=distill.space_patched_loss(student, teacher),
                 lrm_weight=distill.LowRankMimicking()(student, teacher))
    trainer.mimicking = distill.LowRankMimicking()
    for weights in ((0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 5), (2, 3, 5)):
        vars(args).update(zip(terms, weights, strict=True))
        want = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        loss = trainer.distillation(None, None, prediction, {})
        torch.testing.assert_close(loss, torch.as_tensor(want, dtype=torch.float32))


def test_latents_thresholds_and_norms_do_not_decay(tmp_path):
    trainer = trainer_(tmp_path, '--adam_weight_decay', 0.1, time_buckets=5)
    unet = trainer.bare_unet
    decay = {id(p): group['weight_decay'] for group in trainer.optimizer.param_groups for p in group['params']}
    assert set(decay) == {id(p) for p in unet.parameters()}, 'each parameter is in one group'
    assert sum(len(group['params']) for group in trainer.optimizer.param_groups) == len(decay)
    latents = [m.weight for m in unet.modules() if isinstance(m, BinaryConv2d | BinaryLinear)]
    others = [p for m in unet.modules() if isinstance(m, nn.GroupNorm | RPReLU) for p in m.parameters()]
    biases = [p for name, p in unet.named_parameters() if name.endswith('bias')]
    others += [p for p in unet.parameters() if p.ndim == 2 and len(p) == 5]  # thresholds and shifts of timestep buckets
    assert len(latents) > 20
    assert {decay[id(p)] for p in latents + others + biases} == {0.0}
    assert {decay[id(m.weight)] for m in (unet.conv_in, unet.conv_out, unet.time_embedding.time_embedding.linear_1)} == {0.1}


def test_the_weight_of_the_variational_bound():
    r"""An error of 1 is :math:`\beta_t^2 / (2 \sigma_t^2 \alpha_t (1 - \bar\alpha_t))` at each t (Ho et al. 2020, eq. 8)."""
    scheduler = DDPMScheduler(num_train_timesteps=20, beta_start=0.01, beta_end=0.2)

    class OneOff(nn.Module):
        config = {}

        def forward(self, noisy, t):
            return SimpleNamespace(sample=noise_in(noisy, 1.0, t, scheduler) + 1)

    data = Images(torch.full((4, 1, 4, 4), 255, dtype=torch.uint8))  # one picture: all ones
    result = metrics.noise_prediction(OneOff(), scheduler, data, buckets=20)
    beta = scheduler.betas.double()
    alpha_bar = (1 - beta).cumprod(0)
    weights = []
    for t in range(2, 20):
        variance = beta[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])  # of the posterior, eq. 7
        weights.append(beta[t]**2 / (2 * variance * (1 - beta[t]) * (1 - alpha_bar[t])))
    assert result['mse'] == pytest.approx(1, rel=1e-4)
    assert result['vlb'] == pytest.approx(float(sum(weights)) / torch.tensor(2.).log().item(), rel=1e-3)
    assert [result[f'mse_{i}'] for i in range(20)] == pytest.approx([1] * 20, rel=1e-3)
    coarse = metrics.noise_prediction(OneOff(), scheduler, data, buckets=1)
    assert set(coarse) == {'mse', 'vlb', 'mse_0'}


@pytest.mark.parametrize('method', ['binarynet', 'bireal'])
def test_after_a_step_latents_are_clipped_and_the_average_follows(tmp_path, method):
    """Only the latents of methods that ask for it; ``--no-latent_clip`` leaves them."""
    for flags, clipped in ((), method == 'binarynet'), (('--no-latent_clip',), False):
        trainer = trainer_(tmp_path, '--use_ema', '--max_train_steps', 9, *flags, method=method)
        trainer.optimizer.step()
        latents = [m.weight for m in trainer.bare_unet.modules() if isinstance(m, BinaryConv2d | BinaryLinear)]
        with torch.no_grad():
            latents[0].fill_(3)
        trainer.after_step(torch.zeros(()), SimpleNamespace(update=lambda count: None))
        assert bool((latents[0] == 1).all()) == clipped
        assert trainer.step == trainer.ema.optimization_step == 1


def test_averaged_weights_are_those_of_the_average_for_as_long_as_they_are_wanted(tmp_path):
    trainer = trainer_(tmp_path, '--use_ema')
    unet = trainer.bare_unet.train()
    before = [p.clone() for p in unet.parameters()]
    trainer.ema.shadow_params = [p.detach() + 1 for p in before]
    with trainer.averaged_weights() as averaged:
        assert averaged is unet
        assert not unet.training
        assert all(torch.equal(p, q + 1) for p, q in zip(unet.parameters(), before, strict=True))
    assert unet.training
    assert all(torch.equal(p, q) for p, q in zip(unet.parameters(), before, strict=True))


@pytest.mark.parametrize(('flags', 'parts', 'position'), [
    (('--num_epochs', 4), 1, 101 + 6), (('--num_epochs', 4), 4, 26 + 1), (('--max_train_steps', 50), 1, 7)])
def test_a_checkpoint_of_another_batch_is_the_same_share_of_the_training(tmp_path, flags, parts, position):
    """100 images into the second epoch, in step 7 of many processes: epochs are what counts, or steps where they were asked
    for. A part of an accumulated gradient is not taken again."""
    trainer = trainer_(tmp_path, '--train_batch_size', 16, '--gradient_accumulation_steps', parts, *flags)
    assert trainer.steps_per_epoch == -(-101 // parts)
    trainer.load_state_dict(dict(step=7, epoch=1, images=100, directions=None))
    assert (trainer.step, trainer.epoch, trainer.batches) == (7, 1, 6 // parts * parts)
    assert trainer.position == position
