"""Kernels compiled without a GPU: Triton's own way to a launch, for a GPU that is not there.

Inside `compiling_for` the Triton backends take CPU tensors for those of the named GPU, and Triton specializes and compiles
what they launch as it would there. A launch itself is noted instead of made: results are whatever their memory holds. What
lands in Triton's cache (TRITON_CACHE_DIR) is what a process on that GPU finds there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from .. import dispatch
from . import device

PROCESSORS = {'sm_75': 40, 'sm_80': 108, 'sm_86': 84, 'sm_89': 142, 'sm_90': 132, 'sm_100': 148, 'gfx942': 304}
SHARED_KIB = {'sm_75': 64, 'sm_80': 163, 'sm_86': 99, 'sm_89': 99, 'sm_90': 227, 'sm_100': 227, 'gfx942': 64}  # of a block

NUMBERS = count(1000)  # of a device: Triton remembers by it what it has loaded


class Launch(NamedTuple):
    """One that was not made. `values`: of all arguments, constants included."""

    kernel: 'Kernel'
    grid: tuple[int, int, int]
    values: tuple

    @property
    def arguments(self) -> dict[str, Any]:
        """By name."""
        return dict(zip(self.kernel.source.fn.arg_names, self.values, strict=True))


class Kernel:
    """One that Triton compiled and loaded, for one set of types and constants of its arguments.

    Attributes:
        source: its function, signature and constants, as Triton keeps them.
        metadata: `shared` (bytes), the options of the compiler and more.
    """

    def __init__(self, offline: 'Offline', source: Any, metadata: Any):
        self.offline, self.source, self.metadata = offline, source, metadata
        offline.kernels.append(self)

    @property
    def compiled(self) -> dict[str, Any]:
        """By stage: 'ptx' and 'cubin', 'amdgcn' and 'hsaco'."""
        loaded = self.source.fn.device_caches[self.offline.number][0].values()
        return next(kernel.asm for kernel in loaded if kernel.src is self.source)

    def __call__(self, x: int, y: int, z: int, stream, function, packed, launch_metadata, enter, leave, *arguments):
        self.offline.launches.append(Launch(self, (x, y, z), arguments))


class Offline:
    """A driver of Triton. Attributes: `kernels` in the order they were loaded, `launches` in the order they were asked for."""

    def __init__(self, architecture: str):
        self.kernels: list[Kernel] = []
        self.launches: list[Launch] = []
        self.architecture, self.utils = architecture, self
        nvidia = architecture.startswith('sm_')
        self.target = GPUTarget('cuda', int(architecture[3:]), 32) if nvidia else GPUTarget('hip', architecture, 64)
        self.number = next(NUMBERS)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return dict(max_shared_mem=SHARED_KIB[self.architecture] << 10, multiprocessor_count=PROCESSORS[self.architecture])

    def launcher_cls(self, source: Any, metadata: Any) -> Kernel:
        return Kernel(self, source, metadata)

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, most threads of a block; the first four are not known."""
        return 0, 0, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


@contextmanager
def compiling_for(architecture: str) -> Iterator[Offline]:
    """Puts a GPU of `architecture` ('sm_80', 'sm_86', 'sm_90', ... of `PROCESSORS`) under all CPU tensors of this process.

    Every time with nothing loaded, so that `kernels` has all that is launched inside.

    Example:
        >>> x_words, w_words = pack_features(torch.randn(4, 64)), pack_features(torch.randn(8, 64))
        >>> with compiling_for('sm_90') as gpu, set_backend('triton-popcount'):
        ...     sums = binary_linear(x_words, w_words, features=64)
        >>> gpu.launches[0].grid
        (1, 1, 1)
    """
    offline = Offline(architecture)
    before = driver._active, device.stand_in
    capability = (int(architecture[3:-1]), int(architecture[-1])) if architecture.startswith('sm_') else None
    driver._active, device.stand_in = offline, device.Gpu(architecture, capability, PROCESSORS[architecture])
    try:
        with dispatch.chosen_anew(machine=True):
            yield offline
    finally:
        driver._active, device.stand_in = before
