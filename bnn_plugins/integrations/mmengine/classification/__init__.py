"""Data of image classification for mmengine's Runner: datasets that hand out whole batches, and the accuracy."""

from .accuracy import Accuracy
from .datasets import CifarBinary, DigitImages, ParquetImages
from .folder import ImageFolder

__all__ = ['Accuracy', 'CifarBinary', 'DigitImages', 'ImageFolder', 'ParquetImages']
