"""Hooks in a real ``Runner``: schedules, latent clipping, exact resume."""

import itertools
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from bnn_plugins.binarize import list_methods, set_parts
from bnn_plugins.engine import BinaryTrainingHook, EpochSeedHook, ResumeHook
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

COUNTER = itertools.count()  # mmengine wants a new name for each run


class Noise(Dataset):
    """Each item draws from all three generators, as augmentation does."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.cat([torch.randn(2, 6, 6), torch.full((1, 6, 6), random.random() - 0.5),
                          torch.full((1, 6, 6), float(np.random.rand()) - 0.5)])


class Model(BaseModel):
    def __init__(self, method='bireal'):
        super().__init__()
        self.conv = BinaryConv2d(4, 4, 3, method=method)
        self.bn = nn.BatchNorm2d(4)
        self.fc = BinaryLinear(4, 3, method=method)
        self.real = nn.Linear(3, 2)
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs
        self.seen.append(x.clone())
        out = self.real(self.fc(self.bn(self.conv(x)).mean((2, 3))))
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else out

    def train_step(self, data, optim_wrapper):
        losses = self.forward(data, mode='loss')
        optim_wrapper.update_params(losses['loss'])
        return losses


class Recorder(Hook):
    """What the model looks like in each forward (``before``) and after each step (``after``)."""

    priority = 'VERY_LOW'

    def __init__(self, read):
        self.read, self.before, self.after = read, [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before.append(self.read(runner.model))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after.append(self.read(runner.model))


def runner(work_dir, model, hooks, *, epochs=2, num_workers=0, lr=0.1, train_cfg=None, resume=False, seed=7,
           checkpoint=None):
    name = f'{work_dir.name}_{next(COUNTER)}'
    return Runner(
        model, str(work_dir),
        train_dataloader=dict(dataset=Noise(), batch_size=2, num_workers=num_workers, collate_fn=dict(type='pseudo_collate'),
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr, momentum=0.9)),
        default_hooks=dict(logger=None, checkpoint=checkpoint or dict(type='CheckpointHook', interval=1)),
        custom_hooks=hooks,
        experiment_name=name, randomness=dict(seed=seed), log_level='ERROR', resume=resume,
        visualizer=dict(type='Visualizer', vis_backends=[], name=name))


class TestBinaryTrainingHook:
    def test_progress_is_the_share_of_iterations(self, tmp_path):
        model = Model(method='irnet')
        recorder = Recorder(lambda m: tuple(part.estimator.t for layer in (m.conv, m.fc)
                                            for part in (layer.activation, layer.weight_binarizer)))
        runner(tmp_path, model, [BinaryTrainingHook(), recorder]).train()
        expected = [0.1 * 100 ** (i / 8) for i in range(8)]
        assert len(recorder.before) == 8
        for seen, t in zip(recorder.before, expected, strict=True):
            assert seen == pytest.approx((t,) * 4)

    def test_progress_by_iteration(self, tmp_path):
        model = Model(method='recu')
        recorder = Recorder(lambda m: m.fc.weight_binarizer.tau)
        runner(tmp_path, model, [BinaryTrainingHook(), recorder], train_cfg=dict(by_epoch=False, max_iters=5)).train()
        expected = [0.85 + 0.14 * np.expm1(i / 5) / np.expm1(1) for i in range(5)]
        assert recorder.before == pytest.approx(expected)

    @pytest.mark.parametrize('method', list_methods())
    def test_clips_the_latents_of_methods_that_ask(self, tmp_path, method):
        model = Model(method=method)
        recorder = Recorder(lambda m: max(m.conv.weight.abs().max().item(), m.fc.weight.abs().max().item()))
        with torch.no_grad():
            model.conv.weight.mul_(5)
            model.fc.weight.mul_(5)
            model.real.weight.mul_(20)
        real = model.real.weight.abs().max().item()
        runner(tmp_path, model, [BinaryTrainingHook(), recorder], epochs=1, lr=0.001).train()
        clip = model.conv.latent_clip
        assert all((value <= (clip or 1)) == (clip is not None) for value in recorder.after)
        assert model.real.weight.abs().max() > 0.9 * real > 1, 'real weights are free'

    def test_is_before_the_ema(self, tmp_path):
        """The average is taken over clipped latents."""
        model = Model(method='binarynet')
        with torch.no_grad():
            model.conv.weight.fill_(3.0)
        ema = EMAHook(momentum=0.999)
        run = runner(tmp_path, model, [ema, BinaryTrainingHook()], epochs=1, lr=0.0)
        run.train()
        assert model.conv.weight.abs().max() <= 1
        assert BinaryTrainingHook.priority == 'ABOVE_NORMAL'
        order = [type(hook).__name__ for hook in run.hooks]
        assert order.index('BinaryTrainingHook') < order.index('EMAHook') < order.index('CheckpointHook')

    def test_wrapped_model(self, tmp_path):
        from mmengine.registry import MODEL_WRAPPERS

        @MODEL_WRAPPERS.register_module(force=True)
        class Wrapper(nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

        class State:
            model, iter, max_iters = Wrapper(Model(method='irnet')), 5, 10

        BinaryTrainingHook().before_train_iter(State, 0)
        assert State.model.module.conv.activation.estimator.t == pytest.approx(1)


class TestEpochSeedHook:
    @pytest.mark.parametrize(('method', 'num_workers'), [
        (dict(type='binaryconnect', stochastic=True), 0), (dict(type='binaryconnect', stochastic=True), 2),
        (dict(type='dorefa', g_bits=4), 0), ('rbnn', 0), ('rebnn', 0)], ids=str)
    def test_resume_repeats_the_uninterrupted_run(self, tmp_path, method, num_workers):
        """Three epochs at once, and one epoch, then a fresh process state and a resume: the same data, the same weights."""
        whole = Model(method=method)
        initial = {name: value.clone() for name, value in whole.state_dict().items()}
        runner(tmp_path / 'whole', whole, [BinaryTrainingHook(), EpochSeedHook()], epochs=3, num_workers=num_workers).train()

        first = Model(method=method)
        first.load_state_dict(initial)
        run = runner(tmp_path / 'parts', first, [BinaryTrainingHook(), EpochSeedHook()], epochs=3, num_workers=num_workers)
        run.train_loop._max_epochs = 1
        run.train()
        second = Model(method=method)
        torch.manual_seed(999)
        runner(tmp_path / 'parts', second, [BinaryTrainingHook(), EpochSeedHook()], epochs=3, num_workers=num_workers,
               resume=True).train()

        assert len(whole.seen) == 12
        for a, b in zip(whole.seen, first.seen + second.seen, strict=True):
            assert torch.equal(a, b)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name

    @pytest.mark.parametrize('num_workers', [0, 2, 3])
    def test_resume_inside_an_epoch_repeats_the_uninterrupted_run(self, tmp_path, num_workers):
        """Saved behind each iteration of four, resumed from one that no number of workers divides; a model that draws, too.
        Mutations: seeds of the epoch alone; batches of a worker are not counted; the loader draws from the
        global generator."""
        def hooks():
            return [BinaryTrainingHook(), EpochSeedHook(), ResumeHook()]

        method = dict(type='binaryconnect', stochastic=True)
        whole, resumed = Model(method=method), Model(method=method)
        checkpoints = dict(type='CheckpointHook', by_epoch=False, interval=1)
        runner(tmp_path, whole, hooks(), epochs=2, num_workers=num_workers, checkpoint=checkpoints).train()
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_5.pth'))
        torch.manual_seed(999)
        runner(tmp_path, resumed, hooks(), epochs=2, num_workers=num_workers, checkpoint=checkpoints, resume=True).train()
        assert len(whole.seen) == 8
        for a, b in zip(whole.seen[5:], resumed.seen, strict=True):
            assert torch.equal(a, b)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name

    @pytest.mark.parametrize('num_workers', [0, 2])
    def test_epochs_and_seeds_differ(self, tmp_path, num_workers):
        seen = []
        for seed in (1, 50):  # mmengine adds the worker's number: neighbouring seeds share streams
            model = Model()
            runner(tmp_path / str(seed), model, [EpochSeedHook()], num_workers=num_workers, seed=seed).train()
            assert len(model.seen) == 8
            seen += [tuple(x.flatten().tolist()) for x in model.seen]
        assert len(set(seen)) == 16, 'no batch comes twice'
        for channel in (2, 3):  # Python's and numpy's generators
            values = {round(x, 6) for batch in seen for x in np.array(batch).reshape(2, 4, 36)[:, channel, 0]}
            assert len(values) == 32

    def test_global_generators(self):
        class State:
            seed, train_dataloader = 3, torch.utils.data.DataLoader([0])

        draws = []
        for State.iter in (4, 4, 5):
            EpochSeedHook().before_train_epoch(State)
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
        assert draws[0] == draws[1]
        assert all(a != b for a, b in zip(draws[1], draws[2], strict=True))

    @pytest.mark.parametrize('seed', [0, 2**31 - 1, 2**32 - 1])
    def test_large_seeds_leave_room_for_workers(self, seed):
        class State:
            train_dataloader = torch.utils.data.DataLoader(torch.zeros(4), num_workers=3)

        State.seed = seed
        for State.iter in (0, 3_000_000):
            EpochSeedHook().before_train_epoch(State)
            for worker in range(3):
                State.train_dataloader.worker_init_fn(worker)

    def test_persistent_workers_are_reported(self):
        warnings = []

        class State:
            seed, iter = 0, 0
            train_dataloader = torch.utils.data.DataLoader([0], num_workers=1, persistent_workers=True)

            class logger:
                warning = staticmethod(warnings.append)

        EpochSeedHook().before_train_epoch(State)
        assert 'persistent_workers=False' in warnings[0]


class TestEpochs:
    """RBNN fits its rotations before each epoch, or each ``epoch_length`` iterations; ReBNN counts flips after each step."""

    @staticmethod
    def rotations(m):
        return m.conv.weight_binarizer.left.clone()

    @pytest.mark.parametrize(('hook', 'train_cfg', 'at'), [
        (dict(), dict(by_epoch=True, max_epochs=2), {0, 4}),
        (dict(), dict(by_epoch=False, max_iters=6), {0}),
        (dict(epoch_length=3), dict(by_epoch=False, max_iters=7), {0, 3, 6})])
    def test_rotations(self, tmp_path, hook, train_cfg, at):
        model = Model(method='rbnn')
        seen = [self.rotations(model)]
        recorder = Recorder(self.rotations)
        runner(tmp_path, model, [BinaryTrainingHook(**hook), recorder], train_cfg=train_cfg).train()
        seen += recorder.before
        changed = {i for i in range(len(recorder.before)) if not torch.equal(seen[i], seen[i + 1])}
        assert changed == at

    def test_flips(self, tmp_path):
        model = Model(method='rebnn')
        recorder = Recorder(lambda m: (m.fc.weight_binarizer.flips.clone(), m.fc.weight.detach() >= 0))
        runner(tmp_path, model, [BinaryTrainingHook(), recorder], lr=2.0).train()
        pairs = itertools.pairwise(recorder.after)
        expected = [(new != old).float().mean(1) for (_, old), (_, new) in pairs]
        torch.testing.assert_close([flips for flips, _ in recorder.after[1:]], expected)
        assert sum(e.sum() for e in expected) > 0

    def test_accumulated_gradients_are_one_step(self, tmp_path):
        """Flips are counted between optimizer steps. Mutation: counted after each part, where none has flipped."""
        model = Model(method='rebnn')
        recorder = Recorder(lambda m: (m.fc.weight_binarizer.flips.clone(), m.fc.weight.detach() >= 0))
        run = runner(tmp_path, model, [BinaryTrainingHook(), recorder], lr=2.0)
        run.optim_wrapper['accumulative_counts'] = 2
        run.train()
        after = recorder.after[1::2]
        assert all(torch.equal(whole[0], recorder.after[i][0]) for i, whole in zip((2, 4, 6), after, strict=False))
        torch.testing.assert_close([flips for flips, _ in after[1:]], [
            (new != old).float().mean(1) for (_, old), (_, new) in itertools.pairwise(after)])
        assert model.fc.weight_binarizer.parts == 2

    def test_the_reconstruction_term_of_parts_is_that_of_the_whole(self):
        """Mutation: each part adds the whole term."""
        layer, x = BinaryLinear(6, 3, method='rebnn'), torch.randn(4, 6)
        layer.weight_binarizer.flips.fill_(0.5)
        gradients = []
        for parts in (1, 4):
            layer.zero_grad()
            set_parts(layer, parts)
            for _ in range(parts):
                (1e-4 / parts * layer(x).square().sum()).backward()
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(*gradients)
