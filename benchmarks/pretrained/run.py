"""Pack trained models into the zoo: the packed file and its card, with the metrics of that file.

    python -m benchmarks.pretrained.run --checkpoints work_dirs/zoo --commit abc1234 [--only NAME ...]

``--checkpoints`` has one folder per model, which the command on its card writes. A model whose folder is missing keeps the
file that it has.
"""

import argparse
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from bnn_plugins import pack_, save_packed, zoo
from bnn_plugins.apps.diffusion import metrics
from bnn_plugins.apps.diffusion.data import build_dataset
from bnn_plugins.apps.diffusion.flags import parse_args
from bnn_plugins.apps.diffusion.sample import generate
from bnn_plugins.apps.zoo import build
from bnn_plugins.deploy import read_packed
from bnn_plugins.integrations.diffusers.loading import load_pipeline
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import latest_checkpoint, test

CHECKPOINTS = Path('work_dirs/zoo')
LARGEST, ALL = 3_000_000, 12_000_000  # bytes of a file, of the whole zoo
PICTURES = 8  # for the metrics of super-resolution
METRICS = {'coco/bbox_mAP_50': 'mAP@0.5', 'pascal_voc/mAP': 'mAP@0.5', 'bpc': 'bits per character',
           'accuracy/top1': 'top-1 (%)'}


@dataclass(frozen=True)
class Model:
    """One model of the zoo.

    Attributes:
        name: of the model and of its config, unless ``config`` is given.
        task: ``detection``, ``classification``, ``text``, ``generation`` or ``super-resolution``.
        data, data_licence: what it was trained on, and under which licence that is.
        config: of the repository.
        options: flags of the training command behind the config.
        note: what a user should know.
    """

    name: str
    task: str
    data: str
    data_licence: str
    config: str
    options: str = ''
    note: str = ''

    @property
    def is_diffusion(self) -> bool:
        return self.task in ('generation', 'super-resolution')

    @property
    def train(self) -> str:
        """The command that wrote the folder of the checkpoint."""
        tool, folder = ('train_diffusion', '--output_dir') if self.is_diffusion else ('train', '--work-dir')
        return f'python tools/{tool}.py {self.config} {folder} {CHECKPOINTS / self.name} {self.options}'.rstrip()


MODELS = (
    Model('retinanet_bnn-r18_fpn_digits', 'detection', 'handwritten digits of scikit-learn on canvases of 128x128',
          'CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)', 'configs/detection/retinanet_bnn-r18_fpn_digits.py'),
    Model('retinanet_bnn-r18-half_fpn_bccd', 'detection', 'BCCD, photographs of blood cells at 320x240', 'MIT',
          'configs/detection/retinanet_bnn-r18-half_fpn_bccd.py', '',
          'Half the width and 12 epochs; 40 epochs at full width reach 87.6 (docs/accuracy.md). No medical device.'),
    Model('ddpm_reactnet_digits', 'generation', 'handwritten digits of scikit-learn, 8x8',
          'CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)', 'configs/diffusion/ddpm_reactnet_digits.py',
          note='Sample with 100 steps.'),
    Model('sr_bidiffsr_emoji', 'super-resolution', 'Noto Emoji, 32 to 128 pixels', 'Apache-2.0',
          'configs/diffusion/sr_bidiffsr_emoji.py', note='Sample with 2 steps.'),
    Model('blstm_text', 'text', 'Tiny Shakespeare, characters', 'MIT (the text: public domain)',
          'configs/sequence/blstm_text.py'),
    Model('resnet20_recu_cifar10', 'classification', 'CIFAR-10 (JPEG-compressed copy)', 'none stated; research data set',
          'configs/classification/resnet20_recu_cifar10.py'),
)


def pack(model: Model, folder: Path, out: Path) -> Path:
    """Write the packed file of the last checkpoint in ``folder``."""
    if not model.is_diffusion:
        return pack_checkpoint(model.config, latest_checkpoint(folder), str(out))
    pipe = load_pipeline(folder)
    config = dict(model=described(pipe.unet), noise_scheduler=described(pipe.scheduler),
                  pipeline=dict(type=type(pipe).__name__, **{key: value for key, value in pipe.config.items()
                                                             if key == 'residual'}))
    return save_packed(pack_(pipe.unet), out, config)


def described(part) -> dict:
    """What the config section of a UNet or scheduler of diffusers says."""
    return dict(type=type(part).__name__, **{key: value for key, value in part.config.items() if not key.startswith('_')})


def measure(model: Model, file: Path) -> dict[str, float]:
    """The metrics of a packed file on the test or held-out part of its data, which must be where the config says."""
    if not model.is_diffusion:
        with tempfile.TemporaryDirectory() as folder:
            found = test(model.config, str(file), folder, cfg_options={'log_level': 'WARNING'})
        return {METRICS[key]: round(float(value), 4) for key, value in found.items() if key in METRICS}
    args = parse_args([model.config])
    _, held = build_dataset(args.dataset, args.resolution, args.center_crop).split(args.holdout)
    pipe = build(read_packed(file))
    pipe.set_progress_bar_config(disable=True)
    if held.conditions is None:
        with torch.no_grad():
            return {'noise MSE': round(metrics.noise_prediction(pipe.unet, pipe.scheduler, held)['mse'], 4)}
    conditions = torch.stack([held[i]['condition'] for i in range(PICTURES)])
    images = torch.stack([torch.from_numpy(image) for image in generate(pipe, PICTURES, 2, conditions=conditions,
                                                                        output_type='np')]).permute(0, 3, 1, 2)
    found = metrics.restoration(images, held.images[:PICTURES].float() / 255)
    bicubic = metrics.restoration(held.conditions[:PICTURES].float() / 255, held.images[:PICTURES].float() / 255)
    return {'PSNR (dB)': round(found['psnr'], 2), 'of bicubic': round(bicubic['psnr'], 2)}


def add(model: Model, folder: Path, commit: str) -> dict:
    """Pack and measure one model, write file and card.

    Raises:
        ValueError: when the file is larger than a file of the zoo may be.
    """
    file = pack(model, folder, zoo.FOLDER / f'{model.name}.safetensors')
    if file.stat().st_size > LARGEST:
        raise ValueError(f'{file.name} has {file.stat().st_size:,} bytes, more than the {LARGEST:,} of a file of the zoo')
    card = dict(task=model.task, data=model.data, data_licence=model.data_licence, licence='Apache-2.0', config=model.config,
                train=model.train, commit=commit, pack=f'python -m benchmarks.pretrained.run --only {model.name}',
                metrics=measure(model, file), note=model.note, bytes=file.stat().st_size,
                sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    (zoo.FOLDER / f'{model.name}.json').write_text(json.dumps(card, indent=2, ensure_ascii=False) + '\n')
    return card


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoints', type=Path, default=CHECKPOINTS, help='default %(default)s')
    parser.add_argument('--commit', required=True, help='at which the checkpoints were trained')
    parser.add_argument('--only', nargs='+', choices=[model.name for model in MODELS])
    args = parser.parse_args()
    for model in MODELS:
        folder = args.checkpoints / model.name
        if folder.is_dir() and model.name in (args.only or [model.name]):
            card = add(model, folder, args.commit)
            print(f'{model.name}: {card["bytes"]:,} bytes, {card["metrics"]}')
    print(zoo.table())


if __name__ == '__main__':
    main()
