"""From a float model to a binary one: the config, the rules, the verb, the report. Needs torch only."""

from .binarize import binarize_
from .config import BNNConfig
from .report import BinarizationReport, LayerRow

__all__ = ['BNNConfig', 'BinarizationReport', 'LayerRow', 'binarize_']
