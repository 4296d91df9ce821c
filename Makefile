# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: as soon as anything else runs on the machine, threads of torch wait for each other at every layer,
# which makes two of them up to ten times slower than one.
export OMP_NUM_THREADS := 1
ENGINE := kernels/bnn_kernels/cpu/src

.PHONY: test-nightly install demo test test-scale lint docs check-arm test-triton sanitize fuzz mutate package clean

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml setup.py $(wildcard $(ENGINE)/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[mmdet,classification,diffusers,report,numba,triton,dev,docs]'
	touch $@

demo: install
	$(BIN)/python tools/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation, from docs/ and the docstrings, into build/site; no network, broken links are errors.
docs: install
	$(BIN)/python -m benchmarks.tables --check
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=.:kernels $(BIN)/mkdocs build --strict --quiet

test: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not scale and not nightly'

# Training on several processes: every method sharded, processes that are killed.
test-scale: install
	$(BIN)/pytest -m scale

# What takes a minute or more: notebooks, the wheel in a new environment.
test-nightly: install
	$(BIN)/pytest -m nightly

# The Triton kernels with every version of Triton that they support, each in a folder of its own.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
test-triton: install
	@for version in $(TRITONS); do \
		folder=.cache/triton/$$version; \
		test -d $$folder || $(BIN)/pip install --quiet --no-deps --target $$folder triton==$$version || exit 1; \
		echo "Triton $$version"; \
		PYTHONPATH=$$folder $(BIN)/pytest --quiet --numprocesses 2 tests/test_kernels/test_triton*.py \
			tests/test_kernels/test_tensorcore*.py || exit 1; \
	done

# The engine on 64-bit Arm: cross-compiled, and compared with loops under an emulator. Skips where the tools are absent.
ARM_CXX := aarch64-linux-gnu-g++
check-arm:
	@if ! command -v $(ARM_CXX) || ! command -v qemu-aarch64; then \
		echo 'check-arm skipped: it needs $(ARM_CXX) and qemu-aarch64 (Debian: g++-aarch64-linux-gnu qemu-user)'; \
	else \
		mkdir -p build && \
		$(ARM_CXX) -std=c++20 -O3 -static -fopenmp -ffp-contract=off -Wall -Wextra -Wno-maybe-uninitialized -I$(ENGINE) \
			tests/test_kernels/exactness.cpp $(ENGINE)/*.cpp -o build/exactness-arm && \
		qemu-aarch64 build/exactness-arm; \
	fi

# The tests of the engine under AddressSanitizer and UndefinedBehaviorSanitizer. Leaks are not looked for: Python keeps its memory;
# neither are compilers of torch, which take minutes here.
SANITIZED := build/engine-sanitized.so
SANITIZERS = $(foreach library,libasan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(library)))
SANITIZED_ENGINE = ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=8192 \
	LD_PRELOAD='$(SANITIZERS)' BNN_KERNELS_CPU_LIBRARY=$(abspath $(SANITIZED))
sanitize: install $(SANITIZED)
	$(SANITIZED_ENGINE) $(BIN)/pytest tests/test_kernels -m 'sanitize and not compiles'

# Damaged and crafted files for everything that reads files, with the engine and with the sanitized one.
FUZZ ?= 10000
fuzz: install $(SANITIZED)
	$(BIN)/python tests/fuzz.py --count $(FUZZ)
	$(SANITIZED_ENGINE) $(BIN)/python tests/fuzz.py --count $(FUZZ) --readers packed int8

$(SANITIZED): $(wildcard $(ENGINE)/*)
	mkdir -p build
	$(CXX) -std=c++20 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -fPIC -shared \
		-fopenmp -ffp-contract=off -fvisibility=hidden $(ENGINE)/*.cpp -o $@

# One-line mutations of every package, which the mirrored tests have to notice: a sample, or all of them with SAMPLE=999.
SAMPLE ?= 4
mutate: install
	$(BIN)/python tests/mutate.py --sample $(SAMPLE)

# Source distribution and wheel, by the ordinary tools, and the wheel in a new environment.
package: install
	rm -rf dist
	$(BIN)/python -m build
	BNN_PLUGINS_WHEEL=$$(echo $(CURDIR)/dist/*.whl) $(BIN)/pytest tests/test_packaging.py

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs
