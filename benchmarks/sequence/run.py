"""Train character models, evaluate them, pack them and evaluate again; one CSV row and one text per run.

    python -m benchmarks.sequence.run --text data/text/tinyshakespeare.txt

Finished trainings are not repeated, interrupted ones resume. Several processes may work on the same folder.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.runner import find_latest_checkpoint

from bnn_plugins import __version__
from bnn_plugins.analysis import processor
from bnn_plugins.apps.sample_text import sample_text
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import load_config, test, train

from ..rows import locked, write_row

CONFIGS = ('lstm_text', 'blstm_weight-only_text', 'blstm_text', 'blstm_binary-gates_text')
FOLDER = Path('configs/sequence')
RESULTS = Path(__file__).parent / 'results'


@dataclass
class Row:
    """One run.

    Attributes:
        config, seed: which one. iterations, characters: how long it was trained, with repetitions.
        bpc: bits per character on the held-out part, after the last iteration; nothing was chosen on it.
        packed_bpc: of the packed file; '' for a float model.
        bytes_float, bytes_packed: of all parameters and buffers; of the file.
        minutes: of the training iterations. threads: of torch in training.
        sample: text of the packed file (of the checkpoint, for a float model).
    """

    config: str
    seed: int
    iterations: int
    characters: int
    bpc: float
    packed_bpc: float | str
    bytes_float: int
    bytes_packed: int | str
    minutes: float
    threads: int
    processor: str
    torch: str
    bnn_plugins: str
    sample: str


def run(name: str, seed: int, work_dir: Path, options: dict) -> Row:
    """Train (or resume, or skip) and evaluate."""
    config = str(FOLDER / f'{name}.py')
    options = {**options, 'randomness.seed': seed}
    cfg = load_config(config, str(work_dir), options)
    checkpoint = work_dir / f'iter_{cfg.train_cfg.max_iters}.pth'
    if not checkpoint.exists():
        train(config, str(work_dir), resume='auto' if find_latest_checkpoint(str(work_dir)) else None, cfg_options=options)
    content = torch.load(checkpoint, map_location='cpu', weights_only=False)
    seconds = sum(content['message_hub']['log_scalars']['train/time'].data[0])
    bpc = test(config, str(checkpoint), str(work_dir / 'test'), cfg_options=options)['bpc']
    packed, size, file = '', '', checkpoint
    if cfg.model.rnn.type != 'bnn_plugins.LSTM':
        file = pack_checkpoint(config, str(checkpoint), str(work_dir / 'packed.safetensors'))
        packed, size = test(config, str(file), str(work_dir / 'packed'), cfg_options=options)['bpc'], file.stat().st_size
    loader = cfg.train_dataloader
    return Row(name, seed, cfg.train_cfg.max_iters, cfg.train_cfg.max_iters * loader.batch_size * loader.dataset.length, bpc,
               packed, sum(value.nbytes for value in content['state_dict'].values()), size, round(seconds / 60, 1),
               torch.get_num_threads(), processor(), torch.__version__, __version__,
               sample_text(config, str(file), cfg_options=options))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--text', help='the text file; default: that of the config')
    parser.add_argument('--configs', nargs='+', default=CONFIGS, choices=CONFIGS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--work-dir', default='work_dirs/sequence', help='one folder <config>-<seed> per run')
    parser.add_argument('--out', default=str(RESULTS / 'text.csv'))
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    options = {f'{split}_dataloader.dataset.path': args.text for split in ('train', 'val', 'test')} if args.text else {}
    for seed in args.seeds:
        for name in args.configs:
            work_dir = Path(args.work_dir) / f'{name}-{seed}'
            with locked(work_dir / 'lock') as mine:
                if mine:
                    row = run(name, seed, work_dir, options)
                    write_row(Path(args.out), asdict(row), ['config', 'seed'],
                              lambda r: (int(r['seed']), CONFIGS.index(r['config'])))
                    print(f'{name}, seed {seed}: {row.bpc:.3f} bits per character, packed {row.packed_bpc}', flush=True)


if __name__ == '__main__':
    main()
