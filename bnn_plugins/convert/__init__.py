"""From a float model to a binary one: the config, the rules, the verb, the report. Needs torch only."""

from .binarize import CONVERTED, binarize_
from .config import BNNConfig
from .generic_rules import RULES as GENERIC_RULES
from .report import BinarizationReport, LayerRow
from .rules import Candidate, RuleSet, list_roles, list_rules, register_rules, remove_rules

__all__ = ['CONVERTED', 'BNNConfig', 'BinarizationReport', 'Candidate', 'LayerRow', 'RuleSet', 'binarize_', 'list_roles',
           'list_rules', 'register_rules', 'remove_rules']

register_rules(GENERIC_RULES)
