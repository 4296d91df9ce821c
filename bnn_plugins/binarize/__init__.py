"""The mathematics: estimators, binarizers of activations and weights, methods. Needs torch only."""

from .activations import (
    ActivationBinarizer,
    BinaryInput,
    CenteredSign,
    DoReFaActivation,
    FloatActivation,
    RSign,
    SignActivation,
)
from .elastic import CenteredSignWeight, ElasticActivation
from .estimators import Estimator, build_estimator, list_estimators, register_estimator, sign
from .gains import DataDrivenGain, RankOneGain
from .gradients import quantize_gradient
from .lookup import Registry, check_keys, unknown
from .methods import InputSpec, LayerSpec, Method, build_method, list_methods, register_method
from .probabilities import ProbabilityBinarizer, build_probability, list_probabilities, register_probability
from .schedule import (
    TrainingUpdates,
    after_step_,
    clip_latents_,
    follows_training,
    set_parts,
    set_progress,
    start_epoch_,
)
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

__all__ = [
    'ActivationBinarizer', 'BNextWeight', 'BinaryInput', 'CenteredSign', 'CenteredSignWeight', 'DataDrivenGain',
    'DoReFaActivation', 'DoReFaWeight', 'ElasticActivation', 'Estimator', 'FloatActivation', 'FloatWeight', 'IRNetWeight',
    'InputSpec', 'LayerSpec', 'Method', 'ProbabilityBinarizer', 'RBNNWeight', 'RSign', 'RankOneGain', 'ReBNNWeight',
    'ReCUWeight', 'Registry', 'ScaledStandardWeight', 'SearchedWeight', 'SignActivation', 'SignWeight', 'StochasticSignWeight',
    'TrainingUpdates', 'WeightBinarizer', 'XNORWeight', 'after_step_', 'build_estimator', 'build_method', 'build_probability',
    'check_keys', 'clip_latents_', 'follows_training', 'list_estimators', 'list_methods', 'list_probabilities',
    'quantize_gradient', 'register_estimator', 'register_method', 'register_probability', 'set_parts', 'set_progress', 'sign',
    'start_epoch_', 'unknown',
]
