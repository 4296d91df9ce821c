"""Runs the engine's real AMX code under amx_trap.cpp: `python -m test_kernels.amx_trap LIBRARY CASES`, see test_amx.py.

Prints how often each instruction ran. A process of its own, because the handler of illegal instructions stays.
"""

import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_kernels.cpu import engine
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.reference import Reference

from . import cases, int8_cases

OPERATIONS = ('ldtilecfg', 'sttilecfg', 'tilezero', 'tileloadd', 'tilestored', 'tdpbssd', 'tdpbusd', 'tdpbf16ps')
SMALL = cases.convolutions(outputs=st.integers(1, 33), batch=1)


def main(library: str, examples: int) -> None:
    engine.LIBRARY = Path(library)
    engine.set_isa('amx')
    cpu, reference = Cpu(), Reference()
    trap = engine.library()
    given_back = lambda: not trap.amx_trap_configured()  # noqa: E731
    some = settings(deadline=None, max_examples=examples, database=None, derandomize=True)

    @some
    @given(call=st.one_of(SMALL, cases.transposed()))
    def sums(call):
        op = 'binary_conv_transpose2d' if call['geometry'].transposed else 'binary_conv2d'
        assert torch.equal(getattr(cpu, op)(**call), getattr(reference, op)(**call))
        assert given_back()

    @some
    @given(call=st.one_of(cases.blocks(SMALL), cases.signs(SMALL)))
    def epilogues(call):
        if 'epilogue' in call:
            for result, expected in zip(cases.run_block(cpu, call), cases.run_block(reference, call), strict=True):
                assert torch.equal(result, expected)
        else:
            assert torch.equal(cpu.binary_conv2d_sign(**call), reference.binary_conv2d_sign(**call))
        assert given_back()

    @some
    @given(call=cases.downsamples())
    def downsamples(call):
        cases.check_downsample(cpu.downsample2d(**call), call)
        assert given_back()

    @some
    @given(call=int8_cases.convolutions())
    def int8(call):
        assert all(map(torch.equal, cpu.int8_conv2d(**call), reference.int8_conv2d(**call)))
        assert given_back()

    sums(), epilogues(), downsamples(), int8()
    print(*(f'{name}={trap.amx_trap_executed(number)}' for number, name in enumerate(OPERATIONS)))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
