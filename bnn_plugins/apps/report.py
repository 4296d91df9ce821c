"""The report of a demo run: one HTML page that needs no other file, and one JSON file."""

import base64
import json
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..analysis import Summary
from ..analysis.plots import render, themed_svg
from ..analysis.summary import size

TEMPLATE = Path(__file__).with_name('report.html.j2')


@dataclass
class Boxes:
    """Boxes on one image.

    Attributes:
        bboxes: ``(x1, y1, x2, y2)`` each, in pixels.
        labels: indices of classes.
        scores: ``None`` for ground truth.
    """

    bboxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    scores: Sequence[float] | None = None


@dataclass
class Sample:
    """One test image.

    Attributes:
        image: its file.
        width: in pixels.
        height: in pixels.
        panels: caption of a column -> boxes that are drawn there.
    """

    image: Path
    width: int
    height: int
    panels: dict[str, Boxes]


@dataclass
class Report:
    """What the page shows.

    Attributes:
        title: the headline, plain text.
        lead: the sentence under it, plain text.
        numbers: what ``report.json`` holds; ``latent_map50``, ``packed_map50``, ``bytes_float``, ``bytes_packed``, ``minutes``
            (all of it) and ``minutes_training`` are shown large.
        facts: what ran, label -> text.
        commands: how to run it again, one shell line each.
        classes: names of the labels.
        palette: colours ``(r, g, b)`` of the labels.
        samples: test images.
        training: see :func:`read_scalars`.
        validation: see :func:`read_scalars`.
        summary: of the latent model.
        score_thr: boxes of lower scores are not drawn.
    """

    title: str
    lead: str
    numbers: dict
    facts: dict[str, str]
    commands: list[str]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    samples: list[Sample]
    training: dict[str, dict[int, float]]
    validation: dict[str, dict[int, float]]
    summary: Summary
    score_thr: float = 0.3


def write_report(report: Report, out: str | Path) -> Path:
    """Write ``out/report.html`` and ``out/report.json``; returns the page's path.

    Raises:
        ImportError: without Jinja2 or matplotlib.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    filters = dict(size=size, data_uri=data_uri, hex='#{0[0]:02x}{0[1]:02x}{0[2]:02x}'.format)
    page = render(TEMPLATE, filters, report=report, summary=report.summary,
                  plots=draw_curves(report.training, report.validation), ink=ink)
    (out / 'report.json').write_text(json.dumps({**report.numbers, 'facts': report.facts}, indent=2, allow_nan=False) + '\n')
    path = out / 'report.html'
    path.write_text(page)
    return path


def read_scalars(work_dir: str | Path) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """What a run, and those that resumed it, logged in ``work_dir``.

    Returns:
        ``{name: {step: value}}`` of training (per iteration) and of validation (per epoch); where a resumed run repeats a
        step, the later run counts.
    """
    training, validation = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):  # the folders are named by their time
        for line in path.read_text().splitlines():
            record = json.loads(line)
            step = record.pop('step')
            for name, value in record.items():
                (training if 'loss' in record else validation).setdefault(name.rpartition('/')[-1], {})[step] = value
    return training, validation


def draw_curves(training: dict[str, dict[int, float]], validation: dict[str, dict[int, float]]) -> dict[str, str]:
    """Losses and mAPs of :func:`read_scalars` side by side, as SVG data URIs: ``{'light': ..., 'dark': ...}``."""
    losses = {name.replace('_', ' '): points for name, points in training.items() if name.startswith('loss')}
    shown = {'bbox_mAP_50': 'mAP@0.5', 'bbox_mAP': 'mAP@0.5:0.95', 'mAP': 'mAP'}
    maps = {label: validation[name] for name, label in shown.items() if name in validation}

    def draw(figure, colours: Sequence[str]) -> None:
        left, right = figure.subplots(1, 2)
        for axes, curves, marker in ((left, losses, ''), (right, maps, 'o')):
            for (label, points), colour in zip(curves.items(), colours, strict=False):
                axes.plot(list(points), list(points.values()), color=colour, marker=marker, markersize=4, label=label)
        left.set(title='Training loss', xlabel='iteration', ylim=(0, None))
        right.set(title='Validation', xlabel='epoch', ylim=(0, 1))
        right.xaxis.get_major_locator().set_params(integer=True)
        for axes in (left, right):
            if axes.lines:
                axes.legend(loc='upper right' if axes is left else 'lower right')
    return themed_svg(draw, (10.4, 3.3))


def data_uri(path: str | Path) -> str:
    """The bytes of an image file as a ``data:`` address."""
    kind = mimetypes.guess_type(str(path))[0] or 'application/octet-stream'
    return f'data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}'


def ink(colour: Sequence[int]) -> str:
    """Black or white, whichever reads better on ``colour``."""
    red, green, blue = colour
    return '#000' if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else '#fff'
