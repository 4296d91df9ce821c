"""Runs from a bare checkout: what it measures is the one that it stands in, and nothing needs to be installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / 'kernels'), str(ROOT)]
