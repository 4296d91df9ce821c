"""The tables of all reports. rich is imported when one is made: it was a third of the time to import this package."""

import io
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def report_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = '',
                 right: Collection[str] = (), footer: Sequence[str] = (), **column_options) -> 'Table':
    """A table of plain text: brackets in a cell, as of a pattern, are no markup. The columns in ``right`` are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, caption=Text(caption, 'table.caption'), box=SIMPLE_HEAD, show_footer=bool(footer))
    for column, total in zip(columns, footer or [''] * len(columns), strict=True):
        table.add_column(column, Text(total), justify='right' if column in right else 'left', **column_options)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def printed(report, width: int = 140) -> str:
    """What a terminal of so many columns would show of an object with ``__rich__``."""
    from rich.console import Console

    text = io.StringIO()
    Console(width=width, file=text).print(report)
    return text.getvalue()
