"""What a measurement was made on."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name and the widest vector instructions that torch uses on it, ``'AMD EPYC (AVX512)'``."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})'
