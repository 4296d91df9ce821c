"""The profiler's results for people: tables in the terminal, and one HTML page that needs no other file."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Console

from ..convert.tables import report_table
from .plots import render, themed_svg
from .summary import size
from .throughput_layers import Breakdown
from .throughput_run import Row, Throughput
from .throughput_variants import BASELINES

TEMPLATE = Path(__file__).with_name('throughput.html.j2')
GROUPS = {'binary': 'binary operators', 'float': 'real convolutions and products', 'rest': 'norms, activations, copies, ...',
          'between': 'between operators (Python, dispatch)'}
SHOWN = 0.005  # layers below this share of the time are one line together
RATIOS = {baseline: f'x_{baseline.replace("-", "_")}' for baseline in BASELINES}


def cases(result: Throughput) -> Iterator[tuple[str, list[tuple[int, Row]]]]:
    """Rows that were measured together, with their index, under a title."""
    def case(item: tuple[int, Row]) -> tuple:
        row = item[1]
        return row.part, row.batch, row.height, row.width, row.threads
    for (part, batch, height, width, threads), items in groupby(enumerate(result.rows), case):
        yield f'{part}, batch {batch}, {height}x{width}, {threads} thread{"s" if threads > 1 else ""}', list(items)


def ratio(value: float | str) -> str:
    """``'3.4x'``; ``''`` for none."""
    return f'{value:.3g}x' if value != '' else ''


def cells(row: Row) -> list[str]:
    """A row of the tables."""
    return [row.variant, row.backend, f'{row.median_ms:.3f}', f'{row.q1_ms:.3f} - {row.q3_ms:.3f}', f'{row.min_ms:.3f}',
            f'{row.images_per_s:,.1f}', *(ratio(getattr(row, column)) for column in RATIOS.values()), size(row.model_bytes),
            size(row.peak_bytes)]


HEADINGS = ('variant', 'backend', 'median ms', 'quartiles', 'min', 'images/s', *(f'x {name}' for name in RATIOS), 'model',
            'peak')


def layer_lines(breakdown: Breakdown) -> list[list[str]]:
    """Layers in their order; those of little time together."""
    total = sum(row.ms for row in breakdown.rows) + breakdown.between_ms or 1.0
    lines, small = [], 0.0
    for row in breakdown.rows:
        if row.ms < SHOWN * total:
            small += row.ms
            continue
        speed = f'{row.gmacs:,.0f}' if row.macs else ''
        ceiling = f'{row.of_ceiling:.0%}' if row.macs and row.ceiling else ''
        lines.append([row.layer, row.kind, row.group, row.operators, row.backend, row.output, f'{row.ms:.3f}',
                      f'{row.ms / total:.1%}', f'{row.macs / 1e6:,.1f}' if row.macs else '', speed, ceiling])
    rest = [('(the others)', small), ('(between operators)', breakdown.between_ms)]
    return lines + [[name, '', '', '', '', '', f'{ms:.3f}', f'{ms / total:.1%}', '', '', ''] for name, ms in rest if ms]


LAYER_HEADINGS = ('layer', 'type', 'group', 'operators', 'ran on', 'output', 'ms', 'share', 'MMAC', 'GMAC/s', 'of ceiling')


def print_throughput(result: Throughput, console: Console) -> None:
    """Tables of every combination; speed-ups are missing where the check is red."""
    for title, items in cases(result):
        console.print(report_table(title, HEADINGS, [cells(row) for _, row in items], shares(result, items),
                                   right=HEADINGS[2:], no_wrap=True))
    for what, why in result.skipped:
        console.print(f'not measured: {what}: {why}', highlight=False, markup=False)
    if not result.ok:
        console.print('A check is RED: no speed-up of those models is given.', style='bold red')


def shares(result: Throughput, items: list[tuple[int, Row]]) -> str:
    """Where the time of the first packed form goes, in words."""
    for index, row in items:
        if index in result.breakdowns and row.backend:
            breakdown = result.breakdowns[index]
            parts = [f'{breakdown.share(group):.0%} {text}' for group, text in GROUPS.items()]
            return f'{row.clock}, {row.rounds} interleaved rounds. Time of {row.variant}: {"; ".join(parts)}.'
    return f'{items[0][1].clock}, {items[0][1].rounds} interleaved rounds.'


def write_throughput(result: Throughput, out: str | Path) -> list[Path]:
    """Write ``throughput.csv``, ``layers.csv`` and ``throughput.html`` into the folder ``out``; returns their paths.

    Raises:
        ImportError: without Jinja2 or matplotlib.
    """
    out = Path(out)
    paths = [result.to_csv(out / 'throughput.csv'), result.layers_to_csv(out / 'layers.csv'), out / 'throughput.html']
    paths[-1].write_text(page(result))
    return paths


def page(result: Throughput) -> str:
    """The HTML page."""
    sections = []
    for title, items in cases(result):
        layers = [(row, layer_lines(result.breakdowns[index]), draw_layers(result.breakdowns[index], row))
                  for index, row in items if index in result.breakdowns]
        sections.append(dict(title=title, rows=[row for _, row in items], caption=shares(result, items), layers=layers,
                             plot=draw_times([row for _, row in items]), shares=draw_shares(result, items)))
    ceilings = {f'Ceilings, {threads} thread{"s" if threads > 1 else ""}': ', '.join(
        f'{group} {value:,.0f} GMAC/s' for group, value in groups.items()) for threads, groups in result.ceilings.items()}
    facts = {**result.facts, **ceilings, **{key: value for key, value in result.machine.items() if value}}
    return render(TEMPLATE, {}, result=result, sections=sections, facts=facts, sweep=draw_sweep(result), cells=cells,
                  headings=HEADINGS, layer_headings=LAYER_HEADINGS)


def draw_times(rows: list[Row]) -> dict[str, str]:
    """Medians as bars, with quartiles."""
    def draw(figure, colours) -> None:
        axes = figure.subplots()
        places = range(len(rows))
        errors = [[max(row.median_ms - row.q1_ms, 0) for row in rows], [max(row.q3_ms - row.median_ms, 0) for row in rows]]
        axes.barh(places, [row.median_ms for row in rows], xerr=errors, height=0.62, ecolor=colours[4],
                  color=[colours[0] if row.backend else colours[1] for row in rows])
        axes.set_yticks(places, [row.variant for row in rows])
        axes.invert_yaxis()
        axes.grid(axis='y', visible=False)
        axes.margins(x=0.12)
        for place, row in zip(places, rows, strict=True):
            axes.annotate(f'{row.median_ms:.3g} ms', (row.q3_ms, place), xytext=(5, 0), textcoords='offset points',
                          va='center')
        axes.set(xlabel=f'ms per call, median and quartiles ({rows[0].clock})')
    return themed_svg(draw, (10.4, 0.9 + 0.34 * len(rows)))


def draw_shares(result: Throughput, items: list[tuple[int, Row]]) -> dict[str, str] | None:
    """Where the time goes: one stacked bar for each form that was broken down."""
    known = [(row.variant, result.breakdowns[index]) for index, row in items if index in result.breakdowns]
    if not known:
        return None

    def draw(figure, colours) -> None:
        axes = figure.subplots()
        left = [0.0] * len(known)
        for (group, text), colour in zip(GROUPS.items(), colours, strict=False):
            widths = [100 * breakdown.share(group) for _, breakdown in known]
            axes.barh([name for name, _ in known], widths, left=left, color=colour, label=text, height=0.62)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.grid(axis='y', visible=False)
        axes.set(xlabel='% of the time', xlim=(0, 100))
        figure.legend(loc='outside upper center', ncols=4, fontsize=8.5)
    return themed_svg(draw, (10.4, 1.3 + 0.34 * len(known)))


def draw_layers(breakdown: Breakdown, row: Row) -> dict[str, str] | None:
    """GMAC/s of each layer with multiply-accumulates, against the ceiling of its group."""
    layers = [layer for layer in breakdown.rows if layer.macs and layer.ms]
    if not layers:
        return None

    def draw(figure, colours) -> None:
        axes = figure.subplots()
        known = dict(zip(('binary', 'float'), colours, strict=False))
        axes.bar(range(len(layers)), [layer.gmacs for layer in layers], color=[known[layer.group] for layer in layers])
        for group, colour in known.items():
            ceiling = max((layer.ceiling for layer in layers if layer.group == group), default=0)
            if ceiling:
                axes.axhline(ceiling, color=colour, linestyle='--', linewidth=1.2)
                axes.text(1.005, ceiling, f'{group}:\n{ceiling:,.0f} at best', color=colour, va='center', fontsize=8.5,
                          transform=axes.get_yaxis_transform())
        labels = [layer.layer.removeprefix('detector.') for layer in layers]
        axes.set_xticks(range(len(layers)), labels, rotation=90, fontsize=7)
        axes.grid(axis='x', visible=False)
        axes.set(ylabel='GMAC/s', yscale='log', title=f'{row.variant}: speed of each layer')
    return themed_svg(draw, (10.4, 4.2))


def draw_sweep(result: Throughput) -> dict[str, str] | None:
    """Images per second over the combinations, one panel per part; ``None`` where there is only one combination."""
    parts: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for row in result.rows:
        label = f'{row.batch} of {row.height}x{row.width}\n{row.threads} thread{"s" if row.threads > 1 else ""}'
        parts.setdefault(row.part, {}).setdefault(row.variant, []).append((label, row.images_per_s))
    if max((len(points) for lines in parts.values() for points in lines.values()), default=0) < 2:
        return None

    def draw(figure, colours) -> None:
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        styles = [(colour, dash) for dash in ('-', '--', ':') for colour in colours]
        for axes, (part, lines) in zip(panels, parts.items(), strict=True):
            for (variant, points), (colour, dash) in zip(lines.items(), styles, strict=False):
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker='o', markersize=4, label=variant)
            axes.set(title=part, yscale='log')
            axes.tick_params(axis='x', labelsize=7.5)
        panels[0].set(ylabel='images/s')
        figure.legend(*panels[0].get_legend_handles_labels(), loc='outside upper center', ncols=4, fontsize=8.5)
    return themed_svg(draw, (10.4, 4.2))
