"""mmengine hooks of the benchmark."""

import time

import torch
from mmengine.hooks import Hook

from bnn_plugins.integrations.mmengine.classification import Accuracy


class DeadlineHook(Hook):
    """Stops a training at the end of an epoch when the time is over; the checkpoint of the epoch lets it go on another day."""

    priority = 'LOWEST'  # after the checkpoint

    def __init__(self, deadline: float):
        self.deadline = deadline
        self.stopped = False

    def after_train_epoch(self, runner) -> None:
        if time.monotonic() > self.deadline and runner.epoch + 1 < runner.max_epochs:
            self.stopped = runner.train_loop.stop_training = True


class TestAccuracyHook(Hook):
    """The test accuracy at each validation, for the best of them: what many papers report. Nothing is chosen by it here."""

    def __init__(self):
        self.loader = None

    def after_val_epoch(self, runner, metrics=None) -> None:
        if self.loader is None:
            self.loader = runner.build_dataloader(runner.cfg.test_dataloader)
        runner.message_hub.update_scalar('test/top1', evaluate(runner.model, self.loader)['top1'])


@torch.no_grad()
def evaluate(model, loader) -> dict[str, float]:
    """Accuracy of ``model`` (mmengine's) on all images of ``loader``."""
    model.eval()
    metric = Accuracy(collect_device='cpu')
    for batch in loader:
        metric.process(batch, model.test_step(batch))
    return metric.compute_metrics(metric.results)
