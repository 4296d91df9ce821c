"""Int8 MMAs of marked kernels become 1-bit MMAs in the PTX that Triton hands to ptxas.

An int8 MMA over 32 bytes and a 1-bit MMA over 256 bits have the same operands, byte by byte: the same registers and the same
shared memory descriptors. So the name of the instruction is all that changes.

A kernel asks for it with the marker, which is no PTX: ptxas refuses a marked kernel that was not rewritten, and a cached
binary of a marked kernel has been rewritten. Nothing here can make int8 sums out of bits in silence.
"""

import re

import triton
from triton import knobs

from .versions import release

TESTED = ((3, 6), (3, 7), (3, 8), (3, 9))  # releases whose hook and whose PTX the tests have seen
KEY = 'bnn_kernels-b1-1'  # changes with what `rewritten` does
MARKER = 'bnn_b1_required;'
MMA = re.compile(r'(wgmma\.mma_async\.sync\.aligned\.m64n\d+)k32\.s32\.s8\.s8')
LEFT = re.compile(r'\.s32\.[su]8\.[su]8')


def refusal(version: str = triton.__version__) -> str:
    """Why PTX is not rewritten with this version of Triton; '' where it is."""
    if release(version) not in TESTED:
        tested = ', '.join(f'{major}.{minor}' for major, minor in TESTED)
        return f'the rewriting of PTX was not tested with Triton {version} (tested are {tested})'
    return ''


def rewritten(ptx: str) -> str:
    """1-bit PTX of a marked kernel; other kernels are returned as they are.

    Raises RuntimeError where an int8 MMA of a marked kernel is not the expected one.
    """
    if MARKER not in ptx:
        return ptx
    ptx, count = MMA.subn(r'\1k256.s32.b1.b1.and.popc', ptx.replace(MARKER, ''))
    if not count or LEFT.search(ptx):
        raise RuntimeError(f'Triton {triton.__version__} writes int8 MMAs that bnn_kernels does not know: set '
                           f'BNN_KERNELS_WGMMA=0 to do without them, and report it.')
    return ptx


def install() -> None:
    """Puts `rewritten` behind the PTX stage of Triton's compiler, for this process. A hook that is there runs first."""
    previous = knobs.runtime.add_stages_inspection_hook
    if getattr(previous, 'bnn_kernels', False):
        return

    def hook(backend=None, stages=None, options=None, language=None, capability=None):
        if stages is None:  # since 3.7: the hook's parts of the cache keys
            return tuple(f'{KEY} {part}' for part in (previous() if previous else ('', '')))
        if previous:
            previous(backend, stages, options, language, capability)
        if 'ptx' in stages:
            make_ptx = stages['ptx']
            stages['ptx'] = lambda source, metadata: rewritten(make_ptx(source, metadata))

    hook.bnn_kernels = True
    knobs.runtime.add_stages_inspection_hook = hook
