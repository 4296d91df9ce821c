"""Image classification on mmengine alone: classifier, head, batched preprocessing, teachers."""

from .binary_classifier import BinaryClassifier
from .head import ClassifierHead
from .preprocessor import ImagePreprocessor
from .teacher import Teacher

__all__ = ['BinaryClassifier', 'ClassifierHead', 'ImagePreprocessor', 'Teacher']
