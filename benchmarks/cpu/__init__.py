"""Speed on a CPU: ``python -m benchmarks.cpu.run``."""
