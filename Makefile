# Everything below works from a bare clone: it makes its own environment in .venv first.
#
#   make demo    train on real prices, decide, show how good and how fast   (a few minutes)
#   make test    build, with the CUDA kernels where nvcc is, and run the tests
#   make docs    the documentation, into docs/_build
#   make gpu     on a machine with a GPU, with the python3 that is there: no environment, no network;
#                gpu-first, gpu-check and gpu-peers are its parts, the most important first
#
# TORCH chooses the torch to install, e.g. make demo TORCH="torch==2.13.0 --index-url=..." for a CPU-only wheel.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -q
TEST_WORKERS ?= 2
SKFOLIO ?= skfolio

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NVCC := $(shell command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
# Tests build the CUDA kernels also against a CPU-only torch: they have to compile, link and import there.
WITH_CUDA := $(if $(NVCC),FORCE_CUDA=1,)

.PHONY: env install build test test-fast sanitize demo bench gpu gpu-first gpu-check gpu-peers lint format docs clean
.DELETE_ON_ERROR:

# What exercises every CPU kernel, odd sizes included, without compilers or subprocesses.
SANITIZE_TESTS := tests/model/test_model.py tests/model/test_graph.py tests/ops/test_decision.py -k "native and not compile"

env: $(VENV)/.env-dev

# The installed editable package is the build of the first time; `build` brings it up to date, and shows what it says.
install: $(VENV)/.env-demo build

build: $(VENV)/.env
	$(BIN)/python setup.py -q build_ext --inplace

test: $(VENV)/.env-test
	$(WITH_CUDA) $(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python tests/simt/harness.py
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Every operator, the modules, checkpoints, data and training once, on the CPU build.
test-fast: $(VENV)/.env-test build
	$(BIN)/python -m pytest -m fast -n $(TEST_WORKERS) $(PYTEST_ARGS) tests/ops tests/model tests/data tests/training

demo: $(VENV)/.env-demo build
	$(BIN)/python -m hiermt demo

bench: $(VENV)/.env-test build
	$(BIN)/python bench/run.py $(BENCH_ARGS)
	$(BIN)/python bench/report.py --readme

# The tables are written whatever a stage found: they say what failed.
gpu gpu-first gpu-check gpu-peers:
	$(PYTHON) bench/gpu.py $(filter-out gpu,$(@:gpu-%=%)); status=$$?; \
	  PYTHONPATH=. $(PYTHON) bench/report.py --readme; exit $$status

# The CPU kernels under AddressSanitizer and UBSan, in a copy of the package of its own.
SANITIZED := build/sanitized
sanitize: $(VENV)/.env-test
	FORCE_CUDA=0 HIERMT_BUILD_DIR=build/sanitize \
	  HIERMT_CMAKE_ARGS="-DHIERMT_SANITIZE=address,undefined -DHIERMT_ISAS=baseline" \
	  $(BIN)/python setup.py -q build --build-lib $(SANITIZED)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 PYTHONPATH=$(SANITIZED) \
	  $(BIN)/pytest -q -p no:cacheprovider $(SANITIZE_TESTS)

lint: $(VENV)/.env-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.env-dev
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# A warning is an error: a name that is gone from the code shows here.
docs: $(VENV)/.env-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

clean:
	rm -rf build dist *.egg-info $(VENV) hiermt/libhiermt.* hiermt/_build.json

SOURCES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

$(VENV)/.env:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(TORCH)
	$(PIP) install -q "setuptools>=77.0.3" "cmake>=3.20" ninja
	touch $@

# The prices inside skfolio are all that is read of it, so its solvers are not installed.
$(VENV)/.env-demo: $(VENV)/.env pyproject.toml
	$(PIP) install -q --no-build-isolation -e ".[demo]"
	$(PIP) install -q --no-deps $(SKFOLIO)
	touch $@

$(VENV)/.env-test: $(VENV)/.env-demo
	$(PIP) install -q --no-build-isolation -e ".[test]"
	touch $@

$(VENV)/.env-dev: $(VENV)/.env-test
	$(PIP) install -q --no-build-isolation -e ".[dev]"
	touch $@

$(VENV)/.env-docs: $(VENV)/.env-test
	$(PIP) install -q --no-build-isolation -e ".[docs]"
	touch $@
