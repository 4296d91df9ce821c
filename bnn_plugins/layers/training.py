"""Training through bits: which layers take the training operators of ``bnn_kernels``, and which ones torch's, with the reason.

The sums of a binary layer are the same integers either way, gradients are equal to rounding. What is unusual (real weights,
several bits, hooks on a part, ``torch.compile``, a device without these operators) takes torch's operators, which define the
result; :func:`training_report` says so.
"""

import os
from collections import Counter
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnn_kernels import training
from bnn_kernels.geometry import TERMS_LIMIT, Conv2dGeometry, linear_geometry
from bnn_kernels.training import GRADIENTS, NORM_TERMS, Latent, Norm, SignProduct

from ..binarize.activations import SignActivation
from ..binarize.estimators import Estimator, says_it_too, triangle_of
from ..binarize.lookup import unknown
from .activations import RPReLU
from .expand import expand_input

PATHS = ('auto', 'operators', 'torch')
LEAST_WORK = 1 << 23  # multiply-accumulates of a product: below it, what surrounds the operators takes longer than they save
RANGE = 'kind:binary'  # of torch's profiler: a fused unit calls no module that a profile could see


class set_training_path:
    """Says how binary layers are trained, for the whole process; in a ``with`` statement, until its end.

    The environment variables BNN_PLUGINS_TRAINING and BNN_PLUGINS_GRADIENTS set the initial values.

    Args:
        path: ``'auto'`` (training operators where they apply and win), ``'operators'`` (wherever they apply) or ``'torch'``
            (never).
        gradients: operands of the two products of a backward pass, ``'float32'`` or ``'bfloat16'``; under autocast to bfloat16
            always ``'bfloat16'``.

    Raises:
        ValueError: for another path or dtype.

    Example:
        >>> layer, x = BinaryConv2d(64, 64, 3, padding=1), torch.randn(1, 64, 8, 8)
        >>> with set_training_path('torch'):
        ...     slow = layer(x)
        >>> torch.equal(slow, layer(x))
        True
    """

    def __init__(self, path: str = 'auto', gradients: str = 'float32'):
        global _setting
        self.previous, _setting = _setting, checked_setting(path, gradients)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        global _setting
        _setting = self.previous


def checked_setting(path: str, gradients: str) -> tuple[str, str]:
    if path not in PATHS:
        raise ValueError(unknown('training path', path, PATHS))
    if gradients not in GRADIENTS:
        raise ValueError(unknown('dtype of gradients', gradients, GRADIENTS))
    return path, gradients


_setting = checked_setting(os.environ.get('BNN_PLUGINS_TRAINING', 'auto'), os.environ.get('BNN_PLUGINS_GRADIENTS', 'float32'))


def training_report(model: nn.Module) -> str:
    """One sentence on how the binary layers of a model were trained in the last training step.

    Example:
        >>> model = nn.Sequential(BinaryConv2d(64, 64, 3), BinaryConv2d(64, 64, 3, method='dorefa')).train()
        >>> _ = model(torch.randn(1, 64, 20, 20))
        >>> training_report(model)
        'training operators: 1 of 2 binary layers; 1 take those of torch (activations of {0, 1} or several bits)'
    """
    refusals = training_refusals(model)
    if not refusals:
        return 'training operators: no binary layer was trained yet'
    counts = Counter(refusal for refusal in refusals if refusal)
    text = f'training operators: {refusals.count("")} of {len(refusals)} binary layers'
    if counts:
        text += f'; {counts.total()} take those of torch ({"; ".join(counts)})'
    return text


def training_refusals(model: nn.Module) -> list[str]:
    """For each binary layer that was trained, why it took torch's operators in its last step; empty: it did not."""
    return [vars(module)['_refusal'] for module in model.modules() if '_refusal' in vars(module)]


class Accumulation(NamedTuple):
    """The sums of a layer in training: what :func:`bnn_kernels.training.sign_conv2d` and its kin take."""

    x: Tensor
    product: SignProduct
    shift: Tensor | None


def accumulation(layer, x: Tensor) -> Accumulation | None:
    """How a layer that is trained takes its sums of ``x``; ``None``: by torch's operators. The reason is kept for
    :func:`training_report`."""
    if not layer.training or not torch.is_grad_enabled():
        return None
    refusal = refusal_of(layer, x)
    vars(layer)['_refusal'] = refusal
    if refusal:
        return None
    gradients = 'bfloat16' if torch.is_autocast_enabled('cpu') else _setting[1]
    operand = layer.activation.operand(expand_input(layer, x.float()))
    if not layer._sign_checked:
        with torch.no_grad():
            layer._levels(x)
    estimator = layer.activation.estimator
    return Accumulation(operand.x, SignProduct(geometry_of(layer), triangle_of(estimator) or estimator.surrogate,
                                               operand.standardize, len(x), gradients), operand.shift)


def refusal_of(layer, x: Tensor) -> str:
    """Why a layer takes torch's operators; empty: it does not."""
    activation, binarizer = layer.activation, layer.weight_binarizer
    if _setting[0] == 'torch':
        return 'turned off by set_training_path'
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or (
            torch._C._functorch.peek_interpreter_stack() is not None):
        return 'compiled, traced or transformed'
    if len(getattr(layer, 'kernel_size', (1, 1))) != 2:
        return 'sequences and videos'
    if activation.bits == 32:
        return 'real activations'
    if activation.bits != 1 or not activation.signed:
        return 'activations of {0, 1} or several bits'
    if type(activation).forward is not SignActivation.forward or type(activation.estimator).forward is not Estimator.forward:
        return f'a sign of its own, {type(activation).__name__}'
    if binarizer.bits != 1 or binarizer.bases != 1 or binarizer.annealed:
        return 'weights that are no single signs'
    if has_hooks(activation) or has_hooks(activation.estimator):
        return 'hooks on the activation'
    if isinstance(getattr(layer, 'padding', 0), str):
        return f'padding={layer.padding!r}'
    if layer.fan_in >= TERMS_LIMIT or x.numel() == 0:
        return 'nothing to sum, or too much'
    if _setting[0] == 'auto' and products_of(layer, x) < LEAST_WORK:
        return 'too little work'
    if torch.is_autocast_enabled('cpu'):
        if torch.get_autocast_dtype('cpu') != torch.bfloat16:
            return 'autocast to another dtype than bfloat16'
        x = x.float()
    if layer.weight.dtype != torch.float32:
        return f'weights of {layer.weight.dtype}'
    able, reason = training.supported(x)
    return '' if able else reason


def products_of(layer, x: Tensor) -> int:
    """Multiply-accumulates of a layer's product."""
    rows = x.numel() // x.shape[layer.channel_dim]
    if layer.channel_dim == 1:
        rows //= layer.stride[0] * layer.stride[1]
    return rows * layer.weight.numel()


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def geometry_of(layer) -> Conv2dGeometry:
    if layer.channel_dim == -1:
        return cached_linear(layer.weight.shape[1], len(layer.weight))
    return cached_conv(len(layer.weight), layer.weight.shape[1] * layer.groups, layer.kernel_size, layer.stride, layer.padding,
                       layer.dilation, layer.groups, layer.pad_value)


@lru_cache(1024)
def cached_conv(outputs: int, channels: int, *numbers) -> Conv2dGeometry:
    return Conv2dGeometry(channels, outputs, *numbers)


cached_linear = lru_cache(1024)(linear_geometry)


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """``y`` in the memory format of ``x``: hosts may call ``view`` on it."""
    return y if x.ndim != 4 or x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


def sums(layer, x: Tensor, weight_levels: Tensor) -> Tensor | None:
    """The sums of a layer in training, float32; ``None`` where it takes torch's operators."""
    how = accumulation(layer, x)
    return None if how is None else product_of(layer, x, how, weight_levels, None)


def scaled_sums(layer, x: Tensor, weight: Tensor) -> Tensor | None:
    """The same of a latent weight, times its scale, for a layer that does nothing else with its sums."""
    how = accumulation(layer, x)
    if how is None:
        return None
    weight, scale, latent = weight_of(layer, weight)
    return product_of(layer, x, how._replace(product=how.product._replace(latent=latent)), weight, scale)


def product_of(layer, x: Tensor, how: Accumulation, weight: Tensor, scale: Tensor | None) -> Tensor:
    scale = None if scale is None else scale.expand(len(weight))
    with torch.autocast('cpu', enabled=False):
        if layer.channel_dim == -1:
            return training.sign_linear(how.x, weight, how.product, how.shift, scale)
        return in_format_of(x, training.sign_conv2d(how.x, weight, how.product, how.shift, scale))


class Act(NamedTuple):
    """A non-linearity as the training operators take it."""

    name: str
    gamma: Tensor | None = None
    slope: Tensor | None = None
    zeta: Tensor | None = None


def act_of(act: nn.Module | None, width: int) -> Act | None:
    """``None``: it is another one, or observed by hooks."""
    if act is None or type(act) is nn.Identity:
        return Act('identity')
    if has_hooks(act):
        return None
    if type(act) is nn.Hardtanh and (act.min_val, act.max_val) == (-1.0, 1.0):
        return Act('hardtanh')
    if type(act) is nn.ReLU:
        return Act('relu')
    if type(act) is nn.PReLU and act.weight.numel() == width:
        return Act('prelu', slope=act.weight)
    if type(act) is RPReLU and act.channel_dim == 1:
        return Act('prelu', act.gamma, act.slope, act.zeta)
    return None


def fusable(conv, norm: nn.Module, x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether a convolution and the norm behind it can be trained as one operator, as far as they are concerned."""
    if conv.bias is not None or conv.gain is not None or conv.folded_scale is not None or has_hooks(conv):
        return False
    if conv.g_bits < 32 or conv.activation.step != 1.0 or conv.fan_in > NORM_TERMS:
        return False
    if type(norm) is not nn.BatchNorm2d or has_hooks(norm) or norm.momentum is None:
        return False
    vectors = [v for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if v is not None]
    if not vectors or any(v.dtype != torch.float32 for v in vectors) or (not norm.training and norm.running_mean is None):
        return False
    batch, _, *image = x.shape
    size = geometry_of(conv).size(image)
    expected = (batch, norm.num_features, *size)
    return batch * size[0] * size[1] > 1 and (shortcut is None or (shortcut.shape == expected and type(shortcut) is Tensor))


def unit2d(conv, norm: nn.Module, act: nn.Module | None, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """``act(norm(conv(x)) + shortcut)`` of a binary convolution: one operator in training, where that is possible.

    Args:
        conv: a :class:`.BinaryConv2d`, or another module, which is called.
        norm: batch norm, or another norm.
        act, shortcut: ``None``: without.

    Shape: ``[N, C, H, W]`` -> ``[N, W, H', W']``, W the width of the norm; in training in channels-last memory.
    """
    if conv.training and hasattr(conv, 'weight_binarizer'):
        with torch.profiler.record_function(RANGE) if torch.autograd.profiler._is_profiler_enabled else nullcontext():
            fused = _unit2d(conv, norm, act, x, shortcut)
        if fused is not None:
            return fused
    out = norm(conv(x))
    if shortcut is not None:
        out = out + shortcut
    return out if act is None else act(out)


def _unit2d(conv, norm: nn.Module, act: nn.Module | None, x: Tensor, shortcut: Tensor | None) -> Tensor | None:
    if not conv.plain or refusal_of(conv, x) or x.ndim != 4 or not fusable(conv, norm, x, shortcut):
        return None
    around = None if shortcut is None else shortcut.float()
    x = around if shortcut is x else x
    how = accumulation(conv, x)
    if how is None:
        return None
    fused = act_of(act, norm.num_features)
    name, gamma, slope, zeta = fused or Act('identity')
    weight, scale, latent = weight_of(conv, conv.weight)
    scale = None if scale is None else scale.expand(len(weight))
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    with torch.autocast('cpu', enabled=False):
        out = training.sign_conv2d_norm(
            how.x, weight, how.product._replace(latent=latent),
            Norm(name, norm.eps, norm.momentum, frozen=not norm.training), shift=how.shift, scale=scale, weight=norm.weight,
            bias=norm.bias, running_mean=norm.running_mean, running_var=norm.running_var, shortcut=around, gamma=gamma,
            slope=slope, zeta=zeta)
    return out if fused else act(out)


def weight_of(layer, weight: Tensor) -> tuple[Tensor, Tensor | None, Latent | None]:
    """Latent weights of a layer or their levels, as the training operators take them, and the scale."""
    binarizer = layer.weight_binarizer
    estimator = getattr(binarizer, 'estimator', None)
    if says_it_too(type(binarizer), 'forward', 'latents') and not has_hooks(binarizer) and (
            estimator is None or (not has_hooks(estimator) and type(estimator).forward is Estimator.forward)):
        latents = binarizer.latents(weight)
        if latents is not None:
            return latents.weight, latents.scale, latents.latent
    return *binarizer(weight), None
