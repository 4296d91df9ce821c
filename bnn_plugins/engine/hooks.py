"""mmengine hooks of binary training."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import set_random_seed
from torch import Tensor, distributed
from torch.utils.data import get_worker_info

from ..binarize import TrainingUpdates, set_parts
from ..layers.training import set_training_path, training_report
from ..registry import HOOKS


@HOOKS.register_module()
class BinaryTrainingHook(Hook):
    """Schedules of the binarizers before each iteration, latent clipping after it, rotations (RBNN) before each epoch.

    The progress is ``iter / max_iters``, a function of the iteration alone, so a resumed run continues exactly. Latents are
    clipped only in layers whose method asks for it.

    Args:
        epoch_length: number of iterations that count as an epoch; ``None``: the epochs of the loop (one for a loop that counts
            iterations).
        gradients: see :func:`bnn_plugins.set_training_path`; ``None`` leaves it as it is.
    """

    priority = 'ABOVE_NORMAL'  # before the EMA and checkpoint hooks see the weights

    def __init__(self, epoch_length: int | None = None, gradients: str | None = None):
        self.epoch_length, self.gradients, self.reported = epoch_length, gradients, False
        self._found: TrainingUpdates | None = None

    def _updates(self, runner) -> TrainingUpdates:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self._found is None or self._found.model is not model:
            self._found = TrainingUpdates(model)
        return self._found

    def before_train(self, runner) -> None:
        left = [key for key in runner.cfg if key == 'steps' or key.startswith('recipe_')]
        if left:
            raise ValueError(f'{", ".join(left)} of the config are for bnn train (tools/train.py, bnn_plugins.train); this '
                             'Runner would ignore them')
        if self.gradients is not None:
            set_training_path(gradients=self.gradients)
        self._found = None
        set_parts(self._updates(runner).model, runner.optim_wrapper._accumulative_counts)

    def before_train_epoch(self, runner) -> None:
        resumed_inside = runner.iter != runner.epoch * len(runner.train_dataloader)
        if self.epoch_length is None and not resumed_inside:
            self._updates(runner).start_epoch()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.epoch_length is not None and runner.iter % self.epoch_length == 0:
            self._updates(runner).start_epoch()
        self._updates(runner).set_progress(runner.iter / runner.max_iters)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.optim_wrapper.should_update():  # not after a part of an accumulated gradient
            self._updates(runner).after_step()
        if not self.reported:
            self.reported = True
            runner.logger.info(training_report(self._updates(runner).model))


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed all random numbers from ``(seed, iteration, rank)`` before each iteration, so that a resumed run repeats itself
    exactly, also inside an epoch, and no process draws the augmentation of another.

    Checkpoints hold no random states; without this, augmentation after a resume differs from the uninterrupted run. Workers
    are seeded alike for each of their batches, which needs ``persistent_workers=False``: living workers would go on counting.
    """

    def before_train_epoch(self, runner) -> None:
        loader = runner.train_dataloader
        if getattr(loader, 'persistent_workers', False):
            runner.logger.warning('persistent_workers=True: after a resume the augmentation differs from an uninterrupted '
                                  'run; set train_dataloader.persistent_workers=False for exact resume')
        seed = partial(seed_all, runner.seed, get_rank())
        loader.generator = torch.Generator()  # an iterator draws a number at its start, which an epoch that goes on has not
        if loader.num_workers > 0:
            batches = SeededBatches(loader.collate_fn, seed, runner.iter)
            loader.worker_init_fn, loader.collate_fn = batches.start, batches
        seed(runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        seed_all(runner.seed, get_rank(), runner.iter + 1)


class SeededBatches:
    """A ``collate_fn`` that seeds the worker that it runs in for the next batch: workers take batches in turn.

    Args:
        collate: what makes a batch.
        seed: called with the number of a batch.
        first: number of the first batch that is loaded.
    """

    def __init__(self, collate: Callable, seed: Callable[[int], None], first: int):
        self.collate = collate.collate if isinstance(collate, SeededBatches) else collate
        self.seed, self.next = seed, first

    def start(self, worker: int) -> None:
        self.next += worker
        self.seed(self.next)

    def __call__(self, samples):
        batch = self.collate(samples)
        self.next += get_worker_info().num_workers
        self.seed(self.next)
        return batch


def seed_all(seed: int, rank: int, iteration: int) -> None:
    """The generators of Python, numpy and torch; numpy takes 32 bits."""
    set_random_seed((seed + iteration * 1_000_003) % 2**31 + rank)


@HOOKS.register_module()
class SyncStatisticsHook(Hook):
    """The mean over all processes of the buffers that each one fills from its own images: running statistics of norms, prices.

    At the end of each epoch and before each validation, so that what is evaluated and saved does not depend on the process.
    Integers (counts, signs) are the same everywhere and left alone; mmengine's ``SyncBuffersHook`` would add up ReBNN's signs
    in 8 bits.
    """

    priority = 'ABOVE_NORMAL'  # before the checkpoint hook

    def after_train_epoch(self, runner) -> None:
        self._average(runner.model.buffers())

    def before_val_epoch(self, runner) -> None:
        self._average(runner.model.buffers())

    @torch.no_grad()
    def _average(self, buffers: Iterable[Tensor]) -> None:
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return
        buffers = [b for b in buffers if b.is_floating_point()]
        if not buffers:
            return
        flat = torch.cat([b.flatten().double() for b in buffers])
        distributed.all_reduce(flat)
        parts = (flat / distributed.get_world_size()).split([b.numel() for b in buffers])
        for buffer, mean in zip(buffers, parts, strict=True):
            buffer.copy_(mean.view_as(buffer))
