"""The mathematics: estimators, binarizers of activations and weights, methods. Needs torch only."""

from .activations import ActivationBinarizer, DoReFaActivation, FloatActivation, RSign, SignActivation
from .estimators import Estimator, build_estimator, list_estimators, sign
from .lookup import check_keys, unknown
from .methods import Method, build_method, list_methods, register_method
from .schedule import clip_latents_, set_progress
from .weights import (
    DoReFaWeight,
    IRNetWeight,
    ReCUWeight,
    SignWeight,
    StochasticSignWeight,
    WeightBinarizer,
    XNORWeight,
)

__all__ = [
    'ActivationBinarizer', 'DoReFaActivation', 'DoReFaWeight', 'Estimator', 'FloatActivation', 'IRNetWeight', 'Method',
    'RSign', 'ReCUWeight', 'SignActivation', 'SignWeight', 'StochasticSignWeight', 'WeightBinarizer', 'XNORWeight',
    'build_estimator', 'build_method', 'check_keys', 'clip_latents_', 'list_estimators', 'list_methods', 'register_method',
    'set_progress', 'sign', 'unknown',
]
