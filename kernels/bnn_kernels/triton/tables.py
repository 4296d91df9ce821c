"""Tiles from tables.toml: a choice by kernel, architecture and output channels instead of autotuning."""

import tomllib
from functools import cache
from pathlib import Path


@cache
def tile(kernel: str, arch: str, outputs: int) -> dict[str, int]:
    """Block sizes and launch options of `kernel` ('popcount', 'bitplane', 'finish', 'pack') for a layer.

    Args:
        arch: 'sm_90', 'gfx942', 'interpreter'; one without a section takes `default`.
        outputs: accumulators of one group.
    """
    rows = _tables()[kernel].get(arch) or _tables()[kernel]['default']
    row = max((row for row in rows if row['outputs'] <= outputs), key=lambda row: row['outputs'])
    return {name: value for name, value in row.items() if name != 'outputs'}


@cache
def _tables() -> dict:
    return tomllib.loads(Path(__file__).with_suffix('.toml').read_text())
