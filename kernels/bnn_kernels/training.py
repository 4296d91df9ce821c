"""Binary layers in training: products of bits forward, two float products backward, one pass for what lies between them.

A binary convolution needs of its input one bit per value in the forward pass, and in the backward pass these bits and where
the surrogate gradient is not zero. The norm, shortcut and non-linearity behind it are elementwise, but for sums over channels:
they are fused, and the sums of the convolution are counted again in the backward pass instead of being kept as floats. All
functions are differentiable once.

The sums are integers, so they equal those of `F.conv2d(sign(x), sign(weight))` exactly; gradients equal autograd's to
rounding. Runs on the engine of `bnn_kernels.cpu`, see `supported`.
"""

import math
import struct as binary
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .cpu import engine
from .cpu.engine import DTYPES, address
from .cpu.lowering import ACTS, conv_struct, prepare
from .geometry import Conv2dGeometry
from .layout import WORD_BITS
from .ops import binary_conv2d, pack_activations

GRADIENTS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
STANDARDIZE_EPS = 1e-5  # of the variance of a sample
NORM_TERMS = (1 << 15) - 1  # of a sum in front of a norm: it is kept as int16 for a while


class Surrogate(NamedTuple):
    """The derivative that stands for that of sign: `peak * max(1 - steepness * |x|, 0)` where `|x| <= limit`, 0 elsewhere."""

    peak: float = 1.0
    steepness: float = 0.0
    limit: float = math.inf


class Latent(NamedTuple):
    """Weights that are given as they are: their signs are what is multiplied.

    Attributes:
        surrogate: the derivative that stands for that of their sign.
        through_scale: their gradient is multiplied by the scale of the product, as that of `scale * sign(weight)` is; without,
            it is that of the signs alone (the released codes of Bi-Real Net and ReActNet).
    """

    surrogate: Surrogate = Surrogate()
    through_scale: bool = True


class SignProduct(NamedTuple):
    """A product of signs with signs, in training.

    Attributes:
        geometry: of the convolution.
        surrogate: of the input's sign, or a function of the input that returns it, of the same shape.
        standardize: the surrogate is that of the input over the standard deviation of its sample, through which gradients go
            on (ReCU, arXiv 2103.12369, released code).
        samples: of the input; by default its first dimension.
        gradients: dtype of the operands of the two products of the backward pass: 'float32' or 'bfloat16'.
        latent: of weights that are not signs yet.
    """

    geometry: Conv2dGeometry
    surrogate: Surrogate | Callable[[Tensor], Tensor] = Surrogate()
    standardize: bool = False
    samples: int | None = None
    gradients: str = 'float32'
    latent: Latent | None = None


class Norm(NamedTuple):
    """A batch norm, the shortcut behind it and a non-linearity; those without parameters.

    Attributes:
        act: 'identity', 'relu', 'hardtanh' or 'prelu'.
        eps, momentum: of the norm.
        frozen: the norm uses its running statistics and leaves them as they are.
    """

    act: str = 'identity'
    eps: float = 1e-5
    momentum: float = 0.1
    frozen: bool = False


def supported(x: Tensor) -> tuple[bool, str]:
    """(True, '') or (False, reason): can the functions below take this input?"""
    if not x.is_cpu:
        return False, f'training operators need tensors in main memory, got {x.device}'
    if x.dtype != torch.float32:
        return False, f'training operators take float32, got {x.dtype}'
    try:
        engine.library()
    except RuntimeError as error:
        return False, str(error)
    return True, ''


def sign_conv2d(x: Tensor, signs: Tensor, product: SignProduct, shift: Tensor | None = None,
                scale: Tensor | None = None) -> Tensor:
    """The sums of `F.conv2d(sign(x + shift), signs)`, times `scale`; gradients reach `x`, `signs`, `shift` and `scale`.

    Args:
        x: float32 `[N, C, H, W]`.
        signs: float32 `[O, C / groups, kH, kW]` of -1 and +1, for example `sign(weight)` of an estimator; or, with
            `product.latent`, weights, whose signs they are.
        product: geometry and surrogates.
        shift: float32 `[C]`, added before the sign.
        scale: float32 `[O]`, of sums of at most `NORM_TERMS` products; None is 1.

    Returns:
        float32 `[N, O, H', W']` in channels-last memory.

    Example:
        >>> x, latent = torch.randn(2, 40, 8, 8, requires_grad=True), torch.randn(64, 40, 3, 3)
        >>> product = SignProduct(Conv2dGeometry(40, 64, 3, padding=1), Surrogate(limit=1.0))
        >>> sums = sign_conv2d(x, latent.sign(), product)
        >>> sums.sum().backward()
        >>> bool((x.grad[x.abs() > 1] == 0).all())
        True
    """
    if scale is None:
        return _SignConv2d.apply(x, shift, signs, product)
    zeros, ones = _standard(len(signs))  # a norm that changes nothing
    return _SignConv2dNorm.apply(x, shift, signs, scale, *[None] * 6, zeros, ones, product, Norm(eps=0.0, frozen=True),
                                 len(signs), False)


def sign_linear(x: Tensor, signs: Tensor, product: SignProduct, shift: Tensor | None = None,
                scale: Tensor | None = None) -> Tensor:
    """As `sign_conv2d`, float32 `[..., C]` and `[O, C]` to `[..., O]`; the geometry is that of a 1x1
    convolution.

    Example:
        >>> x, signs = torch.randn(5, 7, 40), torch.randn(64, 40).sign()
        >>> sign_linear(x, signs, SignProduct(Conv2dGeometry(40, 64, 1))).shape
        torch.Size([5, 7, 64])
    """
    *lead, channels = x.shape
    image = x.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
    samples = product.samples or (lead[0] if lead else 1)
    sums = sign_conv2d(image, signs[:, :, None, None], product._replace(samples=samples), shift, scale)
    return sums.permute(0, 2, 3, 1).reshape(*lead, len(signs))


def sign_conv2d_norm(x: Tensor, signs: Tensor, product: SignProduct, norm: Norm, *, shift: Tensor | None = None,
                     scale: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None,
                     running_mean: Tensor | None = None, running_var: Tensor | None = None,
                     shortcut: Tensor | None = None, gamma: Tensor | None = None, slope: Tensor | None = None,
                     zeta: Tensor | None = None) -> Tensor:
    """`act(batch_norm(scale * sign_conv2d(x)) + shortcut)` with the statistics of the batch; gradients reach all but the
    running statistics, which are updated.

    Args:
        x, signs, product, shift: as `sign_conv2d`; at most `NORM_TERMS` products in a sum.
        norm: what has no tensors.
        scale: float32 `[O]`; None is 1.
        weight, bias, running_mean, running_var: float32 `[P]` of the norm, each may be None. P is O or a multiple of it:
            channel j reads sum j % O (expanding-and-shrinking).
        shortcut: float32 `[N, P, H', W']`, for example `x` itself; None adds nothing.
        gamma, slope, zeta: float32 `[P]` of 'prelu': `slope`, and the shifts of RPReLU.

    Returns:
        float32 `[N, P, H', W']` in channels-last memory.

    Example:
        >>> x, signs = torch.randn(2, 64, 8, 8), torch.randn(64, 64, 3, 3).sign()
        >>> product = SignProduct(Conv2dGeometry(64, 64, 3, padding=1), Surrogate(2.0, 1.0))
        >>> y = sign_conv2d_norm(x, signs, product, Norm('hardtanh'), shortcut=x)
        >>> y.shape, bool(y.abs().amax() <= 1)
        (torch.Size([2, 64, 8, 8]), True)
    """
    own = shortcut is x  # its gradient is added in the pass that writes that of x
    width = next((len(v) for v in (weight, bias, running_mean, slope) if v is not None), len(signs))
    return _SignConv2dNorm.apply(x, shift, signs, scale, weight, bias, None if own else shortcut, gamma, slope, zeta,
                                 running_mean, running_var, product, norm, width, own)


@cache
def _standard(width: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(width), torch.ones(width)


# --- one pass each -----------------------------------------------------------------------------------------------------------

def _struct(name: str, **values) -> array:
    """A struct of the engine. Tensors and structs become addresses and floats their bits."""
    numbers = {name: address(value) if value is None or isinstance(value, Tensor) else
               binary.unpack('q', binary.pack('d', value))[0] if isinstance(value, float) else
               value.buffer_info()[0] if isinstance(value, array) else int(value)
               for name, value in values.items()}
    return engine.struct(name, threads=torch.get_num_threads(), **numbers)


def _pass(function: str, struct: str, **values) -> None:
    """Calls the engine."""
    call = _struct(struct, **values)
    engine.call(f'bnn_{function}', engine.isa_number(), call.buffer_info()[0])


def _image(x: Tensor) -> Tensor:
    return engine.dense(x.detach(), torch.channels_last)


def _vector(v: Tensor | None) -> Tensor | None:
    return None if v is None else engine.dense(v.detach().float())


def _rows(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)


def _words(x: Tensor, width: int, groups: int = 1) -> Tensor:
    """Memory for one bit per value of an image as large as `x`."""
    return torch.empty(x.shape[0], *x.shape[2:], groups * -(-width // groups // WORD_BITS), dtype=torch.int32)


def _like(x: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty((x.shape[0], channels, *x.shape[2:]), dtype=dtype, memory_format=torch.channels_last)


class _Operand(NamedTuple):
    """What a product keeps of its input: bits, and what the surrogate needs, one of `x`, `inside`, or nothing."""

    words: Tensor
    x: Tensor | None
    inside: Tensor | None
    statistics: Tensor | None


def _operand(x: Tensor, shift: Tensor | None, product: SignProduct, needs_grad: bool) -> _Operand:
    surrogate, samples, channels, groups = product.surrogate, 1, x.shape[1], product.geometry.groups
    keep = inside = statistics = None
    limit = math.inf
    if needs_grad and product.standardize:
        keep, samples = x, product.samples or len(x)
        statistics = torch.empty(2, samples, dtype=torch.float64)
    elif needs_grad and not (isinstance(surrogate, Surrogate) and surrogate.steepness == 0):
        keep = x
    elif needs_grad and surrogate.limit < math.inf:
        inside, limit = _words(x, channels), surrogate.limit
    words = _words(x, channels, groups)
    _pass('operand', 'Operand', samples=samples, rows=_rows(x) // samples, channels=channels, groups=groups,
          limit=float(limit), eps=STANDARDIZE_EPS, x=x, shift=shift, words=words, inside=inside, statistics=statistics)
    return _Operand(words, keep, inside, statistics)


def _sums(words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
    channels, _, _, stride, padding, dilation, groups, pad_value, *_ = geometry
    return binary_conv2d(words, w_words, channels, stride, padding, dilation, groups, pad_value)


def _norm_sums(words: Tensor, prepared: Tensor, conv: array, geometry: Conv2dGeometry,
               totals: Tensor | None = None) -> Tensor:
    """The sums as int16, in channels-last memory; adds up what a batch norm needs of them."""
    batch, *size, _ = words.shape
    sums = torch.empty((batch, geometry.outputs, *geometry.size(size)), dtype=torch.int16, memory_format=torch.channels_last)
    _pass('norm_sums', 'NormSums', conv=conv, words=words, prepared=prepared, sums=sums, totals=totals)
    return sums


class _Weight(NamedTuple):
    """Signs of a weight `[O, C / groups, kH, kW]` as bits, how their gradient lies in memory, and what it still depends on."""

    words: Tensor
    memory_format: torch.memory_format
    latents: Tensor | None
    inside: Tensor | None
    scale: Tensor | None


def _weight(signs: Tensor, latent: Latent | None, scale: Tensor | None = None) -> _Weight:
    signs = signs.detach()
    memory_format = torch.contiguous_format if signs.is_contiguous() else torch.channels_last
    words, surrogate, latents, inside = pack_activations(signs), latent and latent.surrogate, None, None
    if surrogate is not None and surrogate.steepness == 0 and surrogate.limit < math.inf:
        filters, size = len(signs), signs[0].numel()
        inside = torch.empty(filters, -(-size // WORD_BITS), dtype=torch.int32)
        _pass('operand', 'Operand', samples=1, rows=filters, channels=size, groups=1, limit=float(surrogate.limit), eps=0.0,
              x=engine.dense(signs, memory_format), shift=None, words=torch.empty_like(inside), inside=inside, statistics=None)
    elif surrogate not in (None, Surrogate()):
        latents = engine.dense(signs, memory_format)
    return _Weight(words, memory_format, latents, inside, None if latent is None or latent.through_scale else scale)


def _latent_gradient(d_signs: Tensor | None, weight: _Weight, latent: Latent | None) -> Tensor | None:
    """The gradient of the latents, in the memory of that of their signs."""
    if d_signs is None or latent is None:
        return d_signs
    d_signs = engine.dense(d_signs, weight.memory_format)
    if any(v is not None for v in weight[2:]):
        filters, surrogate = len(d_signs), latent.surrogate
        _pass('latent_backward', 'LatentBackward', filters=filters, size=d_signs.numel() // filters,
              peak=float(surrogate.peak), steepness=float(surrogate.steepness), limit=float(surrogate.limit),
              latents=weight.latents, inside=weight.inside, scale=weight.scale, grad=d_signs)
    return d_signs


def _levels(words: Tensor, channels: int, groups: int, dtype: torch.dtype) -> Tensor:
    """-1 and +1 `[N, C, H, W]` in channels-last memory."""
    batch, height, width, _ = words.shape
    levels = torch.empty((batch, channels, height, width), dtype=dtype, memory_format=torch.channels_last)
    _pass('unpack_signs', 'Signs2Float', rows=batch * height * width, channels=channels, groups=groups, dtype=DTYPES[dtype],
          words=words, y=levels)
    return levels


def _products(d_sums: Tensor, words: Tensor, w_words: Tensor, geometry: Conv2dGeometry,
              needs: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the signs of the input and of the weight."""
    batch, height, width, _ = words.shape
    levels = _levels(words, geometry.channels, geometry.groups, d_sums.dtype)
    weight = _levels(w_words, geometry.channels // geometry.groups, 1, d_sums.dtype)
    if geometry.kernel == (1, 1) == geometry.stride and geometry.padding == (0, 0) and geometry.groups == 1:
        rows, matrix = d_sums.permute(0, 2, 3, 1).reshape(-1, geometry.outputs), weight.flatten(1)
        d_levels = (rows @ matrix).view(batch, height, width, -1).permute(0, 3, 1, 2) if needs[0] else None
        d_signs = rows.t() @ levels.permute(0, 2, 3, 1).reshape(-1, geometry.channels) if needs[1] else None
        return d_levels, None if d_signs is None else d_signs.view_as(weight).float()
    (top, left), padding = geometry.padding, geometry.padding
    if geometry.pad_value != 0:
        levels, padding = F.pad(levels, (left, left, top, top), value=float(geometry.pad_value)), (0, 0)
    d_levels, d_signs, _ = torch.ops.aten.convolution_backward(
        d_sums, levels, weight, None, geometry.stride, padding, geometry.dilation, False, (0, 0), geometry.groups,
        (*needs, False))
    if geometry.pad_value != 0 and needs[0]:
        d_levels = d_levels[:, :, top:top + height, left:left + width]
    return d_levels if needs[0] else None, d_signs.float() if needs[1] else None


class _Residual(NamedTuple):
    """The gradient of a shortcut that is the input itself, and which of its values count; None: all."""

    grad: Tensor
    inside: Tensor | None


def _gradients(d_sums: Tensor | dict[str, Any], operand: _Operand, weight: _Weight, shift: Tensor | None, product: SignProduct,
               needs: tuple[bool, bool, bool],
               residual: _Residual | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input, with that of a shortcut added, of the shift and of the signs of the weight.

    `d_sums`: gradients of the sums, or the arguments of `NormBackward` that make them.
    """
    geometry, surrogate, x, factor = product.geometry, product.surrogate, operand.x, None
    batch, height, width, _ = operand.words.shape
    samples = 1 if operand.statistics is None else operand.statistics.shape[1]
    together = _together(geometry, batch if operand.statistics is None else samples, batch)
    needs_x, d_levels, d_signs = needs[0] or needs[1], None, None
    dtype, norm = GRADIENTS[product.gradients], None
    if isinstance(d_sums, dict):
        sums: Tensor | None = None if together else _like(d_sums['sums'], geometry.outputs, dtype)
        norm = _struct('NormBackward', dtype=DTYPES[dtype], d_sums=sums, **d_sums)
        if sums is not None:
            engine.call('bnn_norm_backward', engine.isa_number(), norm.buffer_info()[0])
            del d_sums['sums']  # their memory is free for the products
    else:
        sums = d_sums
    if sums is not None and not together:
        d_levels, d_signs = _products(sums, operand.words, weight.words, geometry, (needs_x, needs[2]))
        d_levels = None if d_levels is None else _image(d_levels)
    d_x = d_shift = call = None
    if needs_x:
        if not isinstance(surrogate, Surrogate):
            assert x is not None
            v = x if shift is None else x + shift.view(-1, 1, 1)
            if operand.statistics is not None:
                rows = x.permute(0, 2, 3, 1)
                v = (rows.reshape(samples, -1) * operand.statistics[1].float()[:, None]).view_as(rows).permute(0, 3, 1, 2)
            factor, surrogate = _image(surrogate(v)), Surrogate()
        d_x = torch.empty((batch, geometry.channels, height, width), memory_format=torch.channels_last)
        d_shift = torch.empty(geometry.channels) if needs[1] else None
        call = _struct('SignBackward', samples=samples, rows=_rows(d_x) // samples, channels=geometry.channels,
                       dtype=DTYPES[torch.float32 if d_levels is None else d_levels.dtype], peak=float(surrogate.peak),
                       steepness=float(surrogate.steepness), limit=float(surrogate.limit), grad=d_levels, x=x,
                       inside=operand.inside, factor=factor, shift=shift, statistics=operand.statistics,
                       residual=residual and residual.grad, residual_inside=residual and residual.inside, d_x=d_x,
                       d_shift=d_shift)
    if together:
        conv = conv_struct(geometry, batch, (height, width), engine.isa_number(), torch.get_num_threads())
        shape = geometry.outputs, geometry.channels, *geometry.kernel
        d_signs = torch.empty(shape, memory_format=weight.memory_format) if needs[2] else None
        _pass('sign_products', 'SignProducts', conv=conv, dtype=DTYPES[dtype], d_sums=sums, norm=norm, words=operand.words,
              weight=weight.words, input=call, channels_last=weight.memory_format is torch.channels_last,
              d_weight=d_signs)
    elif call is not None:
        engine.call('bnn_sign_backward', engine.isa_number(), call.buffer_info()[0])
    return d_x, d_shift, _latent_gradient(d_signs, weight, product.latent)


def _together(geometry: Conv2dGeometry, samples: int, batch: int) -> bool:
    """Whether the engine has both products, and what follows them image by image."""
    return (engine.isa() in engine.TILES and geometry.groups == 1 and math.prod(geometry.kernel) > 1
            and samples == batch)


class _SignConv2d(torch.autograd.Function):
    """See `sign_conv2d`."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor | None, signs: Tensor, product: SignProduct) -> Tensor:
        x, shift = _image(x), _vector(shift)
        operand = _operand(x, shift, product, any(ctx.needs_input_grad[:2]))
        weight = _weight(signs, product.latent)
        ctx.save_for_backward(*operand, shift, weight.words, weight.latents, weight.inside)
        ctx.call = product, weight.memory_format
        return _sums(operand.words, weight.words, product.geometry).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *operand, shift, w_words, latents, inside = ctx.saved_tensors
        product, memory_format = ctx.call
        weight = _Weight(w_words, memory_format, latents, inside, None)
        return *_gradients(_image(grad.to(GRADIENTS[product.gradients])), _Operand(*operand), weight, shift, product,
                           ctx.needs_input_grad[:3]), None


class _SignConv2dNorm(torch.autograd.Function):
    """See `sign_conv2d_norm`."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor | None, signs: Tensor, scale: Tensor | None, weight: Tensor | None,
                bias: Tensor | None, shortcut: Tensor | None, gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None,
                running_mean: Tensor | None, running_var: Tensor | None, product: SignProduct, norm: Norm, width: int,
                own_shortcut: bool) -> Tensor:
        x, shift = _image(x), _vector(shift)
        vectors = dict(scale=scale, weight=weight, bias=bias, gamma=gamma, slope=slope, zeta=zeta)
        vectors = {name: _vector(value) for name, value in vectors.items()}
        around = x if own_shortcut else None if shortcut is None else _image(shortcut)
        operand = _operand(x, shift, product, any(ctx.needs_input_grad[:2]))
        geometry = product.geometry
        conv = conv_struct(geometry, len(x), tuple(x.shape[2:]), engine.isa_number(), torch.get_num_threads())
        signs_of = _weight(signs, product.latent, vectors['scale'])
        prepared = prepare(signs_of.words, conv)
        totals = torch.zeros(2, geometry.outputs, dtype=torch.int64)
        sums = _norm_sums(operand.words, prepared, conv, geometry, totals)
        y, statistics = _like(sums, width), torch.empty(4, width, dtype=torch.float64)
        inside = _words(sums, width) if norm.act in ('relu', 'hardtanh') else None
        _pass('norm_forward', 'NormForward', rows=_rows(sums), outputs=sums.shape[1], width=width, act=ACTS[norm.act],
              frozen=norm.frozen, eps=float(norm.eps), momentum=float(norm.momentum), sums=sums, totals=totals,
              shortcut=around, running_mean=running_mean, running_var=running_var, statistics=statistics, y=y, inside=inside,
              **vectors)
        if not norm.frozen:
            for statistic in (running_mean, running_var):
                if statistic is not None:
                    torch.autograd.graph.increment_version(statistic)
        ctx.save_for_backward(*operand, shift, signs_of.words, signs_of.latents, signs_of.inside, prepared,
                              around if norm.act == 'prelu' else None, inside, statistics, *vectors.values())
        ctx.call = product, norm, own_shortcut, conv, signs_of.memory_format
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (*operand, shift, w_words, latents, w_inside, prepared, around, inside, statistics, scale, weight, bias, gamma, slope,
         zeta) = ctx.saved_tensors
        operand, needs = _Operand(*operand), ctx.needs_input_grad
        product, norm, own_shortcut, conv, memory_format = ctx.call
        grad = _image(grad)
        sums = _norm_sums(operand.words, prepared, conv, product.geometry)
        outputs, width = sums.shape[1], grad.shape[1]
        # What the act takes has this gradient: `grad` where `inside`, and nowhere written if that is all that reads it.
        d_input = _like(grad, width) if norm.act == 'prelu' or (inside is not None and needs[6]) else None
        d: dict[str, Any] = {f'd_{name}': torch.empty(outputs if name == 'scale' else width) if value is not None else None
                             for name, value in dict(scale=scale, weight=weight, bias=bias, gamma=gamma, slope=slope,
                                                     zeta=zeta).items()}
        d_sums = dict(rows=_rows(sums), outputs=outputs, width=width, act=ACTS[norm.act], frozen=norm.frozen, sums=sums,
                      scale=scale, weight=weight, bias=bias, shortcut=around, gamma=gamma, slope=slope, statistics=statistics,
                      inside=inside, grad=grad, d_input=d_input, **d)
        del sums
        residual = _Residual(grad, inside) if d_input is None else _Residual(d_input, None)
        through_scale = product.latent is None or product.latent.through_scale
        signs_of = _Weight(w_words, memory_format, latents, w_inside, None if through_scale else scale)
        gradients = _gradients(d_sums, operand, signs_of, shift, product, needs[:3], residual if own_shortcut else None)
        return (*gradients, d['d_scale'], d['d_weight'], d['d_bias'], residual.grad if needs[6] else None, d['d_gamma'],
                d['d_slope'], d['d_zeta'], *[None] * 6)
