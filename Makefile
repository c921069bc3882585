# Everything below works from a bare clone: it makes its own environment in .venv first. `make help` lists the targets.
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
# Tests build the CUDA kernels also against a CPU-only torch: they have to compile, link and import there. Where no GPU
# could run them, for one architecture: nvcc takes several minutes for all of them, which `make ptx` looks at. Its PTX is
# kept as text in the objects, where tests/ptx finds it.
# Every target that builds in place says so, or it would build the others beside them.
GPU := $(shell command -v nvidia-smi 2>/dev/null)
ARCHITECTURES := $(if $(NVCC),$(if $(GPU)$(TORCH_CUDA_ARCH_LIST),,TORCH_CUDA_ARCH_LIST=9.0+PTX NVCC_APPEND_FLAGS=--no-compress))
WITH_CUDA := $(if $(NVCC),FORCE_CUDA=1 $(ARCHITECTURES))

# Images of containers often set it. Every process of a test would then compile torch and PyG from their sources anew,
# which takes longer than most tests: 10 core seconds in place of 4.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help env install build test harness ptx fuzz fuzz-files fuzz-operators test-fast check \
  sanitize tsan soak planted coverage aoti matrix wheel audit \
  sbom demo bench gpu gpu-first gpu-check gpu-peers lint format docs clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# What exercises every CPU kernel, odd sizes included, without compilers or subprocesses.
SANITIZE_TESTS := tests/model/test_model.py tests/model/test_graph.py tests/ops/test_heads.py -k "native and not compile"

env: $(VENV)/.env-dev ## the environment .venv with everything that developers need

# The installed editable package is the build of the first time; `build` brings it up to date, and shows what it says.
install: $(VENV)/.env-demo build ## the package into .venv, editable, with what the demo needs

build: $(VENV)/.env ## the library in place; what an earlier `make test` built for CUDA is kept
	$(ARCHITECTURES) $(BIN)/python setup.py -q build_ext --inplace

test: ## build, with the CUDA kernels where nvcc is, and run all tests
	$(MAKE) -j2 $(VENV)/.env-test harness
	$(WITH_CUDA) $(BIN)/python setup.py -q build_ext --inplace
	PYTHONPATH=.:tests $(BIN)/python -m ptx.sources
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

# Needs no environment, whose installation leaves a core idle.
harness: ## the program of tests/simt, which runs the CUDA kernels on the CPU
	PYTHONPATH=tests $(PYTHON) -m simt.program

# `make test` runs some tests of tests/simt on what nvcc makes of the kernels; here all of them do, and those of spills
# look at every architecture.
ptx: $(VENV)/.env-test harness ## the tests of the CUDA kernels on their PTX, all of them; needs nvcc, no GPU
	$(WITH_CUDA) $(BIN)/python setup.py -q build_ext --inplace
	HIERMT_PTX=1 PYTHONPATH=.:tests $(BIN)/python -m ptx.sources
	HIERMT_PTX=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS) tests/ptx tests/simt
	HIERMT_PTX=1 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/gpu/test_cuda_resources.py

planted: $(VENV)/.env-test build ## a fault for each class of hostile input, planted in a copy: a test of it must fail
	PYTHONPATH=.:tests $(BIN)/python -m support.planted

# SECONDS of make and SEED; the seed of a run without one is the date.
SEED ?= $(shell date +%Y%m%d)
fuzz: SECONDS ?= 60
fuzz: $(VENV)/.env-test build ## random models and graphs, native against twin and PyG; SECONDS=600 or CASES=300, SEED=7
	PYTHONPATH=.:tests OMP_WAIT_POLICY=passive $(BIN)/python -m fuzz.differential \
	  $(if $(CASES),--cases $(CASES),--seconds $(SECONDS)) --seed $(SEED)

fuzz-files: SECONDS ?= 60
fuzz-files: $(VENV)/.env-fuzz ## readers of files, guided by coverage; only documented exceptions may leave them
	PYTHONPATH=.:tests $(BIN)/python -m fuzz.guided --seconds $(SECONDS) --seed $(SEED)

fuzz-operators: SECONDS ?= 60
fuzz-operators: $(VENV)/.env-test ## operators called with forged arguments, guided by coverage; needs clang
	PYTHONPATH=.:tests $(BIN)/python -m fuzz.operators --seconds $(SECONDS) --seed $(SEED)

# Lint, types and the fast tier: about a minute on a warm build. For every commit.
check: lint test-fast ## lint, types and the fast tier

# Every operator, the modules, checkpoints, data and training once, on the CPU build.
test-fast: $(VENV)/.env-test build ## a tier of tests of about a minute on the CPU build
	$(BIN)/python -m pytest -m fast -n $(TEST_WORKERS) $(PYTEST_ARGS) tests/ops tests/model tests/data tests/training

demo: $(VENV)/.env-demo build ## train on real prices, decide, show how good and how fast (a few minutes)
	$(BIN)/python -m hiermt demo

bench: $(VENV)/.env-test build ## time hiermt against its peers on this CPU; tables of README
	$(BIN)/python bench/run.py $(BENCH_ARGS)
	$(BIN)/python bench/report.py --readme

# The tables are written whatever a stage found: they say what failed.
# gpu-first, gpu-check and gpu-peers are the parts of gpu, the most important first.
gpu gpu-first gpu-check gpu-peers: ## with the python3 of a machine with a GPU: no environment, no network
	$(PYTHON) bench/gpu.py $(filter-out gpu,$(@:gpu-%=%)); status=$$?; \
	  PYTHONPATH=. $(PYTHON) bench/report.py --readme; exit $$status

# The CPU kernels under AddressSanitizer and UBSan, in a copy of the package of its own.
SANITIZED := build/sanitized
sanitize: $(VENV)/.env-test ## tests of the CPU kernels under AddressSanitizer and UBSan
	FORCE_CUDA=0 HIERMT_BUILD_DIR=build/sanitize \
	  HIERMT_CMAKE_ARGS="-DHIERMT_SANITIZE=address,undefined -DHIERMT_ISAS=baseline" \
	  $(BIN)/python setup.py -q build --build-lib $(SANITIZED)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 PYTHONPATH=$(SANITIZED) \
	  $(BIN)/pytest -q -p no:cacheprovider -n $(TEST_WORKERS) $(SANITIZE_TESTS)

# The CPU kernels without torch, whose pool and allocator ThreadSanitizer does not know.
tsan: $(VENV)/.env-test ## the CPU kernels on many threads under ThreadSanitizer
	HIERMT_TSAN=1 $(BIN)/pytest -q -p no:cacheprovider tests/threads

# The figures (times, memory, errors) are in the output.
soak: $(VENV)/.env-test build ## the long forms of the tests: load, memory, kill -9, rounding; an hour
	HIERMT_SOAK=1 $(BIN)/python -m pytest -m slow -rP tests/faults tests/ops/test_error_ratios.py

# Lines of Python and C++ that the tests run; the C++ is built without optimisation for the baseline instruction set.
COVERED := $(abspath build/coverage)
COVERAGE_TESTS ?= tests/ops tests/model tests/data tests/training tests/inference tests/cli -m "not slow"
coverage: $(VENV)/.env-coverage ## lines of Python and C++ that the tests run
	FORCE_CUDA=0 HIERMT_BUILD_DIR=build/coverage-objects \
	  HIERMT_CMAKE_ARGS="-DHIERMT_COVERAGE=ON -DHIERMT_ISAS=baseline" \
	  $(BIN)/python setup.py -q build --build-lib $(COVERED)
	find build/coverage-objects -name '*.gcda' -delete
	PYTHONPATH=$(COVERED) $(BIN)/pytest -q -n $(TEST_WORKERS) --cov=$(COVERED)/hiermt --cov-report=term $(COVERAGE_TESTS)
	$(BIN)/gcovr --root . --filter csrc/ --gcov-ignore-errors=no_working_dir_found build/coverage-objects

aoti: $(VENV)/.env-test build ## a C++ program runs a package of the model (examples/aoti)
	HIERMT_TEST_AOTI=1 $(BIN)/python -m pytest -q tests/package/test_aoti.py

matrix: $(VENV)/.env-test ## install in every way that a user may, each in an environment of its own
	$(BIN)/python tests/package/matrix.py $(MATRIX_ARGS)

# One wheel for every Python. torch's libraries are those of the environment, so they stay out of it.
wheel: $(VENV)/.env-release ## source distribution and portable wheel, into dist
	rm -rf dist
	HIERMT_REQUIRE_NATIVE=1 $(BIN)/python -m build --no-isolation --sdist --wheel --outdir dist/raw
	mkdir -p dist && mv dist/raw/*.tar.gz dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	  --wheel-dir dist dist/raw/*.whl
	rm -r dist/raw
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

audit: $(VENV)/.env-release ## known vulnerabilities of the dependencies; asks a public database
	mkdir -p dist
	$(BIN)/pip-audit --local --skip-editable --format json --output dist/audit.json
	$(BIN)/python -c "import json; found = json.load(open('dist/audit.json'))['dependencies']; \
	  left = [one['name'] for one in found if 'skip_reason' in one]; print('not audited:', *left or ['none']); \
	  raise SystemExit(len(left) == len(found) and 'audit: the database knew no package; is there a network?')"

sbom: $(VENV)/.env-release ## bill of materials of the environment, into dist
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file dist/sbom.json $(BIN)/python

lint: $(VENV)/.env-dev ## ruff, clang-format, codespell and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo clang-format --dry-run; $(BIN)/clang-format --dry-run -Werror $(SOURCES)
	$(BIN)/codespell
	$(BIN)/mypy

format: $(VENV)/.env-dev ## fix most of what `make lint` finds
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# A warning is an error: a name that is gone from the code shows here.
docs: $(VENV)/.env-docs ## the documentation, into docs/_build
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

clean: ## remove the environment and everything that was built
	rm -rf build dist *.egg-info $(VENV) hiermt/libhiermt.* hiermt/_build.json

SOURCES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# Python compiles what it imports; pip would compile tens of thousands of files that nothing imports.
INSTALL := $(PIP) install -q --no-compile
EDITABLE := $(ARCHITECTURES) $(INSTALL) --no-build-isolation -e

$(VENV)/.env:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	$(INSTALL) "setuptools>=77.0.3" "cmake>=3.20" ninja
	touch $@

# Each installs what it needs at once, instead of one after the other.
# The prices inside skfolio are all that is read of it, so its solvers are not installed.
$(VENV)/.env-demo $(VENV)/.env-test $(VENV)/.env-dev: $(VENV)/.env-%: $(VENV)/.env pyproject.toml
	$(EDITABLE) ".[demo,$*]"
	$(INSTALL) --no-deps $(SKFOLIO)
	touch $(patsubst %,$(VENV)/.env-%,demo $(if $(filter test dev,$*),test) $(filter dev,$*))

$(VENV)/.env-docs $(VENV)/.env-coverage: $(VENV)/.env-%: $(VENV)/.env-test
	$(EDITABLE) ".[$*]"
	touch $@

$(VENV)/.env-fuzz: $(VENV)/.env-test
	$(EDITABLE) ".[fuzz]" || echo "atheris is not to be had: files are mutated blindly"
	touch $@

$(VENV)/.env-release: $(VENV)/.env
	$(EDITABLE) ".[release]"
	touch $@
