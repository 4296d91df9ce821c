"""Pictures of the documentation, drawn from the code.

    python -m benchmarks.docs.plots estimators     # docs/concepts/estimators.svg
"""

import argparse
from pathlib import Path

import matplotlib
import torch

from bnn_plugins import list_estimators, set_progress
from bnn_plugins.binarize import build_estimator

matplotlib.use('svg')
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[2] / 'docs'
PROGRESS = (0.0, 0.5, 1.0)  # of the training, for estimators with a schedule
SHADES = ('#fdd0a2', '#fd8d3c', '#a63603')
TOP = 5.4  # of the axis: the surrogates of schedules end far higher


def estimators(out: Path = DOCS / 'concepts/estimators.svg') -> Path:
    """One panel per estimator: the sign in black, the surrogate gradient in orange."""
    names = list_estimators()
    figure, axes = plt.subplots(-(-len(names) // 4), 4, figsize=(11, 5.2), sharex=True, sharey=True, layout='constrained')
    x = torch.linspace(-2, 2, 401)
    for axis, name in zip(axes.flat, names, strict=False):
        estimator = build_estimator(name)
        scheduled = hasattr(estimator, 'set_progress')
        for progress, shade in zip(PROGRESS, SHADES, strict=True) if scheduled else ((1.0, SHADES[1]),):
            set_progress(estimator, progress)
            points = x.clone().requires_grad_()
            estimator(points).sum().backward()
            axis.plot(x, points.grad, color=shade, linewidth=1.8, label=f'{progress:.0%} of training' if scheduled else None)
        with torch.no_grad():
            axis.plot(x, estimator(x), color='black', linewidth=1.2)
        axis.set(title=name, ylim=(-1.3, TOP))
        axis.axhline(0, color='lightgray', linewidth=0.6, zorder=0)
        if scheduled:
            axis.legend(fontsize=7, frameon=False, loc='upper left')
    for axis in axes.flat[len(names):]:
        axis.set_axis_off()
    figure.supxlabel('x')
    out.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams['svg.hashsalt'] = 'bnn_plugins'  # the same file each time
    figure.savefig(out, metadata={'Date': None})
    return out


PICTURES = {'estimators': estimators}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('picture', choices=PICTURES)
    print(PICTURES[parser.parse_args().picture]())


if __name__ == '__main__':
    main()
