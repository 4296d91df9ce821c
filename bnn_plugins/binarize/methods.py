"""Methods: named bundles of activation binarizer, weight binarizer, block non-linearity and latent clipping.

A method is one decorated function: its keyword arguments are the options that a config may set
(``method=dict(type='dorefa', a_bits=2)``), its return value is a :class:`Method`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .activations import ActivationBinarizer, DoReFaActivation, FloatActivation, RSign, SignActivation
from .lookup import check_keys, unknown
from .weights import (
    DoReFaWeight,
    IRNetWeight,
    ReCUWeight,
    SignWeight,
    StochasticSignWeight,
    WeightBinarizer,
    XNORWeight,
)

__all__ = ['Method', 'build_method', 'list_methods', 'register_method']


@dataclass(frozen=True)
class Method:
    """What a binary layer needs to know.

    Attributes:
        activation: ``(channels, channel_dim) -> ActivationBinarizer``.
        weight: ``(out_channels, fan_in) -> WeightBinarizer``.
        act: non-linearity after the shortcut in the native blocks: ``'identity'``, ``'hardtanh'``, ``'relu'``, ``'prelu'``
            or ``'rprelu'``; also what replaces a ReLU in a converted model when it is not ``'identity'`` or ``'rprelu'``.
        latent_clip: latents are kept in ``[-latent_clip, latent_clip]`` after each step; ``None``: they are free.
    """

    activation: Callable[[int, int], ActivationBinarizer]
    weight: Callable[[int, int], WeightBinarizer]
    act: str = 'identity'
    latent_clip: float | None = None


_METHODS: dict[str, Callable[..., Method]] = {}


def register_method(name: str):
    """Decorator: make a function that returns a :class:`Method` known under ``name``."""

    def register(build: Callable[..., Method]) -> Callable[..., Method]:
        _METHODS[name] = build
        return build

    return register


def list_methods() -> list[str]:
    """Names that ``method=`` accepts."""
    return list(_METHODS)


def build_method(spec: str | dict) -> Method:
    """The method for a name or for ``dict(type=name, **options)``.

    Raises:
        ValueError: for an unknown name or option; the nearest known one is named.
    """
    if not isinstance(spec, str | dict):
        raise TypeError(f"method must be a name or dict(type=name, ...), but got {type(spec).__name__}")
    options = {'type': spec} if isinstance(spec, str) else dict(spec)
    name = options.pop('type', None)
    if name not in _METHODS:
        raise ValueError(unknown('method', name, _METHODS))
    build = _METHODS[name]
    check_keys(f'option of the method {name!r}', options, inspect.signature(build).parameters)
    return build(**options)


def _sign(estimator, **kwargs):
    return lambda channels, channel_dim: SignActivation(estimator, **kwargs)


def _rsign(estimator):
    return lambda channels, channel_dim: RSign(channels, estimator, channel_dim)


def _sign_weight(estimator, scale):
    return lambda out_channels, fan_in: SignWeight(estimator, scale)


@register_method('binaryconnect')
def binaryconnect(stochastic: bool = False) -> Method:
    """BinaryConnect, arXiv 1511.00363: binary weights, real activations."""
    weight = (lambda out_channels, fan_in: StochasticSignWeight()) if stochastic else _sign_weight('ste', 'none')
    return Method(lambda channels, channel_dim: FloatActivation(), weight, act='relu', latent_clip=1.0)


@register_method('binarynet')
def binarynet(estimator='clipped_ste') -> Method:
    """BinaryNet, arXiv 1602.02830: signs of weights and activations, no scale, hard tanh gradient."""
    return Method(_sign(estimator), _sign_weight('ste', 'none'), act='hardtanh', latent_clip=1.0)


@register_method('xnor')
def xnor(estimator='clipped_ste') -> Method:
    """XNOR-Net, arXiv 1603.05279: mean magnitude per filter as scale, centred weights.

    The input scale K of the paper is left out, as in the released code.
    """
    return Method(_sign(estimator), lambda out_channels, fan_in: XNORWeight(), act='prelu', latent_clip=1.0)


@register_method('dorefa')
def dorefa(w_bits: int = 1, a_bits: int = 1) -> Method:
    """DoReFa-Net, arXiv 1606.06160: any bit width of weights and activations; activations are unsigned."""
    weight = _sign_weight('ste', 'layer') if w_bits == 1 else lambda out_channels, fan_in: DoReFaWeight(w_bits)
    return Method(lambda channels, channel_dim: DoReFaActivation(a_bits), weight)


@register_method('bireal')
def bireal(estimator='approx_sign') -> Method:
    """Bi-Real Net, arXiv 1808.00278: ApproxSign activations, magnitude-aware weights, a shortcut around each convolution."""
    return Method(_sign(estimator), _sign_weight('clipped_ste', 'channel'))


@register_method('irnet')
def irnet(t_min: float = 1e-1, t_max: float = 10.0) -> Method:
    """IR-Net, arXiv 1909.10788: standardised weights with a power-of-two scale, error decay estimator on both."""
    ede = {'type': 'ede', 't_min': t_min, 't_max': t_max}
    return Method(_sign(ede), lambda out_channels, fan_in: IRNetWeight(ede), act='hardtanh')


@register_method('recu')
def recu(tau_min: float = 0.85, tau_max: float = 0.99) -> Method:
    """ReCU, arXiv 2103.12369: rectified clamp unit on the weights, learned scale, ApproxSign activations."""
    weight = partial(ReCUWeight, tau_min=tau_min, tau_max=tau_max)
    return Method(_sign('approx_sign', standardize=True), weight, act='hardtanh')


@register_method('reactnet')
def reactnet(estimator='approx_sign') -> Method:
    """ReActNet, arXiv 2003.03488: learned thresholds (RSign), magnitude-aware weights, RPReLU."""
    return Method(_rsign(estimator), _sign_weight('clipped_ste', 'channel'), act='rprelu')
