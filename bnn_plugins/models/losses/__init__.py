"""Losses of classification and of distillation."""

from .classification import CrossEntropy, SquaredHinge
from .distillation import AttentionLoss, DistillationLoss, DistributionLoss, FeatureLoss, KnowledgeDistillation, Outputs

__all__ = ['AttentionLoss', 'CrossEntropy', 'DistillationLoss', 'DistributionLoss', 'FeatureLoss', 'KnowledgeDistillation',
           'Outputs', 'SquaredHinge']
