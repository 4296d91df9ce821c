"""What the processes of the tests run: the tools, which also keep what each process has at the end."""

import os
from pathlib import Path

import torch

from tests.processes import run_tool


def train_diffusion(arguments: list, kept: Path, stop: int | None = None) -> None:
    """``tools/train_diffusion.py``; the state of each process in ``kept/rankN.pth``, and the images that it trained on.

    ``stop``: end behind the checkpoint of this step, as if killed there.
    """
    from bnn_plugins.apps.diffusion.train import Trainer
    from bnn_plugins.engine.sharding import whole
    run, loss, save_checkpoint = Trainer.run, Trainer.loss, Trainer.save_checkpoint

    def keep(trainer):
        torch.save(dict(weights=trainer.bare_unet.state_dict(), ema=whole(trainer.ema and trainer.ema.shadow_params),
                        optimizer=trainer.optimizer.state_dict(), places=trainer.places, rates=trainer.rates,
                        step=trainer.step, epoch=trainer.epoch, total=trainer.total_steps,
                        directions=trainer.mimicking.directions),
                   kept / f'rank{trainer.accelerator.process_index}.pth')

    def run_and_keep(trainer):
        trainer.places, trainer.rates = [], []
        folder = run(trainer)
        keep(trainer)
        return folder

    def loss_and_keep(trainer, batch):
        position = trainer.batches * trainer.accelerator.num_processes + trainer.accelerator.process_index
        trainer.places += [(trainer.epoch, position * trainer.args.train_batch_size + i) for i in range(len(batch['input']))]
        trainer.rates.append((trainer.step, trainer.schedule.get_last_lr()[0]))
        return loss(trainer, batch)

    def save_and_stop(trainer):
        save_checkpoint(trainer)
        if trainer.step == stop:
            keep(trainer)
            raise SystemExit
    Trainer.run, Trainer.loss, Trainer.save_checkpoint = run_and_keep, loss_and_keep, save_and_stop
    run_tool('train_diffusion.py', [*arguments, '--traceback'])


def train_lazily(arguments: list, kept: Path, stop: int | None = None) -> None:
    """As :func:`train_diffusion`, where no set of images is small enough to be read at once."""
    from bnn_plugins.apps.diffusion import data
    data.DECODED_BYTES = 1
    train_diffusion(arguments, kept, stop)


def train(arguments: list, kept: Path, stop: int | None = None, machines: bool = False) -> None:
    """``tools/train.py``; the state of each process in ``kept/rankN.pth``, and sums of the images that it trained on.

    Args:
        stop: end after so many iterations, once their checkpoint is written, as if killed there.
        machines: each process is on a machine of its own, in another folder, started by Slurm.
    """
    from mmengine.runner import EpochBasedTrainLoop, Runner
    train_runner, run_iter = Runner.train, EpochBasedTrainLoop.run_iter
    seen = []

    def keep(runner):
        model = runner.model.module if hasattr(runner.model, 'module') else runner.model
        averages = [hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model')]
        torch.save(dict(weights=model.state_dict(), average=averages[0].state_dict() if averages else None, seen=seen,
                        optimizer=runner.optim_wrapper.optimizer.state_dict(),
                        schedules=[schedule.state_dict() for schedule in runner.param_schedulers],
                        rates=runner.optim_wrapper.get_lr()['lr'], iter=runner.iter, epoch=runner.epoch,
                        seed=torch.initial_seed()), kept / f'rank{runner.rank}.pth')

    def train_and_keep(runner):
        result = train_runner(runner)
        keep(runner)
        return result

    def iterate_and_stop(loop, index, batch):
        seen.extend((loop.epoch, round(float(image.double().sum()))) for part in batch['inputs'] for image in part)
        run_iter(loop, index, batch)
        if loop.iter == stop:
            keep(loop.runner)
            raise SystemExit
    Runner.train, EpochBasedTrainLoop.run_iter = train_and_keep, iterate_and_stop
    launcher = ['--launcher', 'pytorch'] if 'RANK' in os.environ else []
    if machines:
        rank = os.environ.pop('RANK')
        os.environ.update(SLURM_PROCID=rank, SLURM_NTASKS=os.environ.pop('WORLD_SIZE'), SLURM_LOCALID='0')
        (kept / f'machine{rank}').mkdir(exist_ok=True)
        os.chdir(kept / f'machine{rank}')
        launcher = ['--launcher', 'slurm']
    run_tool('train.py', [*arguments, *launcher, '--traceback'])


def evaluate(config: Path, checkpoint: Path, kept: Path, count: int) -> None:
    """What ``tools/test.py`` calls; the metrics of the first process in ``kept/metricsN.pth``."""
    from bnn_plugins.integrations.mmengine.run import test
    metrics = test(str(config), str(checkpoint), str(kept / f'test{count}'), out=str(kept / f'predictions{count}.pkl'),
                   launcher='pytorch' if count > 1 else 'none')
    if os.environ.get('RANK', '0') == '0':
        torch.save(metrics, kept / f'metrics{count}.pth')


def decide_nothing() -> None:
    from bnn_plugins.engine.processes import from_first
    torch.distributed.init_process_group('gloo')
    from_first(lambda: {}['nothing'])


def share_a_file(kept: Path) -> None:
    """Each process in a folder of its own: what the first has under a relative path, the second has afterwards."""
    from bnn_plugins.engine.processes import share_file
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    os.environ['LOCAL_RANK'] = '0'
    (kept / f'machine{rank}/run').mkdir(parents=True)
    os.chdir(kept / f'machine{rank}')
    if rank == 0:
        torch.save(torch.arange(10.), 'run/whole.pth')
        torch.save(torch.arange(10.), 'run/changed.pth')
    else:
        torch.save(torch.zeros(10), 'run/changed.pth')
    for name in ('whole.pth', 'changed.pth', 'nowhere.pth'):
        share_file(f'run/{name}')


def network(method: str | dict) -> torch.nn.Module:
    """A block network with a norm that does not look at other images, as blocks are gathered: two of them in a list."""
    from torch import nn

    from bnn_plugins.layers import BinaryConv2d, BinaryLinear
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Sequential(BinaryConv2d(8, 8, 3, padding=1, method=method), nn.GroupNorm(2, 8), nn.PReLU(8)))
              for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(*blocks), nn.Flatten(), BinaryLinear(8 * 16, 8, method=method),
                         nn.Linear(8, 5))


def train_methods(methods: list, sharded: bool, kept: Path) -> None:
    """Three steps of each method on six images a step, wherever they are; with clipping and what follows a step."""
    from bnn_plugins.binarize import after_step_, set_progress, start_epoch_
    from bnn_plugins.engine import Bop, adaptive_clip_grad_
    from bnn_plugins.engine.sharding import shard_, whole_state_
    rank, count = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    if count > 1:
        torch.distributed.init_process_group('gloo')
    result = {}
    for method in methods:
        name, options = method if isinstance(method, tuple) else (method, {})
        model = network(options.get('method', name))
        wrapped = shard_(model) if sharded else model if count == 1 else torch.nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False)
        groups = [dict(params=[p for p in model.parameters() if p.ndim < 2]),
                  dict(params=[p for p in model.parameters() if p.ndim >= 2], latent=True)]
        optimizer = Bop(groups, lr=0.01, gamma=0.5) if name == 'bop' else torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        if sharded:
            whole_state_(optimizer)
        images, target = torch.randn(3, 6, 3, 6, 6), torch.randn(3, 6, 5)
        own = slice(rank * 6 // count, (rank + 1) * 6 // count)
        start_epoch_(model)
        for step in range(3):
            set_progress(model, step / 3)
            (wrapped(images[step, own]) - target[step, own]).square().mean().backward()
            adaptive_clip_grad_(model.parameters(), 0.5)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            after_step_(model)
        result[name] = dict(weights=model.state_dict(), optimizer=optimizer.state_dict())
        if sharded:  # what was gathered goes back into shards
            again = shard_(network(options.get('method', name)))
            again.load_state_dict(result[name]['weights'])
            optimizer.load_state_dict(result[name]['optimizer'])
            again.eval(), model.eval()
            with torch.no_grad():
                assert torch.equal(again(images[0]), model(images[0]))
    torch.save(result, kept / f'{"sharded" if sharded else "ddp"}{count}-{rank}.pth')


def train_flexible(config: Path, kept: Path) -> None:
    """``tools/train.py`` with mmengine's ``FlexibleRunner``; the whole weights of each process in ``kept/rankN.pth``."""
    from mmengine.runner import FlexibleRunner
    train_runner = FlexibleRunner.train

    def train_and_keep(runner):
        result = train_runner(runner)
        torch.save(runner.model.state_dict(), kept / f'rank{torch.distributed.get_rank()}.pth')
        return result
    FlexibleRunner.train = train_and_keep
    run_tool('train.py', [config, '--work-dir', kept / 'run', '--launcher', 'pytorch', '--traceback'])
