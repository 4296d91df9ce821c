"""The compiled engine: C++ in src/, loaded by engine.py, offered to dispatch by backend.py."""

from .engine import ISAS, available_isas, ceilings, isa, set_isa, timed_runs

__all__ = ['ISAS', 'available_isas', 'ceilings', 'isa', 'set_isa', 'timed_runs']
