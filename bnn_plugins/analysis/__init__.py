"""What a model costs. Needs torch only."""

from .summary import Summary, SummaryRow, summarize

__all__ = ['Summary', 'SummaryRow', 'summarize']
