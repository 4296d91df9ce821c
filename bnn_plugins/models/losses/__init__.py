"""Losses of classification and of distillation."""

from .classification import CrossEntropy, SquaredHinge
from .detection import InstanceEntropyLoss, ResponseLoss
from .distillation import AttentionLoss, DistillationLoss, DistributionLoss, FeatureLoss, KnowledgeDistillation, Outputs
from .layerwise import LayerwiseLoss
from .relations import DMD, AttnScoreMSE, HiddenMSE

__all__ = ['DMD', 'AttentionLoss', 'AttnScoreMSE', 'CrossEntropy', 'DistillationLoss', 'DistributionLoss', 'FeatureLoss',
           'HiddenMSE', 'InstanceEntropyLoss', 'KnowledgeDistillation', 'LayerwiseLoss', 'Outputs', 'ResponseLoss',
           'SquaredHinge']
