"""From image file to boxes: where the time of a detector goes, in its forms, and of its float twin in OpenVINO's int8.

    python -m benchmarks.detection.run bccd_rests              # trains what is compared
    PYTHONPATH=... python -m benchmarks.detection.stages       # results/bccd_stages.csv; OpenVINO where it is installed

Host code is the same for all forms: mmdet's pipeline reads and resizes, its data preprocessor pads (and normalises where the
network does not read pixels), its head makes boxes of the raw outputs, with non-maximum suppression. Processor time of each
stage; every image of the test split once, all forms of an image one after another, so that each round compares them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from bnn_plugins.analysis.machine import machine_facts
from bnn_plugins.analysis.throughput import torch_threads

from ..rows import write_row
from .grids import TITLES
from .rests import FORMS, NAME, Form, forms
from .run import RESULTS

SHOWN = 0.05  # least score of a box that is counted
WANTED = ('float32', 'int8', 'openvino-int8')


@dataclass
class Row:
    """One form of one trained detector, milliseconds of an image: medians over the images.

    Attributes:
        config, rest, seed: as in :class:`benchmarks.detection.rests.Row`.
        read: the file, decoded. preprocess: resized, padded, normalised. network: to the raw outputs. boxes: decoded, and
            suppressed where they overlap. total: of all.
        found: boxes of an image above a score of ``SHOWN``, the mean.
        x_int8: time of OpenVINO's int8 for the same image over that of this form, all stages, the median; q1 and q3: its
            quartiles. x_network: of the network alone.
    """

    config: str
    rest: str
    seed: int
    images: int
    read: float
    preprocess: float
    network: float
    boxes: float
    total: float
    found: float
    x_int8: float | str = ''
    q1: float | str = ''
    q3: float | str = ''
    x_network: float | str = ''


def staged(form: Form) -> Callable[[dict], tuple[list[float], InstanceData]]:
    """What takes the information of an image from its file to its boxes: milliseconds of each stage, and they."""
    read, *others = form.loader.dataset.pipeline.transforms
    head = form.model.bbox_head

    def run(information: dict) -> tuple[list[float], InstanceData]:
        times = [time.process_time()]
        image = read(dict(information))
        times.append(time.process_time())
        for transform in others:
            image = transform(image)
        batch = form.model.data_preprocessor(pseudo_collate([image]), False)
        times.append(time.process_time())
        outs = head(form.model.extract_feat(batch['inputs']))
        times.append(time.process_time())
        facts = [sample.metainfo for sample in batch['data_samples']]
        boxes, = head.predict_by_feat(*outs, batch_img_metas=facts, rescale=True)
        times.append(time.process_time())
        return [1e3 * (b - a) for a, b in pairwise(times)], boxes

    return run


def rows_of(found: dict[tuple[str, str], Form], seed: int, images: int | None) -> list[Row]:
    runs = {name: staged(form) for name, form in found.items()}
    dataset = next(iter(found.values())).loader.dataset
    samples = [dataset.get_data_info(place) for place in range(min(len(dataset), images or len(dataset)))]
    times: dict[tuple, list[list[float]]] = {name: [] for name in runs}
    boxes: dict[tuple, list[int]] = {name: [] for name in runs}
    for run in runs.values():
        run(samples[0])
        run(samples[0])
    for sample in samples:
        for name, run in runs.items():
            run(sample)  # so that each form finds its own data in the caches
            spent, own = run(sample)
            times[name].append(spent)
            boxes[name].append(int((own.scores > SHOWN).sum()))
    anchor = next((name for name in runs if name[1] == 'openvino-int8'), None)
    result = []
    for name, spent in times.items():
        medians = [round(statistics.median(stage), 3) for stage in zip(*spent, strict=True)]
        row = Row(*name, seed, len(samples), *medians, round(statistics.median(map(sum, spent)), 3),
                  round(statistics.mean(boxes[name]), 1))
        if anchor is not None:
            ratios = [sum(theirs) / sum(own) for theirs, own in zip(times[anchor], spent, strict=True)]
            row.q1, row.x_int8, row.q3 = (round(value, 3) for value in statistics.quantiles(ratios, n=4, method='inclusive'))
            row.x_network = round(statistics.median(a[2] / b[2] for a, b in zip(times[anchor], spent, strict=True)), 3)
        result.append(row)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs') / NAME)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--images', type=int, help='of the test split; default all')
    parser.add_argument('--out', type=Path, default=RESULTS / 'bccd_stages.csv')
    args = parser.parse_args()
    facts = machine_facts()
    for seed in args.seeds:
        with torch_threads(args.threads), torch.no_grad():  # what inference mode makes is not joined
            found = rows_of(forms(args.work_dir, seed, args.threads, WANTED), seed, args.images)
        for row in found:
            print(row, flush=True)
            write_row(args.out, asdict(row) | facts, ('config', 'rest', 'seed'), lambda r: (
                [*TITLES].index(r['config']), FORMS.index(r['rest']), int(r['seed'])))


if __name__ == '__main__':
    main()
