# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: as soon as anything else runs on the machine, threads of torch wait for each other at every layer,
# which makes two of them up to ten times slower than one.
export OMP_NUM_THREADS := 1

.PHONY: install demo test lint check-arm clean

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[mmdet,classification,diffusers,report,numba,dev]'
	touch $@

demo: install
	$(BIN)/python tools/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest --numprocesses 2

# The engine on 64-bit Arm: cross-compiled, and compared with loops under an emulator. Skips where the tools are absent.
ARM_CXX := aarch64-linux-gnu-g++
ENGINE := kernels/bnn_kernels/cpu/src
check-arm:
	@if ! command -v $(ARM_CXX) || ! command -v qemu-aarch64; then \
		echo 'check-arm skipped: it needs $(ARM_CXX) and qemu-aarch64 (Debian: g++-aarch64-linux-gnu qemu-user)'; \
	else \
		mkdir -p build && \
		$(ARM_CXX) -std=c++20 -O3 -static -fopenmp -ffp-contract=off -Wall -Wextra -Wno-maybe-uninitialized -I$(ENGINE) \
			tests/test_kernels/exactness.cpp $(ENGINE)/*.cpp -o build/exactness-arm && \
		qemu-aarch64 build/exactness-arm; \
	fi

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs
