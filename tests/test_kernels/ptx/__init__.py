"""A small emulator of PTX in numpy: it runs the text that is handed to ptxas, on machines without a GPU.

program.py       text to instructions
block.py         one block of threads: registers, memory, and what must not be read yet
instructions.py  what an instruction does; only those that the tensor-core kernels contain, another one raises
tensor.py        mma.sync and wgmma, 1-bit and int8
device.py        a `launch` for `bnn_kernels.triton.tensorcore`: compiles a plan for a chip and runs its PTX on CPU tensors

All threads of a block take every step together, so all branches must be uniform. What that cannot show are races and timing.
What it does show: reads and writes outside the tensors or of unaligned addresses, reads of registers and shared memory that
nothing was written to, missing waits, barriers and proxy fences before shared memory is used, registers of wgmma used while it
is in flight or without a fence.
"""
