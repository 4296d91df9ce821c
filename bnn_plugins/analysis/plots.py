"""Plots and pages that need no other file. Needs matplotlib and Jinja2."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

# text, grid, and colours in the order of use
THEMES = {'light': ('#4b5563', '#e5e7eb', ('#2563eb', '#d97706', '#059669', '#9333ea', '#dc2626')),
          'dark': ('#a8b0bd', '#2f353f', ('#6ea8fe', '#f0b35a', '#4fd1a5', '#c4a0ff', '#ff8a8a'))}


def themed_svg(draw: Callable, size: tuple[float, float]) -> dict[str, str]:
    """``draw(figure, colours)`` once for each theme, as SVG data URIs: ``{'light': ..., 'dark': ...}``.

    Args:
        size: of the figure, in inches.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the page needs matplotlib: pip install matplotlib, or the extra bnn_plugins[report]') from error
    uris = {}
    for theme, (text, grid, colours) in THEMES.items():
        style = {**dict.fromkeys(('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'legend.labelcolor'), text),
                 'axes.edgecolor': grid, 'grid.color': grid, 'axes.grid': True, 'axes.axisbelow': True,
                 'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False, 'lines.linewidth': 1.8,
                 'svg.hashsalt': theme, 'svg.fonttype': 'none'}  # text as text: a third of the size, and it can be searched
        with rc_context(style):
            figure = Figure(figsize=size, layout='constrained')
            draw(figure, colours)
            buffer = BytesIO()
            figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
        uris[theme] = 'data:image/svg+xml;base64,' + base64.b64encode(buffer.getvalue()).decode()
    return uris


def render(template: Path, filters: dict[str, Callable], **values: object) -> str:
    """A page from a Jinja2 template, which may include ``page.css`` of this folder.

    Raises:
        ImportError: without Jinja2.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError('the report needs Jinja2: pip install jinja2, or the extra bnn_plugins[report]') from error
    environment = Environment(loader=FileSystemLoader([template.parent, Path(__file__).parent]), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    return environment.get_template(template.name).render(**values)
