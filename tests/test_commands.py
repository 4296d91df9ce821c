"""The commands of README and the documents are run: those of one document after another, in one folder, with small data in the
places where the documents expect large ones. What is not run is in ``NOT_RUN`` with the reason; ``test_docs.py`` has the tools
parse those, too. The console script itself is run by ``test_packaging.py``.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import string
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from bnn_plugins import zoo
from bnn_plugins.apps.command_line import bnn
from tests.documents import ROOT, blocks, commands

# Patterns of commands that are not run here -> why.
NOT_RUN = {
    r'make ': 'a target that the workflows run',
    r'pip |python3 -m venv|\. venv|.venv/bin/pre-commit': 'installs; tests/test_packaging.py installs a wheel and runs it',
    r'.*pytest': 'the tests themselves',
    r'.*benchmarks\.gpu|.*--device cuda|.*gpu_resnet20': 'needs a GPU',
    r'python -m benchmarks\.(cpu|training|zoo|scale|accuracy|diffusion|detection|sequence)\.':
        'measures for minutes to days; tests/test_benchmarks runs its parts',
    r'python -m benchmarks\.pretrained': 'needs the checkpoints of hours of training',
    r'.*(imagenet|voc0712|bnext-l)': 'needs ImageNet or VOC',
    r'.*model_best\.pth\.tar': 'needs a release; tests/test_integrations has files of its layout',
    r'.*(dist_train|dist_test|slurm|accelerate launch)': 'several processes or a cluster; tests/test_scale starts such ones',
    r'python -m benchmarks\.docs\.plots': 'draws into docs/; tests/test_benchmarks/test_plots.py draws elsewhere',
    r'.*(bccd|convlstm)': 'needs BCCD; tests/test_models/test_clips.py trains on small clips',
    r'bnn demo$': 'trains for minutes: make demo, which the workflows run',
    r'bnn train.* .*(binary-gates_text|bidm_digits|resnet110)': 'a longer training of the same kind as another command',
}
# Patterns of commands -> what is put behind them, so that they take seconds.
SHORTER = {
    r'bnn train .*(retinanet.*digits|mine)\.py': '--cfg-options train_cfg.max_epochs=1 train_dataloader.dataset.indices=16 '
                                                 'val_dataloader.dataset.indices=4',
    r'bnn train .*resnet8': '--cfg-options train_cfg.max_epochs=1 param_scheduler=[]',
    r'bnn train .*resnet20.*parquet': 'train_cfg.max_epochs=1 train_dataloader.dataset.held_out=16 '
                                      'val_dataloader.dataset.held_out=16 train_dataloader.batch_size=16',
    r'bnn train .*resnet20[^=]*$': '--cfg-options train_cfg.max_epochs=1 train_dataloader.dataset.held_out=16 '
                                   'val_dataloader.dataset.held_out=16 train_dataloader.batch_size=16',
    r'bnn train .*blstm_text': '--cfg-options train_cfg.max_iters=2 train_cfg.val_interval=2 param_scheduler=[]',
    r'bnn test .*retinanet.*digits\.py': '--cfg-options test_dataloader.dataset.indices=4',
    r'bnn train-diffusion': '--max_train_steps 2 --logger none',
    r'bnn sample .*': '--num 4 --steps 2',
    r'bnn sample-text': '--length 10',
    r'bnn predict': '--workers 1',
    r'bnn benchmark': '--size 64x64 --rounds 2 --budget 1',
    r'bnn pack .*verify': '--verify 1',
    r'bnn pack .*int8 .*': '--calibration 2',
    r'python -m benchmarks\.(tables|metafiles)': '--check',
}
DIGITS = 'bnn_plugins::detection/retinanet_bnn-r18_fpn_digits.py'
# What stands for a file or folder of the user, unless it is a checkpoint.
PLACEHOLDERS = {'CONFIG': DIGITS, 'PACKED.safetensors': str(zoo.path('retinanet_bnn-r18_fpn_digits')), 'PICTURES': 'pictures',
                'folder/of/images': 'pictures'}
# README's config reads COCO at 1333x800; these lines are put behind it.
SMALL = """
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='Resize', scale=(64, 64)),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
loader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline))
train_dataloader, val_dataloader, test_dataloader = loader, loader, loader
train_cfg = dict(val_interval=12)
"""


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


RUN = [(path, command) for command, path in commands().items() if reason(command) is None]


def picture(path: Path, size: int = 64) -> None:
    """Noise, another for each name: the norm of a batch of equal pictures has no variance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(list(path.name.encode())).integers(0, 255, (size, size, 3), 'uint8')).save(path)


def make_coco(folder: Path) -> None:
    """Four pictures with a box each, in both parts."""
    from mmdet.datasets import CocoDataset
    categories = [dict(id=number, name=name) for number, name in enumerate(CocoDataset.METAINFO['classes'])]
    for part in ('train2017', 'val2017'):
        images = [dict(id=number, file_name=f'{number}.jpg', width=64, height=64) for number in range(4)]
        boxes = [dict(id=number, image_id=number, category_id=number, bbox=[8, 8, 40, 40], area=1600, iscrowd=0)
                 for number in range(4)]
        for image in images:
            picture(folder / part / image['file_name'])
        annotations = folder / f'annotations/instances_{part}.json'
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))


def make_cifar(folder: Path) -> None:
    """32 pictures in each file."""
    import pyarrow
    from pyarrow import parquet
    picture(folder / 'one.png', 32)
    column = [dict(bytes=(folder / 'one.png').read_bytes(), path=None)] * 32
    for part in ('train', 'test'):
        parquet.write_table(pyarrow.table(dict(img=column, label=[number % 10 for number in range(32)])),
                            folder / f'{part}.parquet')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with what the documents expect to be there."""
    folder = tmp_path_factory.mktemp('place')
    for name in ('tools', 'configs', 'benchmarks'):
        (folder / name).symlink_to(ROOT / name)
    configs = {re.match(r'# (\w+\.py)', code)[1]: code for _, _, code in blocks('python') if re.match(r'# \w+\.py', code)}
    (folder / 'my_config.py').write_text(configs['my_config.py'] + SMALL)
    (folder / 'mine.py').write_text(configs['mine.py'])
    make_coco(folder / 'data/coco')
    for cifar in ('cifar10', 'data/cifar10'):
        make_cifar(folder / cifar)
    text = folder / 'data/text/tinyshakespeare.txt'
    text.parent.mkdir()
    characters = "\n !$&',-.3:;?" + string.ascii_letters  # those of Tiny Shakespeare, which the model of the zoo knows
    text.write_text(f'ROMEO: What light through yonder window breaks? It is the east.\n{characters}\n' * 400)
    for number in range(2):
        picture(folder / f'pictures/{number}.jpg')
    written = folder / 'work_dirs/sequence/blstm_text-0/packed.safetensors'  # by python -m benchmarks.sequence.run
    written.parent.mkdir(parents=True)
    shutil.copy(zoo.path('blstm_text'), written)
    shutil.copy(zoo.path('blstm_text'), folder / 'old.safetensors')
    return folder


def words_of(command: str, monkeypatch) -> list[str]:
    """The words of a command, made shorter, with files for what stands for them. A checkpoint that is not there is trained, by
    the command of a document."""
    words = shlex.split(command)
    for pattern, more in SHORTER.items():
        if re.match(pattern, command):
            words += more.split()
    if 'CHECKPOINT' in words:
        config = next(word for word in words if word.endswith('.py'))
        folder = Path('work_dirs', Path(config).stem)
        if not folder.is_dir():
            call(f'bnn train {config}', monkeypatch)
        found = sorted(folder.glob('*_*.pth'), key=os.path.getmtime)
        words[words.index('CHECKPOINT')] = str(found[-1])
    return [PLACEHOLDERS.get(word, word) for word in words]


def call(command: str, monkeypatch) -> None:
    """Run a command in this process, which has imported everything; a failure raises."""
    words = words_of(command, monkeypatch)
    try:
        with mock.patch.dict(os.environ):  # a command that sets a variable is the last of its process
            if words[0] == 'bnn':
                bnn(words[1:])
            else:
                assert words[:2] == ['python', '-m'], f'neither run here nor in NOT_RUN: {command}'
                monkeypatch.setattr(sys, 'argv', words[2:])
                runpy.run_module(words[2], run_name='__main__')
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f'{command}: {stop.code}')


def test_each_reason_has_a_command():
    """A pattern of a command that no document has any more hides nothing. Mutation: a pattern of another name."""
    names = list(commands())
    assert [pattern for pattern in (*NOT_RUN, *SHORTER) if not any(re.match(pattern, name) for name in names)] == []


def test_the_workflows_run_what_is_said_of_them():
    text = ''.join(path.read_text() for path in (ROOT / '.github/workflows').glob('*.yml'))
    targets = {target for command in commands() if command.startswith('make ') for target in command.split()[1:]}
    assert targets - set(re.findall(r'run: make ([\w-]+)', text)) <= {'test'}  # tests.yml has its two parts
    assert "pytest --numprocesses 2 --dist worksteal -m 'not scale and not nightly'" in text


@pytest.mark.parametrize('command', ['bnn zoo list', 'bnn doctor', 'bnn summary mine.py', 'bnn summary my_config.py',
                                     'bnn sample ddpm_reactnet_digits --steps 100 --out digits.png'])
def test_the_first_commands(command, place, monkeypatch, capsys):
    """What a newcomer types first, part of ``make test``."""
    assert command in commands()
    monkeypatch.chdir(place)
    call(command, monkeypatch)
    assert capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize('document', dict.fromkeys(path for path, _ in RUN), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_document(document, place, monkeypatch):
    """In the order of the document. Mutation: another flag, file or name in any of them."""
    monkeypatch.chdir(place)
    for path, command in RUN:
        if path == document:
            call(command, monkeypatch)
