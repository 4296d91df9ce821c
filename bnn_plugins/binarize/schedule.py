"""What happens to a binary model in the course of training: schedules and latent clipping."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from bnn_kernels.updates import Tensors, clip_

from .weights import WeightBinarizer


def gathered(weight: Tensor) -> Tensor:
    """The whole weight, where torch's ``fully_shard`` has spread it over processes; by all of them together."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def latents(modules: list[Any], name: str) -> Callable[[], list[Tensor]]:
    """A function: this attribute of all modules now, their weight or a view of it."""
    if all(getattr(module, name) is module.weight for module in modules):
        parameters = [module._parameters for module in modules]  # where nn.Module looks for an attribute last
        return lambda: [found['weight'] for found in parameters]
    return lambda: [getattr(module, name) for module in modules]


class TrainingUpdates:
    """What the layers and binarizers of a model ask for in the course of training, found once: a step does no more Python than
    there is to update. The modules of the model must stay the same; the functions below look for them at each call.

    Args:
        model: latent, or the model in a wrapper.

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='recu'))
        >>> updates = TrainingUpdates(model)
        >>> updates.set_progress(0.5)
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.scheduled: list[Callable[[float], None]] = []
        self.epochs: list[tuple[WeightBinarizer, Any]] = []
        clipped: dict[float, list[Any]] = defaultdict(list)
        counted: dict[type[WeightBinarizer], list[Any]] = defaultdict(list)
        module: Any
        for module in model.modules():
            if hasattr(module, 'set_progress'):
                self.scheduled.append(module.set_progress)
            if (limit := getattr(module, 'latent_clip', None)) is not None:
                clipped[limit].append(module)
            binarizer = getattr(module, 'weight_binarizer', None)
            if binarizer is None:
                continue
            kind: type[WeightBinarizer] = type(binarizer)
            if kind.after_step is not WeightBinarizer.after_step:
                counted[kind].append(module)
            if kind.start_epoch is not WeightBinarizer.start_epoch:
                self.epochs.append((binarizer, module))
        self.clipped = [(limit, latents(modules, 'weight'), Tensors()) for limit, modules in clipped.items()]
        self.after_steps = [(kind.after_steps([module.weight_binarizer for module in modules]), latents(modules, 'filters'))
                            for kind, modules in counted.items()]

    def __bool__(self) -> bool:
        return bool(self.scheduled or self.clipped or self.after_steps or self.epochs)

    def set_progress(self, progress: float) -> None:
        """See :func:`set_progress`."""
        if not 0 <= progress <= 1:
            raise ValueError(f'progress is a share of the training between 0 and 1, but got {progress}')
        for advance in self.scheduled:
            advance(progress)

    @torch.no_grad()
    def clip_latents(self) -> None:
        """See :func:`clip_latents_`."""
        for limit, weights_now, places in self.clipped:
            weights = weights_now()
            if places.update(weights):
                clip_(places, limit)
                continue
            torch._foreach_clamp_min_(weights, -limit)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_clamp_max_(weights, limit)  # pyright: ignore[reportPrivateImportUsage]

    def after_step(self, clip: bool = True) -> None:
        """See :func:`after_step_`."""
        if clip:
            self.clip_latents()
        for update, weights_now in self.after_steps:
            weights = weights_now()
            update([gathered(weight) for weight in weights] if DTensor in map(type, weights) else weights)

    def start_epoch(self) -> None:
        """See :func:`start_epoch_`. Several processes share the work, each takes every n-th layer."""
        count, rank = (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
        for index, (binarizer, module) in enumerate(self.epochs):
            weight = gathered(module.filters)
            if index % count == rank:
                binarizer.start_epoch(weight)
        for index, (binarizer, _) in enumerate(self.epochs if count > 1 else []):
            for buffer in binarizer.buffers():
                distributed.broadcast(buffer, index % count)


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every scheduled binarizer how far training is, ``progress`` in [0, 1] (EDE's t and k, ReCU's tau, ...).

    Raises:
        ValueError: when ``progress`` is outside [0, 1].

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='irnet'))
        >>> set_progress(model, 0.5)  # half of the training is over
    """
    TrainingUpdates(model).set_progress(progress)


def clip_latents_(model: nn.Module) -> None:
    """Clip the latent weights of each layer whose method asks for it to ``[-latent_clip, latent_clip]``, in place.

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='binarynet'))
        >>> model[0].weight.data.fill_(3.0).max().item()
        3.0
        >>> clip_latents_(model)
        >>> model[0].weight.max().item()
        1.0
    """
    TrainingUpdates(model).clip_latents()


def after_step_(model: nn.Module, clip: bool = True) -> None:
    """What follows each optimizer step: latents are clipped (:func:`clip_latents_`), binarizers that count flips do so.

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='binarynet'))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.randn(2, 64)).sum().backward()
        >>> optimizer.step()
        >>> after_step_(model)
    """
    TrainingUpdates(model).after_step(clip)


def set_parts(model: nn.Module, parts: int) -> None:
    """Tell binarizers that a gradient is accumulated from so many backward passes, for what they add to it themselves (ReBNN).

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='rebnn'))
        >>> set_parts(model, 4)  # gradient_accumulation_steps, accumulative_counts
    """
    module: Any
    for module in model.modules():
        if hasattr(module, 'parts'):
            module.parts = parts


def follows_training(model: nn.Module) -> bool:
    """Whether :func:`set_progress`, :func:`after_step_` or :func:`start_epoch_` do anything for ``model``.

    Example:
        >>> [follows_training(nn.Sequential(BinaryLinear(64, 10, method=name))) for name in ('reactnet', 'binarynet', 'rbnn')]
        [False, True, True]
    """
    return bool(TrainingUpdates(model))


def start_epoch_(model: nn.Module) -> None:
    """What precedes each epoch: RBNN fits its rotations to the latents.

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='rbnn'))
        >>> start_epoch_(model)
    """
    TrainingUpdates(model).start_epoch()
