"""mmengine hooks of the benchmark."""

import time
from statistics import median

import torch
from mmengine.hooks import Hook

from bnn_plugins.integrations.mmengine.classification import Accuracy


class DeadlineHook(Hook):
    """Stops a training at the end of the epoch whose successor would end too late; its checkpoint lets it go on another day.

    Args:
        deadline: on the clock of ``time.monotonic``, which goes on while the process is stopped. An epoch is taken to last
            as long as the fastest so far: what was stopped or disturbed says nothing about the next.
    """

    priority = 'LOWEST'  # after the checkpoint

    def __init__(self, deadline: float):
        self.deadline = deadline
        self.stopped = False
        self.fastest = float('inf')

    def before_train_epoch(self, runner) -> None:
        self.start = time.monotonic()

    def after_train_epoch(self, runner) -> None:
        now = time.monotonic()
        self.fastest = min(self.fastest, now - self.start)
        if now + self.fastest > self.deadline and runner.epoch + 1 < runner.max_epochs:
            self.stopped = runner.train_loop.stop_training = True


class ProgressHook(Hook):
    """Prints a line per epoch, and keeps of the past what the results need.

    mmengine keeps the loss, the time and more of each iteration, in memory and in checkpoints. Of all that only the sum of the
    minutes stays (``minutes`` of the message hub), so that a checkpoint is weights, momenta and one number per validation.

    Args:
        name: of the run.
    """

    priority = 'BELOW_NORMAL'  # before the checkpoint

    def __init__(self, name: str):
        self.name = name

    def before_train(self, runner) -> None:
        """The checkpoint of an epoch is written before its validation: a training that stopped in between makes up for it."""
        seen = runner.message_hub.log_scalars.get('val/top1')
        if runner.epoch // runner.train_loop.val_interval > (0 if seen is None else len(seen.data[0])):
            runner.val_loop.run()

    def after_train_epoch(self, runner) -> None:
        hub, epoch, count = runner.message_hub, runner.epoch + 1, len(runner.train_dataloader)
        # The median, because an iteration in which the process was stopped is not work.
        minutes = median(hub.get_scalar('train/time').data[0][-count:]) * count / 60
        hub.update_info('minutes', hub.get_info('minutes', 0.0) + minutes)
        left = minutes * (runner.max_epochs - epoch) / 60
        seen = f'{hub.get_scalar("val/top1").current():.1f} %' if 'val/top1' in hub.log_scalars else '-'
        print(f'{self.name}: epoch {epoch}/{runner.max_epochs}, loss {hub.get_scalar("train/loss").mean(count):.3f}, '
              f'training {100 * hub.get_scalar("train/accuracy").mean(count):.1f} %, '
              f'validation {seen}, {minutes:.1f} min, {left:.1f} h left', flush=True)
        for key in [key for key in hub.log_scalars if key.startswith('train/')]:
            del hub.log_scalars[key]


@torch.no_grad()
def evaluate(model, loader) -> float:
    """Top-1 accuracy of ``model`` (mmengine's) on all images of ``loader``, in percent."""
    model.eval()
    metric = Accuracy(collect_device='cpu')
    for batch in loader:
        metric.process(batch, model.test_step(batch))
    return metric.compute_metrics(metric.results)['top1']
