"""Binary training that starts from a trained float model."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ..registry import HOOKS


@HOOKS.register_module()
class FloatStartHook(Hook):
    """Start from a trained float model of the same architecture: its weights become latents, name by name.

    Thresholds, scales and other parameters that only binary layers have start as always. Loading is mmengine's, so averages of
    weights begin with these, too; the hook refuses a model that has not received them. A run that is resumed, or has a
    ``load_from`` of its own (the second of two steps), is left alone.

    Args:
        checkpoint: of the float model; default ``float_twin.checkpoint`` of the config.
        skip: prefixes of names of layers that may keep their initial weights, as heads for other classes do.

    Raises:
        ValueError: without a checkpoint; for convolutions and linear layers whose weights are not in it.
    """

    priority = 'VERY_HIGH'  # the other hooks find the weights in place

    def __init__(self, checkpoint: str | None = None, skip: Sequence[str] = ()):
        self.checkpoint, self.skip = checkpoint, tuple(skip)

    def before_train(self, runner) -> None:
        source = self.checkpoint or runner.cfg.get('float_twin', {}).get('checkpoint')
        if not source:
            raise ValueError("FloatStartHook needs float_twin=dict(checkpoint='...') in the config: a trained float model")
        if runner._resume or runner._load_from:
            return
        checkpoint = runner.load_checkpoint(source)
        values = defaultdict(list)
        for value in checkpoint.get('state_dict', checkpoint).values():
            values[value.shape].append(value)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        layers = {name: module.weight for name, module in model.named_modules()
                  if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) and not name.startswith(self.skip)}
        missing = [name for name, weight in layers.items()
                   if not any(torch.equal(weight.detach().cpu(), value.cpu()) for value in values[weight.shape])]
        if missing:
            raise ValueError(f'{len(missing)} of {len(layers)} layers found no weights of their name and shape in '
                             f'{source}, first {missing[0]!r}: give the checkpoint of a float model of the same '
                             'architecture, or skip=[...] with layers that shall start anew')
        runner.logger.info(f'{len(layers)} layers start with the weights of {source}')
