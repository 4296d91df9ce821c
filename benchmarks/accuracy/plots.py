"""The plots of docs/accuracy.md, from the results files: ``python -m benchmarks.accuracy.plots``. Needs matplotlib."""

from collections import defaultdict
from pathlib import Path
from statistics import mean

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..rows import read_rows
from .run import RESULTS, ROOT

DOCS = ROOT / 'docs/accuracy'
GREY = '#6b7280'  # readable on white and on black
STYLE = {**dict.fromkeys(('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'axes.edgecolor'), GREY),
         'axes.grid': True, 'grid.alpha': 0.3, 'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
         'legend.labelcolor': GREY, 'svg.hashsalt': 'bnn_plugins', 'font.size': 9}


def grouped(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """Rows that agree in ``names``, in order."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(sorted(groups.items()))


def average(rows: list[dict], name: str) -> float:
    return mean(float(row[name]) for row in rows)


def accuracy_against_ops(axes: Axes, rows: list[dict]) -> None:
    """One point per network, method and expansion."""
    for (network, method, expand), group in grouped(rows, 'network', 'method', 'expand').items():
        x, y = average(group, 'ops') / 1e6, average(group, 'test_top1')
        axes.plot(x, y, 'o' if expand == 'none' else '^')
        name = ' '.join([network, method, *([expand] if expand != 'none' else [])])
        axes.annotate(name, (x, y), xytext=(4, 2), textcoords='offset points')
    axes.set(xlabel='OPs (M)', ylabel='test accuracy (%)')


def curves(figure: Figure, rows: list[dict]) -> None:
    """Training and held-out accuracy over the length of the training; one column per method."""
    methods = sorted({row['method'] for row in rows})
    colours = {expand: f'C{place}' for place, expand in enumerate(sorted({row['expand'] for row in rows}))}
    all_axes = figure.subplots(2, len(methods), sharex=True, sharey='row', squeeze=False)
    for column, method in enumerate(methods):
        for line, (name, title) in enumerate((('test_top1', 'test'), ('train_top1', 'training'))):
            axes = all_axes[line][column]
            for (expand,), group in grouped([row for row in rows if row['method'] == method], 'expand').items():
                points = sorted((int(epochs), average(part, name)) for (epochs,), part in grouped(group, 'epochs').items())
                axes.plot(*zip(*points, strict=True), marker='o', markersize=3, color=colours[expand],
                          label='base' if expand == 'none' else expand)
            axes.set(xscale='log', title=method if line == 0 else '')
            if column == 0:
                axes.set_ylabel(f'{title} accuracy (%)')
        all_axes[1][column].set_xlabel('epochs')
    lines = {line.get_label(): line for axes in all_axes[0] for line in axes.lines}
    figure.legend(lines.values(), lines.keys(), loc='outside lower center', ncols=len(lines), fontsize=7)


def draw(path: Path, size: tuple[float, float], paint) -> None:
    """``paint(figure)`` as SVG; the same results give the same bytes."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout='constrained')
        paint(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={'Date': None})


def progress(axes: Axes, rows: list[dict]) -> None:
    """Accuracy at each validation of every run, finished or not."""
    for row in rows:
        values = [float(value) for value in row['val_top1'].split()]
        axes.plot([int(row['interval']) * place for place in range(1, len(values) + 1)], values, linewidth=1, label=row['key'])
    axes.set(xlabel='epoch', ylabel='test accuracy (%)')
    axes.legend(fontsize=7)


def main():
    tau, published, validations = (read_rows(RESULTS / f'{name}.csv') for name in ('cpu_tau', 'cpu_resnet20',
                                                                                    'cpu_resnet20_curves'))
    validations = [row for row in validations if row['val_top1']]
    if published:
        draw(DOCS / 'resnet20.svg', (6, 4), lambda figure: accuracy_against_ops(figure.subplots(), published))
    if validations:
        draw(DOCS / 'resnet20_curves.svg', (7, 4), lambda figure: progress(figure.subplots(), validations))
    if tau:
        draw(DOCS / 'tau_curves.svg', (8, 5), lambda figure: curves(figure, tau))
    print(f'{DOCS}: {", ".join(sorted(path.name for path in DOCS.glob("*.svg"))) or "no results yet"}')


if __name__ == '__main__':
    main()
