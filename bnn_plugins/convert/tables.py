"""The tables of all reports."""

import io
from collections.abc import Collection, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def report_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str | Text | None = None,
                 right: Collection[str] = (), **column_options) -> Table:
    """A table of plain text: brackets in a cell, as of a pattern, are no markup. The columns in ``right`` are numbers."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify='right' if column in right else 'left', **column_options)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def printed(report, width: int = 140) -> str:
    """What a terminal of so many columns would show of an object with ``__rich__``."""
    text = io.StringIO()
    Console(width=width, file=text).print(report)
    return text.getvalue()
