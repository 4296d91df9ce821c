"""Training by epochs goes on with another number of processes, and in the middle of an epoch."""

from collections.abc import Iterator
from itertools import islice

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Sampler

from ..registry import HOOKS


class Skipping(Sampler):
    """A sampler that leaves out its first ``count`` indices; its length, that of an epoch, stays."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.sampler), self.count, None)

    def __len__(self) -> int:
        return len(self.sampler)


@HOOKS.register_module()
class ResumeHook(Hook):
    """An epoch of N processes has 1/N of the iterations. mmengine counts training in iterations, so that a run which is
    resumed with more processes would be beyond its end, and one with fewer would fall back.

    Here the share of the training that is over stays: iterations, and what schedules count in iterations, are converted where
    the length of an epoch is another one. With ``auto_scale_lr`` the learning rate follows the batch of all processes. A run
    that was saved inside an epoch leaves out what this epoch has seen (rounded down to whole batches). Trainings that count
    iterations alone are left as they are.
    """

    priority = 'VERY_HIGH'
    skipped = 0

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['meta']['epoch_length'] = len(runner.train_dataloader)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        meta = checkpoint.get('meta', {})
        before = meta.get('epoch_length')
        if before is None or not isinstance(runner._train_loop, EpochBasedTrainLoop):
            return
        now = len(runner.train_dataloader)
        epoch, iteration = meta['epoch'], meta['iter']
        self.skipped = min((iteration - epoch * before) * now // before, now)
        if now != before:
            meta['iter'] = epoch * now + self.skipped
            for saved, scheduler in pairs(checkpoint.get('param_schedulers'), runner.param_schedulers):
                scale = scheduler.end / saved['end']  # 1: it counts epochs, or iterations of any epoch
                saved.update({**scheduler.state_dict(), **{key: saved[key] for key in ('base_values', '_last_value')},
                              **{key: round(saved[key] * scale) for key in ('last_step', '_global_step')}})
            if (getattr(runner, 'auto_scale_lr', None) or {}).get('enable', False):
                scale_rates(checkpoint, runner)

    def before_train_epoch(self, runner) -> None:
        if self.skipped:
            batches = runner.train_dataloader.batch_sampler
            batches.sampler = Skipping(batches.sampler, self.skipped * batches.batch_size)

    def after_train_epoch(self, runner) -> None:
        if self.skipped:
            batches = runner.train_dataloader.batch_sampler
            batches.sampler, self.skipped = batches.sampler.sampler, 0


def pairs(saved, schedulers) -> Iterator[tuple[dict, object]]:
    """Saved states beside schedulers, which are in lists, or for several optimizers in dicts of lists."""
    if isinstance(schedulers, dict):
        for name in schedulers:
            yield from pairs(saved[name], schedulers[name])
    elif schedulers:
        yield from zip(saved or [], schedulers, strict=False)


def scale_rates(checkpoint: dict, runner) -> None:
    """Saved learning rates, for the batch of these processes."""
    ratios = []
    for saved, group in zip(checkpoint['optimizer']['param_groups'], runner.optim_wrapper.param_groups, strict=True):
        ratios.append(group['initial_lr'] / saved['initial_lr'])
        saved['lr'] *= ratios[-1]
        saved['initial_lr'] = group['initial_lr']
    for saved, _ in pairs(checkpoint.get('param_schedulers'), runner.param_schedulers):
        if saved['param_name'] == 'lr':
            for key in ('base_values', '_last_value'):
                saved[key] = [value * ratio for value, ratio in zip(saved[key], ratios, strict=True)]
