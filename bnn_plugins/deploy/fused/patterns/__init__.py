"""What is fused, one file for each pattern, in the order in which they look at a graph."""

from . import block, branches, conv, downsample, int8, pool, stem, sums

PATTERNS = (block.match, stem.match, downsample.match, int8.match, sums.match, branches.match, conv.match,
            pool.match)
