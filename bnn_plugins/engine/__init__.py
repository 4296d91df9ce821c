"""Training with mmengine: hooks and optimizer constructors."""

from .hooks import BinaryTrainingHook, EpochSeedHook
from .optimizers import BinaryOptimWrapperConstructor

__all__ = ['BinaryOptimWrapperConstructor', 'BinaryTrainingHook', 'EpochSeedHook']
