"""What the real layers of a binary detector cost: mAP, time and size of its forms, and of its float twin in int8.

    python -m benchmarks.detection.run bccd_rests                      # trains what is compared
    PYTHONPATH=... python -m benchmarks.detection.rests                # results/bccd_rests.csv; OpenVINO where it is installed
    python -m benchmarks.detection.rests --plot                        # docs/accuracy/rests.png

Times are of backbone, neck and head on one image of the test set, all forms of a seed in turn: processor time of one call, the
median, eight calls in a row each. Those that read pixels get pixels, the others normalised images.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor, nn

from bnn_plugins import fuse_, load_packed_
from bnn_plugins.analysis.anchors import compiled, missing
from bnn_plugins.analysis.machine import machine_facts
from bnn_plugins.analysis.throughput import torch_threads
from bnn_plugins.deploy import RESTS, read_packed
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.benchmark import Network, channels_last_
from bnn_plugins.integrations.mmengine.pack import build_model, calibration_batches
from bnn_plugins.integrations.mmengine.run import latest_checkpoint, load_config

from ..cpu.anchors import measure
from ..rows import read_rows, write_row
from .grids import GRIDS, TITLES
from .run import RESULTS, ROOT, folder, map50

NAME = 'bccd_rests'
IMAGES = 32  # to calibrate with
FORMS = (*RESTS, 'openvino-int8')


@dataclass
class Row:
    """One form of one trained detector.

    Attributes:
        config: name of a file in ``configs/detection``. rest: of its real layers; ``'openvino-int8'`` of a float one.
        test_map50: on the test split, in [0, 1], of this form.
        ms: of backbone, neck and head. size: bytes of weights, or of the file.
    """

    config: str
    rest: str
    seed: int
    epochs: int
    test_map50: float
    ms: float
    size: int


class Form:
    """A detector that runs, with what it takes."""

    def __init__(self, cfg: Config, model: nn.Module, size: int):
        self.cfg, self.model, self.size = cfg, model.eval(), size
        self.loader = Runner.build_dataloader(dict(copy.deepcopy(cfg.test_dataloader), num_workers=0, batch_size=1,
                                                   persistent_workers=False))

    @property
    def image(self) -> Tensor:
        return self.model.data_preprocessor(next(iter(self.loader)), False)['inputs']

    @torch.no_grad()
    def score(self) -> float:
        evaluator = Evaluator(copy.deepcopy(self.cfg.test_evaluator))
        evaluator.dataset_meta = self.loader.dataset.metainfo
        for batch in self.loader:
            evaluator.process(self.model.test_step(batch), batch)
        return map50(evaluator.evaluate(len(self.loader.dataset)))

    def call(self) -> Callable:
        network, image = Network(self.model), self.image
        return lambda: network(image)


def real(config: str, checkpoint: str) -> Form:
    cfg = load_config(config)
    model = build_model(copy.deepcopy(cfg))
    load_checkpoint(model, checkpoint, map_location='cpu')
    channels_last_(model)
    return Form(cfg, model, sum(value.nbytes for value in model.state_dict().values()))


def in_openvino(twin: Form, threads: int) -> Form:
    """The float twin quantized by OpenVINO's flow with its defaults, on the images that ours are calibrated with."""
    form = Form(twin.cfg, copy.deepcopy(twin.model), 0)
    images = [form.model.data_preprocessor(batch, False)['inputs'] for batch in calibration_batches(form.cfg, IMAGES)]
    with tempfile.TemporaryDirectory() as place:
        run = compiled('openvino', 'int8', Network(twin.model), form.image, images, threads, Path(place))
        form.size = sum(path.stat().st_size for path in Path(place).iterdir())
    form.model.extract_feat = lambda x: x
    form.model.bbox_head.forward = MethodType(lambda _, x: run(x), form.model.bbox_head)
    return form


def packed(config: str, checkpoint: str, rest: str) -> Form:
    path = pack_checkpoint(config, checkpoint, str(Path(config).parent / f'{rest}.safetensors'), rest=rest, calibration=IMAGES)
    cfg = Config(read_packed(path).config)
    model = load_packed_(build_model(copy.deepcopy(cfg)), path)
    channels_last_(model)
    fuse_(model)
    return Form(cfg, model, path.stat().st_size)


def forms(work_dir: Path, seed: int, threads: int, wanted: Sequence[str] = FORMS) -> dict[tuple[str, str], Form]:
    """By the names of their config and of their rest, those that are ``wanted``; OpenVINO's where it is installed."""
    found, grid = {}, GRIDS[NAME]
    for entry in grid.entries:
        place = folder(work_dir, entry, seed, grid.epochs)
        config, checkpoint = str(place / 'config.py'), latest_checkpoint(place)
        if load_config(config).get('method') is None:
            found[entry.config, 'float32'] = real(config, checkpoint)
            if 'openvino-int8' in wanted and not missing('openvino'):
                found[entry.config, 'openvino-int8'] = in_openvino(found[entry.config, 'float32'], threads)
        else:
            found.update({(entry.config, rest): packed(config, checkpoint, rest) for rest in RESTS if rest in wanted})
    return found


def measured(work_dir: Path, seed: int, threads: int, rounds: int, seconds: float) -> list[Row]:
    with torch_threads(threads), torch.no_grad():
        found = forms(work_dir, seed, threads)
        times = measure({name: form.call() for name, form in found.items()}, threads, 8, rounds, seconds)
        return [Row(*name, seed, GRIDS[NAME].epochs, round(form.score(), 5), round(statistics.median(times[name]), 3),
                    form.size) for name, form in found.items()]


def plot(rows: list[dict[str, str]], out: Path = ROOT / 'docs/accuracy/rests.png') -> Path:
    """mAP against milliseconds and against megabytes: a point for each seed, in one colour for each network."""
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    colours = dict(zip(TITLES, ('black', 'tab:orange', 'tab:blue'), strict=True))
    marks = dict(zip(FORMS, 'os^v', strict=True))
    for axis, key, factor, label in zip(axes, ('ms', 'size'), (1, 1e-6), ('ms of a call', 'MB'), strict=True):
        for row in rows:
            axis.plot(float(row[key]) * factor, 100 * float(row['test_map50']), marks[row['rest']], ms=8, alpha=0.8,
                      color=colours[row['config']], mfc='none' if row['seed'] != '0' else None)
        axis.set(xlabel=label, xscale='log')
        axis.grid(which='both', color='lightgray', linewidth=0.4)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel('test mAP@0.5 (%)')
    shown = [plt.Line2D([], [], color=colours[config], marker='s', linestyle='', label=title) for config, title in
             TITLES.items()]
    shown += [plt.Line2D([], [], color='gray', marker=mark, linestyle='', label=name) for name, mark in marks.items()]
    axes[1].legend(handles=shown, fontsize=8, loc='best')
    figure.savefig(out, dpi=110, metadata={'Software': None})
    plt.close(figure)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs') / NAME)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=25)
    parser.add_argument('--seconds', type=float, default=20)
    parser.add_argument('--out', type=Path, default=RESULTS / f'{NAME}.csv')
    parser.add_argument('--plot', action='store_true', help='draw what is in the results, and nothing else')
    args = parser.parse_args()
    if args.plot:
        print(plot(read_rows(args.out)))
        return
    facts = machine_facts()
    for seed in args.seeds:
        for row in measured(args.work_dir, seed, args.threads, args.rounds, args.seconds):
            print(row, flush=True)
            write_row(args.out, asdict(row) | facts, ('config', 'rest', 'seed', 'epochs'), lambda r: (
                [*TITLES].index(r['config']), FORMS.index(r['rest']), int(r['seed'])))


if __name__ == '__main__':
    main()
