"""Training with mmengine: hooks, optimizer settings, mixed precision on a CPU."""

from .amp import BFloat16OptimWrapper
from .hooks import BinaryTrainingHook, EpochSeedHook
from .optimizers import BinaryOptimWrapperConstructor

__all__ = ['BFloat16OptimWrapper', 'BinaryOptimWrapperConstructor', 'BinaryTrainingHook', 'EpochSeedHook']
