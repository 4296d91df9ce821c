"""Triton kernels: `popcount` and `bitplane` in plain Triton for every GPU, `tensorcore` in Gluon for the 1-bit MMA of NVIDIA.

versions.py    which Triton this is, the names that moved between versions; raises ImportError where there is none to use
backend.py     the operators as methods: what all backends share
device.py      which GPU a tensor is on; offline.py puts one there that is not, and compiles for it
launch.py      from shapes to a launch; tables.py and tables.toml choose the tiles
geometry.py    which input pixel a tap reads; bits.py: popcount
epilogue.py    what follows the accumulator, up to the packed words
pack.py        floats to words; downsample.py: pooling and a real-valued 1x1 convolution; stem.py: what follows that of a stem
popcount.py    XOR and popcount
bitplane.py    bits expanded to int8 in registers, for the int8 MMA
sequence.py    LSTM steps, attention, normalized packing; sequence_kernels.py: their kernels
tensorcore.py  from a call to a plan of one launch; tensorcore_kernels.py: the Gluon kernels, _tables.py: what they take
               instead of the weight, _rewrite.py: the way to wgmma, _offline.py: compiles a plan without a GPU
"""

from . import versions as versions  # before any kernel: in one sentence why Triton cannot be used, where it cannot
