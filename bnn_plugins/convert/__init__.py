"""From a float model to a binary one: the config, the rules, the verb, the report. Needs torch only."""

from .binarize import CONVERTED, binarize_
from .config import BNNConfig
from .report import BinarizationReport, LayerRow
from .roles import ROLES

__all__ = ['CONVERTED', 'ROLES', 'BNNConfig', 'BinarizationReport', 'LayerRow', 'binarize_']
