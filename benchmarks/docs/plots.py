"""Pictures of the documentation, drawn from the code.

    python -m benchmarks.docs.plots estimators     # docs/concepts/estimators.svg
    python -m benchmarks.docs.plots detections     # docs/detections.png, with the float twin in work_dirs/zoo
"""

import argparse
import copy
import json
from pathlib import Path

import matplotlib
import torch

from bnn_plugins import list_estimators, load, quantize_rest_, set_progress
from bnn_plugins.binarize import build_estimator
from bnn_plugins.integrations.mmengine.pack import calibration_batches
from bnn_plugins.integrations.mmengine.run import latest_checkpoint, load_config

matplotlib.use('svg')
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[2] / 'docs'
PROGRESS = (0.0, 0.5, 1.0)  # of the training, for estimators with a schedule
SHADES = ('#fdd0a2', '#fd8d3c', '#a63603')
LEAST_SCORE = 0.3  # of boxes that are drawn
DETECTOR = 'retinanet_bnn-r18_fpn_digits'
FLOAT_TWIN = 'configs/detection/retinanet_r18_fpn_digits.py'
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
    plt.close(figure)
    return out


def detectors(checkpoints: Path) -> dict:
    """Title -> detector: the float twin, the twin in int8, the packed file of the zoo."""
    from mmdet.apis import init_detector
    twin = init_detector(FLOAT_TWIN, latest_checkpoint(checkpoints / Path(FLOAT_TWIN).stem), device='cpu')
    quantized = copy.deepcopy(twin)
    batches = calibration_batches(load_config(FLOAT_TWIN), 32)
    quantize_rest_(quantized, batches, run=lambda model, batch: model.test_step(batch))
    return {'float32 twin': twin, 'the twin in int8': quantized, '1-bit, packed': load(DETECTOR)}


def detections(out: Path = DOCS / 'detections.png', columns: int = 5, models: dict | None = None) -> Path:
    """Test canvases at equal distances: what is there, and what each of ``models`` (title -> detector) finds."""
    from mmdet.apis import inference_detector
    models = models or detectors(Path('work_dirs/zoo'))
    data = Path('work_dirs/digits')
    truth = json.loads((data / 'annotations/test.json').read_text())
    images = truth['images'][::len(truth['images']) // columns][:columns]
    rows = 1 + len(models)
    figure, axes = plt.subplots(rows, columns, figsize=(2 * columns, 2.15 * rows), layout='constrained')
    for column, image in enumerate(images):
        path = data / 'test' / image['file_name']
        boxes = [(*box['bbox'], str(box['category_id']), None) for box in truth['annotations']
                 if box['image_id'] == image['id']]
        panels = {'ground truth': boxes}
        for title, model in models.items():
            found = inference_detector(model, str(path)).pred_instances
            found = found[found.scores >= LEAST_SCORE]
            panels[title] = [(x, y, right - x, bottom - y, str(label), score) for (x, y, right, bottom), label, score
                             in zip(*(found[key].tolist() for key in ('bboxes', 'labels', 'scores')), strict=True)]
        for axis, (title, drawn) in zip(axes[:, column], panels.items(), strict=True):
            axis.imshow(plt.imread(path))
            axis.set(xticks=[], yticks=[])
            for x, y, width, height, label, score in drawn:
                axis.add_patch(plt.Rectangle((x, y), width, height, fill=False, color='tab:orange', linewidth=1.5))
                axis.text(x, y - 2, label if score is None else f'{label} {score:.2f}', fontsize=7, color='white',
                          bbox=dict(facecolor='tab:orange', linewidth=0, pad=0.5))
            if not column:
                axis.set_ylabel(title)
    figure.savefig(out, dpi=80, metadata={'Software': None})
    plt.close(figure)
    return out


PICTURES = {'estimators': estimators, 'detections': detections}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('picture', choices=PICTURES)
    print(PICTURES[parser.parse_args().picture]())


if __name__ == '__main__':
    main()
