"""The pieces of the demo that compare, choose and refuse; the whole of it is ``make demo``."""

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmdet')

from bnn_plugins.apps.demo import check_same_run, choose_samples, commands


def found(*scores, labels=None):
    scores = torch.tensor(scores)
    boxes = torch.arange(4. * len(scores)).view(-1, 4)
    return dict(pred_instances=dict(scores=scores, bboxes=boxes, labels=torch.arange(len(scores))), ori_shape=(48, 64),
                instances=[dict(bbox=[1, 2, 3, 4], bbox_label=7)], img_path='a/b.png')


def test_samples_lie_at_equal_distances_and_show_what_is_sure():
    latent = [found(0.9, 0.1 * (i % 2), 0.3 + 0.01 * i) | dict(img_path=f'{i}.png') for i in range(26)]
    samples = choose_samples(latent, [found(0.2)] * 26)
    assert [sample.image.name for sample in samples] == ['0.png', '4.png', '8.png', '12.png', '16.png', '20.png']
    first = samples[1]
    assert (first.width, first.height) == (64, 48)
    assert (first.panels['ground truth'].bboxes, first.panels['ground truth'].labels) == ([[1, 2, 3, 4]], [7])
    assert first.panels['latent'].labels == [2, 0], 'the better one comes last, on top'
    assert first.panels['latent'].bboxes == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert first.panels['packed'].scores == []
    assert len(choose_samples(latent[:3], latent[:3])) == 3


@pytest.mark.parametrize(('before', 'after', 'key'), [
    (dict(model=dict(depth=18)), dict(model=dict(depth=34)), 'model'),
    (dict(model=1), dict(model=1, randomness=dict(seed=3)), 'randomness'),
    (dict(model=1, randomness=dict(seed=3)), dict(model=1), 'randomness'),
])
def test_a_folder_with_another_run_is_refused(tmp_path, before, after, key):
    dumped = tmp_path / 'config.py'
    check_same_run(Config(after), dumped)  # nothing there
    Config(before | dict(work_dir='x')).dump(dumped)
    check_same_run(Config(before | dict(work_dir='y')), dumped)
    with pytest.raises(ValueError, match=rf"another config \('{key}' is not that of config.py\)"):
        check_same_run(Config(after), dumped)


def test_commands_repeat_the_run(tmp_path):
    lines = commands('c.py', 'e.pth', tmp_path / 'm.safetensors', tmp_path, 'data', {'randomness.seed': 3})
    assert lines[0] == f'bnn demo --work-dir {tmp_path} --data data --seed 3'
    assert f'bnn test c.py {tmp_path}/m.safetensors --cfg-options randomness.seed=3' in lines
