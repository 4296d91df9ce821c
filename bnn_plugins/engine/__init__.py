"""Training with mmengine: hooks, optimizers and their settings, mixed precision on a CPU."""

from .amp import BFloat16OptimWrapper
from .bop import Bop
from .clipping import AdaptiveGradientClippingHook, adaptive_clip_grad_
from .float_start import FloatStartHook
from .hooks import BinaryTrainingHook, EpochSeedHook, SyncStatisticsHook
from .optimizers import BinaryOptimWrapperConstructor
from .resume import ResumeHook
from .statistics import BinaryStatisticsHook
from .unreadable import UnreadableImagesHook

__all__ = ['AdaptiveGradientClippingHook', 'BFloat16OptimWrapper', 'BinaryOptimWrapperConstructor', 'BinaryStatisticsHook',
           'BinaryTrainingHook', 'Bop', 'EpochSeedHook', 'FloatStartHook', 'ResumeHook', 'SyncStatisticsHook',
           'UnreadableImagesHook', 'adaptive_clip_grad_']
