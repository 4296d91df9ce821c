"""mmengine hooks of binary training."""

from functools import partial

from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import set_random_seed

from ..binarize import after_step_, set_progress, start_epoch_
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

    @staticmethod
    def _model(runner):
        return runner.model.module if is_model_wrapper(runner.model) else runner.model

    def before_train(self, runner) -> None:
        if self.gradients is not None:
            set_training_path(gradients=self.gradients)

    def before_train_epoch(self, runner) -> None:
        if self.epoch_length is None:
            start_epoch_(self._model(runner))

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.epoch_length is not None and runner.iter % self.epoch_length == 0:
            start_epoch_(self._model(runner))
        set_progress(self._model(runner), runner.iter / runner.max_iters)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        after_step_(self._model(runner))
        if not self.reported:
            self.reported = True
            runner.logger.info(training_report(self._model(runner)))


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed all random numbers from ``(seed, epoch)`` at the start of each epoch, so that a resumed run repeats itself exactly.

    Checkpoints hold no random states; without this, augmentation after a resume differs from the uninterrupted run. Workers
    are given a new seed per epoch as well (mmengine gives them the same one each time), which needs
    ``persistent_workers=False``: living workers would keep a state that a resume cannot restore.
    """

    def before_train_epoch(self, runner) -> None:
        loader = runner.train_dataloader
        if getattr(loader, 'persistent_workers', False):
            runner.logger.warning('persistent_workers=True: after a resume the augmentation differs from an uninterrupted '
                                  'run; set train_dataloader.persistent_workers=False for exact resume')
        seed = (runner.seed + runner.epoch * 1_000_003) % 2**31  # numpy takes 32 bits; workers add their number
        set_random_seed(seed)
        if loader.num_workers > 0:
            loader.worker_init_fn = partial(worker_init_fn, num_workers=loader.num_workers, rank=get_rank(), seed=seed)
