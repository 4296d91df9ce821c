"""The compiled library: loads it, chooses the instruction set, hands over arguments.

Structs of src/ travel as arrays of int64, every field has eight bytes; the library tells their order (`layout`).
"""

import ctypes
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_double, c_int64, c_void_p
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import torch
from torch import Tensor  # before the library is loaded: torch brings the OpenMP that both share

VERSION = 20  # of the C interface, as in src/api.cpp
# From slow to fast; their places are enum Isa of src/engine.hpp.
ISAS = ('portable', 'neon', 'avx2', 'avx512', 'amx', 'amx-emulated')
TILES = ('amx', 'amx-emulated')  # have products of bfloat16
EMULATED = 'amx-emulated'  # the code for AMX on any processor: for tests, never chosen by itself
VARIABLE = 'BNN_KERNELS_CPU_ISA'
LIBRARY = Path(os.environ.get('BNN_KERNELS_CPU_LIBRARY') or Path(__file__).with_name('_engine.so'))
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Dtype of src/engine.hpp
STREAMS = DTYPES | {torch.uint8: 3, torch.int8: 4}  # of it, what a stream may be
FUNCTIONS = {
    'bnn_has': (c_int64, [c_int64]),
    'bnn_struct_layout': (c_char_p, [c_char_p]),
    'bnn_prepared_bytes': (c_int64, [c_void_p]),
    'bnn_prepare': (None, [c_void_p] * 4),
    'bnn_downsample_bytes': (c_int64, [c_int64] * 3),
    'bnn_prepare_downsample': (None, [c_int64] * 3 + [c_void_p] * 2),
    'bnn_run': (c_char_p, [c_void_p, c_int64, c_void_p, c_int64, c_void_p]),
    'bnn_time_runs': (None, [c_int64]),
    'bnn_run_seconds': (c_double, []),
    'bnn_sequence_lanes': (c_int64, [c_int64]),
    'bnn_lstm': (c_char_p, [c_int64, c_void_p]),
    'bnn_attention': (c_char_p, [c_int64, c_void_p]),
    'bnn_normalized': (c_char_p, [c_int64, c_int64, c_void_p]),
    **{f'bnn_{name}': (c_char_p, [c_int64, c_void_p]) for name in (
        'operand', 'norm_sums', 'norm_forward', 'norm_backward', 'sign_backward', 'latent_backward',
        'unpack_signs', 'sign_products')},
    **{f'bnn_{name}': (c_char_p, [c_int64] * 2 + [c_void_p] * (2 + tensors) + [c_double] * numbers)
       for name, tensors, numbers in (('clip', 1, 1), ('count_flips', 3, 0), ('flip', 3, 2), ('clip_units', 2, 2))},
    'bnn_ceilings': (None, [c_int64, c_void_p]),
}


@cache
def library() -> ctypes.CDLL:
    """Raises RuntimeError: the engine was not compiled, or from another version of its sources."""
    if not LIBRARY.exists():
        raise RuntimeError('the engine was not compiled when this package was installed: install a C++20 compiler, such as '
                           'g++ 12, then this package again')
    engine = ctypes.CDLL(os.fspath(LIBRARY))
    engine.bnn_version.restype = c_int64
    if engine.bnn_version() != VERSION:
        raise RuntimeError(f'{LIBRARY.name} was compiled from another version of its sources: install this package again')
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(engine, name)
        function.restype, function.argtypes = result, arguments
    return engine


def call(function: str, *arguments) -> None:
    """Calls a function that returns NULL or a sentence. Raises RuntimeError with that sentence."""
    sentence = getattr(library(), function)(*arguments)
    if sentence is not None:
        raise RuntimeError(sentence.decode())


# --- the instruction set -----------------------------------------------------------------------------------------------------

class set_isa:
    """Forces an instruction set by name for the whole process; None takes the best. In a `with` statement, until its end.

    The environment variable BNN_KERNELS_CPU_ISA sets the initial choice.

    Raises:
        ValueError: unknown name.
        RuntimeError: this processor lacks it, or the engine was not compiled.
    """

    def __init__(self, name: str | None):
        global _isa
        self.previous, _isa = _isa, None if name is None else _place(name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        global _isa
        _isa = self.previous


def isa() -> str:
    """The instruction set in use. Raises as `set_isa` where the environment variable names one that cannot be used."""
    return ISAS[isa_number()]


def isa_number() -> int:
    global _isa
    if _isa is None:
        name = os.environ.get(VARIABLE)
        _isa = _place(name or [isa for isa in available_isas() if isa != EMULATED][-1])
    return _isa


@cache
def available_isas() -> list[str]:
    """What this processor has and the library holds. Raises RuntimeError as `library`."""
    return [name for place, name in enumerate(ISAS) if library().bnn_has(place)]


@cache
def ceilings(name: str | None = None) -> dict[str, float]:
    """Measures, in less than a second, what one core could do if nothing but arithmetic took time, in GMAC/s.

    Args:
        name: an instruction set; None is the one in use.

    Returns:
        'binary': the inner step of the 1-bit convolution, 'float': the float32 multiply-add. 0 where it has no measurement.

    Raises as `set_isa`.
    """
    rates = array('d', [0, 0])
    library().bnn_ceilings(isa_number() if name is None else _place(name), rates.buffer_info()[0])
    return {'binary': rates[0] / 1e9, 'float': rates[1] / 1e9}


@contextmanager
def timed_runs(clock: int) -> Iterator[Callable[[], float]]:
    """Times the convolutions, packings, downsamples and stems within, apart from what Python does around them.

    Args:
        clock: of the module `time`, `time.CLOCK_MONOTONIC` for example.

    Yields:
        a function: seconds that they took in this thread since it was last asked. 0: there were none, or no engine.
    """
    try:
        engine = library()
    except RuntimeError:
        yield lambda: 0.0
        return
    engine.bnn_time_runs(clock)
    engine.bnn_run_seconds()
    try:
        yield engine.bnn_run_seconds
    finally:
        engine.bnn_time_runs(-1)


_isa: int | None = None


def _place(name: str) -> int:
    if name not in ISAS:
        nearest = get_close_matches(name, ISAS, n=1, cutoff=0)[0]
        raise ValueError(f'Unknown instruction set {name!r} in set_isa or {VARIABLE}: did you mean {nearest!r}? '
                         f'Known are {", ".join(ISAS)}.')
    if name not in available_isas():
        raise RuntimeError(f'this processor cannot run {name}: set_isa and {VARIABLE} take {", ".join(available_isas())} here')
    return ISAS.index(name)


# --- arguments ---------------------------------------------------------------------------------------------------------------

@cache
def layout(struct: str) -> tuple[str, ...]:
    """Names of the fields of a struct of src/, in order."""
    return tuple(field.partition(':')[0] for field in library().bnn_struct_layout(struct.encode()).decode().split()[1:])


def fields(struct: str, **values) -> list:
    """The values of all fields of a struct of src/, in order. Raises TypeError where one is missing or unknown."""
    names = layout(struct)
    if len(values) != len(names) or not all(map(values.__contains__, names)):
        raise TypeError(f'{struct} has other fields: {", ".join(sorted(values.keys() ^ {*names}))}.')
    return [values[name] for name in names]


def struct(name: str, **values: int) -> array:
    """A struct of src/. Its address is `buffer_info()[0]`, as long as it lives."""
    return array('q', fields(name, **values))


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def dense(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The tensor, or a copy where its elements do not follow each other or start at an address that is no place for them."""
    tensor = tensor.contiguous(memory_format=memory_format)
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor
