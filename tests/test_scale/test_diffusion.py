"""Diffusion training on 1, 2 and 3 processes, through ``tools/train_diffusion.py``."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

pytest.importorskip('diffusers')
pytest.importorskip('accelerate')

from tests.processes import Group, together
from tests.test_scale.programs import train_diffusion, train_lazily

MODEL = dict(type='BinaryUNet2DModel', sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
             block_out_channels=(8, 16), norm_num_groups=4, down_block_types=('BinaryDownBlock2D',) * 2,
             up_block_types=('BinaryUpBlock2D',) * 2)
FLAGS = ['--resolution', 8, '--logger', 'none', '--ddpm_num_inference_steps', 1, '--eval_batch_size', 3, '--use_ema',
         '--learning_rate', 0.05, '--lr_warmup_steps', 0, '--adam_epsilon', 0.1, '--log_every', 1]


def trained(processes: int, folder: Path, *flags, stop: int | None = None, dataset: dict | None = None, **model) -> list[dict]:
    """What each process has at the end of a run, or at step ``stop``; the output folder is ``folder/run``."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.py').write_text(f"dataset = {dataset or dict(type='digits')}\nmodel = {MODEL | model!r}\n")
    arguments = [folder / 'config.py', '--output_dir', folder / 'run', *FLAGS, *flags]
    together(processes, train_lazily if dataset else train_diffusion, arguments, folder, stop, folder=folder)
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(processes)]


def assert_equal(one, other, tolerance: float = 0) -> None:
    """Tensors in lists and dicts; the same numbers, or as near as the tolerance says."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], tolerance)
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, tolerance)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    else:
        assert one == pytest.approx(other) if isinstance(one, float) else one == other


def images(*parts: list[dict]) -> list[tuple[int, int]]:
    """(epoch, place in its order) of every image that was trained on by any process, in order."""
    return [place for ranks in parts for place in sorted(place for rank in ranks for place in rank['places'])]


PARTS = ('weights', 'ema', 'optimizer', 'step', 'epoch', 'total')


def test_one_two_and_three_processes_train_alike(tmp_path):
    """The same images in a step, the same noise for each. Mutation: noise from a generator of each process."""
    runs = {count: trained(count, tmp_path / str(count), '--train_batch_size', 12 // count, '--max_train_steps', 4)
            for count in (1, 2, 3)}
    for ranks in runs.values():
        assert images(ranks) == images(runs[1])
        for rank in ranks:
            assert_equal({key: rank[key] for key in PARTS}, {key: ranks[0][key] for key in PARTS})
            assert_equal({key: rank[key] for key in PARTS}, {key: runs[1][0][key] for key in PARTS}, 1e-4)
    start = trained(1, tmp_path / 'start', '--train_batch_size', 12, '--max_train_steps', 1)
    moved = [(runs[1][0]['weights'][name] - value).abs().max() for name, value in start[0]['weights'].items()]
    assert max(moved) > 0.01, 'weights that do not move are equal in any case'


def test_bidm_does_not_wait_for_a_process_without_a_step_before(tmp_path):
    """With four timesteps and one image each, one process has the noisiest one in most steps and the other has not."""
    ranks = trained(2, tmp_path, '--train_batch_size', 1, '--max_train_steps', 6, '--ddpm_num_steps', 4, method='bidm',
                    cross_timestep=dict(initial=0.3))
    assert_equal(*[{key: rank[key] for key in PARTS} for rank in ranks])


def test_resume_on_one_on_three_and_on_two_processes(tmp_path):
    """2 -> 1 -> 3 -> 2 processes with the same images in a step end as one run: weights, learning rate, order of the images.
    Mutations: a scheduler that counts steps of all processes; epochs counted in steps of these processes."""
    flags = ['--num_epochs', 1, '--holdout', 0.95, '--checkpointing_steps', 2]  # 90 images: 7 steps
    whole = trained(1, tmp_path / 'whole', *flags, '--train_batch_size', 12)
    parts, folder = [], tmp_path / 'parts'
    for count, until in ((2, 2), (1, 4), (3, 6), (2, 7)):
        resume = ['--resume_from_checkpoint', 'latest'] if parts else []
        parts.append(trained(count, folder, *flags, *resume, '--train_batch_size', 12 // count, stop=until))
    assert images(*parts) == images(whole)
    rates = [rate for ranks in parts for rate in ranks[0]['rates']]
    assert_equal(rates, whole[0]['rates'])
    for rank in parts[-1]:
        assert_equal({key: rank[key] for key in PARTS}, {key: whole[0][key] for key in PARTS}, 1e-4)


@pytest.mark.scale
def test_a_set_that_is_read_row_group_by_row_group_goes_on_inside_an_epoch(tmp_path):
    """Two processes stop in the second of two epochs, one goes on: the images and weights of one run. Mutation:
    an order of the process."""
    def encoded(number):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 3 * number, np.uint8)).save(buffer, 'png')
        return dict(bytes=buffer.getvalue())
    (tmp_path / 'shards').mkdir()
    for name, numbers in (('a', range(36)), ('b', range(36, 64))):
        table = pa.table(dict(img=[encoded(number) for number in numbers], label=list(numbers)))
        pq.write_table(table, tmp_path / f'shards/{name}.parquet', row_group_size=8)
    flags = ['--num_epochs', 2, '--holdout', 0.0625, '--checkpointing_steps', 2]  # 60 images: 5 steps
    options = dict(dataset=dict(type='parquet', path=str(tmp_path / 'shards')), in_channels=3, out_channels=3)
    whole = trained(1, tmp_path / 'whole', *flags, '--train_batch_size', 12, **options)
    parts = [trained(2, tmp_path / 'parts', *flags, '--train_batch_size', 6, stop=8, **options),
             trained(1, tmp_path / 'parts', *flags, '--train_batch_size', 12, '--resume_from_checkpoint', 'latest', **options)]
    assert images(*parts) == images(whole)
    assert len(images(whole)) == 120
    assert_equal({key: parts[1][0][key] for key in PARTS}, {key: whole[0][key] for key in PARTS}, 1e-4)


def test_the_number_of_epochs_is_kept(tmp_path):
    """Two processes drop the odd one of three batches. Mutation: the schedule's length from the batches of one process."""
    flags = ['--holdout', 0.979, '--train_batch_size', 12, '--num_epochs', 2]  # 38 images: 3 batches
    ranks = trained(2, tmp_path / 'two', *flags)
    assert [(rank['step'], rank['epoch']) for rank in ranks] == [(2, 2)] * 2
    group = Group(2, train_diffusion, [tmp_path / 'two/config.py', '--output_dir', tmp_path / 'out', *FLAGS, '--holdout', 0.99,
                                       '--train_batch_size', 18], tmp_path, folder=tmp_path)
    assert group.wait() != [0, 0]
    assert re.search('18 images are no batch of 18 for each of 2 processes', group.output())


def test_directions_of_the_teacher_are_of_all_images_and_in_the_checkpoint(tmp_path):
    teacher = tmp_path / 'teacher'
    trained(1, teacher, '--max_train_steps', 1, type='UNet2DModel', down_block_types=('DownBlock2D',) * 2,
            up_block_types=('UpBlock2D',) * 2)
    flags = ['--teacher_model', teacher / 'run', '--lrm_weight', 1, '--checkpointing_steps', 2, '--max_train_steps', 4]
    one = trained(1, tmp_path / 'one', *flags, '--train_batch_size', 12)
    whole = trained(2, tmp_path / 'whole', *flags, '--train_batch_size', 6)
    assert_equal(whole[0]['directions'], whole[1]['directions'])
    squares = [[v @ v.T for v in ranks[0]['directions']] for ranks in (one, whole)]  # without their signs
    assert_equal(*squares, 1e-3)
    trained(2, tmp_path / 'part', *flags, '--train_batch_size', 6, stop=2)
    resumed = trained(2, tmp_path / 'part', *flags, '--train_batch_size', 6, '--resume_from_checkpoint', 'latest')
    for key in ('weights', 'directions'):
        assert_equal(resumed[0][key], whole[0][key])


def test_the_twin_is_trained_first_by_all_processes(tmp_path):
    """And in another precision. Mutation: the processes part after the twin's training."""
    twin = dict(MODEL, type='UNet2DModel', down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2)
    (tmp_path / 'twin.py').write_text(f"dataset = dict(type='digits')\nmodel = {twin!r}\ntrain = dict(resolution=8, "
                                      "max_train_steps=1, ddpm_num_inference_steps=1, eval_batch_size=2)\n")
    ranks = trained(2, tmp_path, '--teacher_config', tmp_path / 'twin.py', '--teacher_model', tmp_path / 'twin',
                    '--teacher_weight', 1, '--max_train_steps', 2, '--mixed_precision', 'bf16')
    assert_equal(ranks[0]['weights'], ranks[1]['weights'])
    assert (tmp_path / 'run/model_index.json').is_file()


@pytest.mark.scale
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(tmp_path):
    """Twenty times. Mutation: older checkpoints are removed before the new one is whole, or it has its name before."""
    from tests.test_scale.kill import kill_again_and_again
    kill_again_and_again(tmp_path, kills=20)
