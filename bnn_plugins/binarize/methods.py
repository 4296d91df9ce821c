"""Methods: named bundles of activation binarizer, weight binarizer, block non-linearity and latent clipping.

A method is one decorated function: its keyword arguments are the options that a config may set
(``method=dict(type='dorefa', a_bits=2)``), its return value is a :class:`Method`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from .activations import ActivationBinarizer, CenteredSign, DoReFaActivation, FloatActivation, RSign, SignActivation
from .bases import BasisWeight, LSQActivation
from .elastic import CenteredSignWeight, ElasticActivation
from .gains import DataDrivenGain, RankOneGain, SpatialGain
from .lookup import Registry
from .searched import SearchedWeight
from .weights import (
    BNextWeight,
    DoReFaWeight,
    FloatWeight,
    IRNetWeight,
    RBNNWeight,
    ReBNNWeight,
    ReCUWeight,
    ScaledStandardWeight,
    SignWeight,
    StochasticSignWeight,
    WeightBinarizer,
    XNORWeight,
)

__all__ = ['InputSpec', 'LayerSpec', 'Method', 'build_method', 'list_methods', 'register_method']


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The values that a binarizer of activations is built for: inputs of a layer, or operands of an attention.

    Attributes:
        in_channels: channels of what the module will read; behind the tile, for the activations of a drop-in expanded layer.
        channel_dim: where the channels are: 1 for ``[N, C, H, W]``, -1 for ``[..., C]``.
    """

    in_channels: int
    channel_dim: int = 1


@dataclass(frozen=True, kw_only=True)
class LayerSpec(InputSpec):
    """The layer that a binarizer of weights or a gain is built for.

    Attributes:
        out_channels: filters.
        fan_in: weights of one filter.
        window: ``kernel_size``, ``stride``, ``padding`` and ``dilation`` of a convolution over images; ``None`` for others.
    """

    out_channels: int
    fan_in: int
    window: dict | None = None


@dataclass(frozen=True)
class Method:
    """What a binary layer needs to know.

    Attributes:
        activation: builds the binarizer of the input for an :class:`InputSpec`.
        weight: builds the binarizer of the weights for a :class:`LayerSpec`.
        act: non-linearity after the shortcut in the native blocks: ``'identity'``, ``'hardtanh'``, ``'relu'``, ``'prelu'``
            or ``'rprelu'``; also what replaces a ReLU in a converted model when it is not ``'identity'`` or ``'rprelu'``.
        latent_clip: latents are kept in ``[-latent_clip, latent_clip]`` after each step; ``None``: they are free.
        gain: builds a factor of the accumulators, or returns ``None``, see :mod:`.gains`; ``None`` for most methods.
        g_bits: bits of the gradient that the accumulators receive; 32 leaves it as it is.
        real_activations: only the weights are binary.
    """

    activation: Callable[[InputSpec], ActivationBinarizer]
    weight: Callable[[LayerSpec], WeightBinarizer]
    act: str = 'identity'
    latent_clip: float | None = None
    gain: Callable[[LayerSpec], nn.Module | None] | None = None
    g_bits: int = 32
    real_activations: bool = False


METHODS = Registry('method', Method, common=['binarize_weights'])
register_method, list_methods = METHODS.register, METHODS.list


def build_method(spec: str | dict) -> Method:
    """The method for a name or for ``dict(type=name, **options)``; errors: see :meth:`.Registry.build`.

    Every method takes ``binarize_weights=False``: binary activations and real weights, the first of the two steps in which
    ReActNet, AdamBNN, Real-to-Binary and others are trained; the second step loads its latents.

    Raises:
        ValueError: for ``binarize_weights=False`` where activations are real, too.
    """
    method = METHODS.build(spec)
    if isinstance(spec, str) or spec.get('binarize_weights', True):
        return method
    if method.real_activations:
        raise ValueError(f'binarize_weights=False leaves nothing binary in the method {spec["type"]!r}, whose activations are '
                         'real')
    return replace(method, weight=lambda layer: FloatWeight())


def _sign(estimator, **kwargs):
    return lambda layer: SignActivation(estimator, **kwargs)


def _rsign(estimator):
    return lambda layer: RSign(layer.in_channels, estimator, layer.channel_dim)


def _sign_weight(estimator, scale):
    return lambda layer: SignWeight(estimator, scale)


@register_method('binaryconnect')
def binaryconnect(stochastic: bool = False) -> Method:
    """BinaryConnect, arXiv 1511.00363: binary weights, real activations."""
    return Method(lambda layer: FloatActivation(),
                  lambda layer: StochasticSignWeight() if stochastic else SignWeight('ste', 'none'),
                  act='relu', latent_clip=1.0, real_activations=True)


@register_method('binarynet')
def binarynet(estimator='clipped_ste') -> Method:
    """BinaryNet, arXiv 1602.02830: signs of weights and activations, no scale, hard tanh gradient."""
    return Method(_sign(estimator), _sign_weight('ste', 'none'), act='hardtanh', latent_clip=1.0)


@register_method('xnor')
def xnor(estimator='clipped_ste') -> Method:
    """XNOR-Net, arXiv 1603.05279: mean magnitude per filter as scale, centred weights.

    The input scale K of the paper is left out, as in the released code.
    """
    return Method(_sign(estimator), lambda layer: XNORWeight(), act='prelu', latent_clip=1.0)


@register_method('xnorpp')
def xnorpp(estimator='clipped_ste', spatial: int | None = 8) -> Method:
    """XNOR-Net++, arXiv 1909.13863: signs of both, and one learned scale, an outer product over channels, height and width.

    ``spatial``: numbers along height and width, interpolated to the size of the map; ``None``, and where there is no image:
    channels only.
    """

    return Method(_sign(estimator), _sign_weight('clipped_ste', 'none'), act='prelu', latent_clip=1.0,
                  gain=lambda layer: RankOneGain(layer.out_channels, layer.fan_in, layer.channel_dim,
                                                  spatial if layer.window else None))


@register_method('dorefa')
def dorefa(w_bits: int = 1, a_bits: int = 1, g_bits: int = 32) -> Method:
    """DoReFa-Net, arXiv 1606.06160: any bit width of weights, activations and gradients; activations are unsigned."""
    if g_bits != 32 and not 1 <= g_bits <= 16:
        raise ValueError(f'DoReFa gradients take 1 to 16 bits, or 32 for none, but got g_bits={g_bits}')
    weight = _sign_weight('ste', 'layer') if w_bits == 1 else lambda layer: DoReFaWeight(w_bits)
    return Method(lambda layer: DoReFaActivation(a_bits), weight, g_bits=g_bits)


@register_method('bireal')
def bireal(estimator='approx_sign') -> Method:
    """Bi-Real Net, arXiv 1808.00278: ApproxSign activations, magnitude-aware weights, a shortcut around each convolution."""
    return Method(_sign(estimator), _sign_weight('clipped_ste', 'channel'))


@register_method('irnet')
def irnet(t_min: float = 1e-1, t_max: float = 10.0) -> Method:
    """IR-Net, arXiv 1909.10788: standardised weights with a power-of-two scale, error decay estimator on both."""
    ede = {'type': 'ede', 't_min': t_min, 't_max': t_max}
    return Method(_sign(ede), lambda layer: IRNetWeight(ede), act='hardtanh')


@register_method('rbnn')
def rbnn(t_min: float = 1e-2, t_max: float = 10.0, alternations: int = 3) -> Method:
    """RBNN, arXiv 2009.13055: weights rotated towards their signs once per epoch, learned scale, activations standardised per
    sample, training-aware gradients."""
    gradient = {'type': 'training_aware', 't_min': t_min, 't_max': t_max}
    return Method(lambda layer: CenteredSign({**gradient, 'activation': True}, layer.channel_dim),
                  lambda layer: RBNNWeight(layer.out_channels, layer.fan_in, gradient, alternations), act='hardtanh')


@register_method('recu')
def recu(tau_min: float = 0.85, tau_max: float = 0.99) -> Method:
    """ReCU, arXiv 2103.12369: rectified clamp unit on the weights, learned scale, ApproxSign activations."""
    return Method(_sign('approx_sign', standardize=True),
                  lambda layer: ReCUWeight(layer.out_channels, layer.fan_in, tau_min, tau_max), act='hardtanh')


@register_method('reactnet')
def reactnet(estimator='approx_sign') -> Method:
    """ReActNet, arXiv 2003.03488: learned thresholds (RSign), magnitude-aware weights, RPReLU."""
    return Method(_rsign(estimator), _sign_weight('clipped_ste', 'channel'), act='rprelu')


@register_method('bidm')
def bidm(estimator='approx_sign') -> Method:
    """BiDM, arXiv 2412.05926: ReActNet's thresholds and weights, and a trained spatial scale of convolutions.

    The forward sign of the released linear layer leaves out the threshold, which its gradient has; here both have it. The
    cross-timestep connection and the patched distillation belong to the training of a diffusion model, see
    :mod:`bnn_plugins.integrations.diffusers`.
    """
    return replace(reactnet(estimator), gain=lambda layer: SpatialGain(**layer.window) if layer.window else None)


@register_method('binarydm')
def binarydm(order: int = 2, a_bits: int = 4, until: float | None = None) -> Method:
    """BinaryDM, arXiv 2404.05662: weights of two binary bases, activations of 2 to 8 bits (LSQ), or 32 for real ones.

    The paper has two bases in the outer blocks only: ``order=1`` for the inner ones. ``until``: see :class:`BasisWeight`.
    """
    return Method(lambda layer: FloatActivation() if a_bits == 32 else LSQActivation(a_bits),
                  lambda layer: BasisWeight(layer.out_channels, order, until), real_activations=a_bits == 32)


@register_method('adambnn')
def adambnn(estimator='approx_sign') -> Method:
    """AdamBNN, arXiv 2106.11309: the mathematics of ReActNet; its message is the recipe.

    Two steps (``binarize_weights=False``, then True) of Adam, with a small weight decay in the first and none in the second.
    """
    return reactnet(estimator)


@register_method('rebnn')
def rebnn(estimator='approx_sign') -> Method:
    """ReBNN, arXiv 2302.00956: ReActNet with a learned scale and a reconstruction loss whose weight follows the
    share of flipped signs."""
    return Method(_rsign(estimator), lambda layer: ReBNNWeight(layer.out_channels, layer.fan_in), act='rprelu')


@register_method('lwsdet')
def lwsdet(estimator='approx_sign') -> Method:
    """LWS-Det, CVPR 2021: each weight is searched for as in DARTS, arXiv 1806.09055, and the scale is learned.

    What supervises the search, layer by layer, is :class:`bnn_plugins.models.losses.LayerwiseLoss`.
    """
    return Method(_sign(estimator), lambda layer: SearchedWeight(layer.out_channels, layer.fan_in), act='prelu')


@register_method('real2binary')
def real2binary(estimator='clipped_ste', reduction: int = 8) -> Method:
    """Real-to-Binary, arXiv 2003.11535: signs of both, and a scale that a small network computes from the real input."""

    return Method(_sign(estimator), _sign_weight('clipped_ste', 'none'), act='prelu', latent_clip=1.0,
                  gain=lambda layer: DataDrivenGain(layer.in_channels, layer.out_channels, layer.channel_dim, reduction))


@register_method('bnext')
def bnext(until: float = 0.3) -> Method:
    """BNext, arXiv 2211.12933: weights that become signs in a temperature schedule, thresholds, gradients up to 1.5."""
    return Method(_rsign({'type': 'clipped_ste', 'clip': 1.5}), lambda layer: BNextWeight(until), act='prelu',
                  latent_clip=1.5)


@register_method('bnfree')
def bnfree(estimator='approx_sign') -> Method:
    """"BNN - BN = ?", arXiv 2104.08215: scaled weight standardisation for networks without norms, to be trained with adaptive
    gradient clipping."""
    return Method(_rsign(estimator), lambda layer: ScaledStandardWeight(layer.out_channels), act='rprelu')


@register_method('binaryvit')
def binaryvit(estimator='approx_sign') -> Method:
    """BinaryViT, arXiv 2306.16678: learned thresholds (RSign), linear weights centred per filter, RPReLU."""
    return Method(_rsign(estimator), lambda layer: CenteredSignWeight('clipped_ste', 'channel'), act='rprelu')


@register_method('bit')
def bit(signed: bool = True, initial: float = 1.0) -> Method:
    """BiT, arXiv 2205.13016: elastic activations with a learned step, linear weights centred over the layer, identity STE.

    ``signed=False``: levels 0 and 1, for layers behind a ReLU. ``initial``: first step.
    """
    return Method(lambda layer: ElasticActivation(layer.in_channels, layer.channel_dim, signed, initial),
                  lambda layer: CenteredSignWeight('ste', 'layer'), act='rprelu' if signed else 'relu')
