"""Runs the engine's real AMX code under amx_trap.cpp: `python -m test_kernels.amx_trap LIBRARY CASES`, see test_amx.py.

A process of its own, because the handler of illegal instructions stays.
"""

import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_kernels.cpu import engine
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.reference import Reference

from . import cases


def main(library: str, examples: int) -> None:
    engine.LIBRARY = Path(library)
    engine.set_isa('amx')
    cpu, reference = Cpu(), Reference()
    trap = engine.library()

    @settings(deadline=None, max_examples=examples, database=None, derandomize=True)
    @given(call=st.one_of(cases.convolutions(outputs=st.integers(1, 33), batch=1), cases.transposed()))
    def run(call):
        op = 'binary_conv2d' if 'pad_value' in call else 'binary_conv_transpose2d'
        assert torch.equal(getattr(cpu, op)(**call), getattr(reference, op)(**call))
        assert not trap.amx_trap_configured()  # tiles are given back

    run()
    print(trap.amx_trap_executed())


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
