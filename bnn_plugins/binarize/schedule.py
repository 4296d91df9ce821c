"""What happens to a binary model in the course of training: schedules and latent clipping."""

import torch
from torch import Tensor, nn

from .weights import WeightBinarizer


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every scheduled binarizer how far training is, ``progress`` in [0, 1] (EDE's t and k, ReCU's tau, ...).

    Raises:
        ValueError: when ``progress`` is outside [0, 1].

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='irnet'))
        >>> set_progress(model, 0.5)  # half of the training is over
    """
    if not 0 <= progress <= 1:
        raise ValueError(f'progress is a share of the training between 0 and 1, but got {progress}')
    for module in model.modules():
        if (advance := getattr(module, 'set_progress', None)) is not None:
            advance(progress)


@torch.no_grad()
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
    for module in model.modules():
        if (limit := getattr(module, 'latent_clip', None)) is not None:
            assert isinstance(module.weight, Tensor)
            module.weight.clamp_(-limit, limit)


def after_step_(model: nn.Module, clip: bool = True) -> None:
    """What follows each optimizer step: latents are clipped (:func:`clip_latents_`), binarizers that count flips do so.

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='binarynet'))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.randn(2, 64)).sum().backward()
        >>> optimizer.step()
        >>> after_step_(model)
    """
    if clip:
        clip_latents_(model)
    for module in model.modules():
        if (binarizer := getattr(module, 'weight_binarizer', None)) is not None:
            binarizer.after_step(module.weight)


def follows_training(model: nn.Module) -> bool:
    """Whether :func:`set_progress`, :func:`after_step_` or :func:`start_epoch_` do anything for ``model``.

    Example:
        >>> [follows_training(nn.Sequential(BinaryLinear(64, 10, method=name))) for name in ('reactnet', 'binarynet', 'rbnn')]
        [False, True, True]
    """
    def acts(module: nn.Module) -> bool:
        binarizer = getattr(module, 'weight_binarizer', None)
        steps = binarizer is not None and any(getattr(type(binarizer), name) is not getattr(WeightBinarizer, name)
                                              for name in ('after_step', 'start_epoch'))
        return steps or hasattr(module, 'set_progress') or getattr(module, 'latent_clip', None) is not None
    return any(acts(module) for module in model.modules())


def start_epoch_(model: nn.Module) -> None:
    """What precedes each epoch: RBNN fits its rotations to the latents.

    Example:
        >>> model = nn.Sequential(BinaryLinear(64, 10, method='rbnn'))
        >>> start_epoch_(model)
    """
    for module in model.modules():
        if (binarizer := getattr(module, 'weight_binarizer', None)) is not None:
            binarizer.start_epoch(module.weight)
