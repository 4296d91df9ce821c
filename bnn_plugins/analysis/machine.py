"""What a measurement was made on."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# Instruction sets that decide how fast signs and floats are multiplied.
FLAGS = ('popcnt', 'avx2', 'avx512f', 'avx512bw', 'avx512_vnni', 'avx512_bf16', 'avx512_vpopcntdq', 'amx_int8', 'amx_bf16',
         'asimd', 'asimddp', 'i8mm', 'bf16', 'sve')


def processor() -> str:
    """The processor's name and the widest vector instructions that torch uses on it, ``'AMD EPYC (AVX512)'``."""
    names = cpuinfo('model name')
    return f'{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})'


def cpu_flags() -> list[str]:
    """Those of :data:`FLAGS` that this processor has."""
    has = set(' '.join(cpuinfo('flags') + cpuinfo('Features')).split())
    return [flag for flag in FLAGS if flag in has]


def cpuinfo(key: str) -> list[str]:
    """Values of ``key`` in Linux's list of processors; empty on other systems."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    return [line.partition(':')[2].strip() for line in lines if line.partition(':')[0].strip() == key]


def machine_facts() -> dict[str, str]:
    """Columns of a results file: processor, its flags, GPU, versions, and the commit (``+`` where files were changed)."""
    return {'processor': processor(), 'cpu_flags': ' '.join(cpu_flags()),
            'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else '',
            'torch': torch.__version__, 'python': platform.python_version(), 'mmdet': installed('onedl-mmdetection'),
            'bnn_plugins': installed('bnn_plugins'), 'commit': commit()}


def installed(package: str) -> str:
    """Its version, ``''`` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ''


def commit() -> str:
    """The commit of the checkout that this package lies in, ``''`` outside of one."""
    where = Path(__file__).parents[2]
    if not (where / '.git').exists():
        return ''
    try:
        head, changes = (subprocess.run(['git', '-C', str(where), *command], capture_output=True, text=True, check=True).stdout
                         for command in (('rev-parse', '--short', 'HEAD'), ('status', '--porcelain', '-uno')))
    except (OSError, subprocess.CalledProcessError):
        return ''
    return head.strip() + ('+' if changes.strip() else '')
