"""Train, evaluate, pack and evaluate again: a grid of detector configs and seeds, one CSV row per run.

Finished trainings are not repeated, interrupted ones resume. ``python -m benchmarks.detection.run --help``.
"""

import argparse
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from bnn_plugins.analysis import processor
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import load_config, test, train

from ..rows import write_row

CONFIGS = ('configs/detection/retinanet_bnn-r18_fpn_bccd.py', 'configs/detection/retinanet_r18_fpn_bccd.py')
RESULTS = Path(__file__).parent / 'results'


@dataclass
class Row:
    """One run.

    Attributes:
        val_map50, test_map50: of the last checkpoint, in [0, 1]; no checkpoint was selected on either split.
        packed_map50: of the packed file on the test split; '' for a float model.
        bytes_float, bytes_packed: of all parameters and buffers; of the file.
        minutes: of the training iterations, without evaluation; threads: of torch in training.
    """

    config: str
    method: str
    seed: int
    epochs: int
    val_map50: float
    test_map50: float
    packed_map50: float | str
    bytes_float: int
    bytes_packed: int | str
    minutes: float
    threads: int
    processor: str
    torch: str
    mmdet: str
    bnn_plugins: str


def map50(metrics: dict[str, float]) -> float:
    """mAP@0.5 of mmdet's VOC or COCO metric."""
    return metrics['pascal_voc/mAP'] if 'pascal_voc/mAP' in metrics else metrics['coco/bbox_mAP_50']


def run(config: str, seed: int, work_dir: Path, threads: int, epochs: int | None = None) -> Row:
    """Train (or resume, or skip) and evaluate one config with one seed; ``epochs``: another length than the config's."""
    torch.set_num_threads(threads)
    options = {'randomness.seed': seed}
    if epochs is not None:
        options |= {'train_cfg.max_epochs': epochs, 'param_scheduler.1.T_max': epochs}
    cfg = load_config(config, str(work_dir), options)
    epochs = cfg.train_cfg.max_epochs
    checkpoint = work_dir / f'epoch_{epochs}.pth'
    if not checkpoint.exists():
        train(config, str(work_dir), resume='auto', cfg_options=options)
    content = torch.load(checkpoint, map_location='cpu', weights_only=False)
    seconds = sum(content['message_hub']['log_scalars']['train/time'].data[0])
    method = cfg.get('method', 'float')
    validate = {'test_dataloader': cfg.val_dataloader}
    val = map50(test(config, str(checkpoint), str(work_dir / 'val'), cfg_options=validate))
    latent = map50(test(config, str(checkpoint), str(work_dir / 'test')))
    packed, size = '', ''
    if method != 'float':
        file = pack_checkpoint(config, str(checkpoint), str(work_dir / 'packed.safetensors'))
        packed, size = map50(test(config, str(file), str(work_dir / 'packed'))), file.stat().st_size
    weights = sum(value.nbytes for value in content['state_dict'].values())
    return Row(Path(config).stem, str(method), seed, epochs, val, latent, packed, weights, size, round(seconds / 60, 1),
               threads, processor(), torch.__version__, version('onedl-mmdetection'), version('bnn_plugins'))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--configs', nargs='+', default=CONFIGS, help='default: the BCCD RetinaNet and its float twin')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--work-dir', default='work_dirs/bccd', help='one folder <config>-<seed> per run')
    parser.add_argument('--out', default=str(RESULTS / 'bccd.csv'))
    parser.add_argument('--epochs', type=int, help='default: those of the config')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()

    for seed in args.seeds:
        for config in args.configs:
            row = run(config, seed, Path(args.work_dir) / f'{Path(config).stem}-{seed}', args.threads, args.epochs)
            write_row(Path(args.out), asdict(row), ['config', 'seed'], lambda r: (r['config'], int(r['seed'])))
            print(f'{row.config} seed {seed}: test mAP@0.5 {row.test_map50}, packed {row.packed_map50}')


if __name__ == '__main__':
    main()
