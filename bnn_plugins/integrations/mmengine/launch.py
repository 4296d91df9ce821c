"""Processes of a launcher, with or without GPUs."""

import os
import socket
import subprocess

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.logging import print_log

from ...engine.processes import check_restart

# What these launchers call the variables of torchrun.
VARIABLES = {
    'pytorch': {},
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(RANK='OMPI_COMM_WORLD_RANK', WORLD_SIZE='OMPI_COMM_WORLD_SIZE', LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK'),
}


def join_processes(cfg: Config) -> None:
    """Join the process group of ``cfg.launcher``, once in a process; without GPUs over gloo, which mmengine does not do.

    Raises:
        ValueError: when the launcher did not start this process. RuntimeError: see :func:`.check_restart`.
    """
    if cfg.launcher == 'none' or torch.distributed.is_initialized():
        return
    check_restart()
    if torch.cuda.is_available():
        init_dist(cfg.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
        return
    for name, variable in VARIABLES[cfg.launcher].items():
        if variable not in os.environ:
            raise ValueError(f'--launcher {cfg.launcher}, but {variable} is not set: start the tool with '
                             f'{"srun" if cfg.launcher == "slurm" else "mpirun"}, or use another launcher')
        os.environ[name] = os.environ[variable]
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.check_output(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], text=True)
        os.environ['MASTER_ADDR'] = hosts.split()[0]
    os.environ.setdefault('MASTER_PORT', '29500')
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR') if name not in os.environ]
    if missing:
        raise ValueError(f'--launcher {cfg.launcher}, but {missing[0]} is not set: ' + (
            'export it, the address of the first machine' if cfg.launcher == 'mpi' else 'start the tool with torchrun'))
    torch.distributed.init_process_group('gloo')
    print_log(f'no GPU: gloo on {os.environ["WORLD_SIZE"]} processes', logger='current')


def distribute_(cfg: Config) -> None:
    """Complete a config for several processes: a wrapper that works without a GPU, and no files between machines."""
    if cfg.launcher == 'none':
        return
    if not torch.cuda.is_available():
        cfg.sync_bn = None  # torch has it for GPUs only
    if not torch.cuda.is_available() and cfg.get('model_wrapper_cfg') is None:
        # mmengine's default wrapper insists on a GPU.
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                                     find_unused_parameters=cfg.get('find_unused_parameters', False))
    places = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(places, (socket.gethostname(), os.getcwd()))
    if len(set(places)) > 1:
        # By default mmengine collects results in a folder of the first machine, which the others may not see.
        for key in ('val_evaluator', 'test_evaluator'):
            evaluators = cfg.get(key) or []
            for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
                evaluator.setdefault('collect_device', 'gpu')
