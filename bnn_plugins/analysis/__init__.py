"""What a model costs. Needs torch only."""

from .machine import processor
from .summary import Summary, SummaryRow, summarize

__all__ = ['Summary', 'SummaryRow', 'processor', 'summarize']
