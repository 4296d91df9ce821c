# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: as soon as anything else runs on the machine, threads of torch wait for each other at every layer,
# which makes two of them up to ten times slower than one.
export OMP_NUM_THREADS := 1

.PHONY: install demo test lint clean

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[mmdet,diffusers,report,numba,dev]'
	touch $@

demo: install
	$(BIN)/python tools/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest --numprocesses 2

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs
