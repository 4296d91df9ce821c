"""Progress bars on standard error, where it is a terminal; ``bnn --quiet`` turns them off."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar('T')
SHOWN = True


def shown(console: Console) -> bool:
    return SHOWN and console.is_terminal


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """``items`` one by one, with a bar that says ``what``. It is drawn between two items only, so that it disturbs no timing.

    Args:
        total: how many there are, where ``items`` has no length.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, auto_refresh=False, disable=not shown(console)) as bar:
        task = bar.add_task(what, total=len(items) if total is None and hasattr(items, '__len__') else total)
        for item in items:
            bar.refresh()
            yield item
            bar.advance(task)
