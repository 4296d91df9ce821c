"""What is fused, one file for each pattern, in the order in which they look at a graph."""

from . import affine, block, conv, downsample, int8, pool, stem

PATTERNS = (block.match, stem.match, downsample.match, int8.match, affine.match, conv.match, pool.match)
