# Two commands do all: `make demo` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# `editable_mode=compat` puts the folder on the path as it is; setuptools' import hook costs 15 ms of each start.

# Processes that the tests are spread over; each takes about 1.5 GB of memory.
WORKERS ?= 2

# A CPU whose other core is busy loses seconds to OpenMP threads that spin while they wait.
export OMP_WAIT_POLICY ?= PASSIVE

# Tests start many processes; each that had to compile the project's code again would take a second longer.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install install-dev demo test test-quick test-gpu torture check check-latest test-engines test-vllm test-trackers format fuzz bench-data bench-checkpoint bench-merge bench-gpu bench-plan bench-eval bench-verdicts bench-serve bench-export bench-qalora bench-rank bench-linear clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv with .venv/bin/qlora
install-dev: .venv/.installed-dev ## the same, with what the tests and checks need

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --config-settings editable_mode=compat --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

demo: install ## the main job on CPU: make a base, train, compare, merge, ask
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/demo.sh

test: install-dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not torture"

test-quick: install-dev ## a minute's worth of them: no training, no processes (tests/slowness.py)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu and not torture"

test-gpu: install-dev ## run the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu

torture: install-dev ## the long tests of what a run survives: hours
	$(BIN)/python -m pytest -m torture --timeout=0 tests

check: install-dev ## lint, format and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The newest versions that pyproject.toml allows, but for torch, whose newest may bring gigabytes of CUDA. To see whether
# a range can be widened: `make check-latest BEYOND='transformers==5.25.*'`.
LATEST := .venv-latest/bin/python
LATEST_PIP := $(LATEST) -m pip --disable-pip-version-check install --quiet
LATEST_TORCH ?= $(shell grep '^torch==' constraints.txt)
LATEST_TESTS ?= tests/test_upstream.py tests/test_upstream_names.py tests/recipe tests/data/render tests/train/checkpoint/test_resume.py
BEYOND ?=

check-latest: ## names that we need, signatures and fast tests with the newest libraries, in .venv-latest
	$(PYTHON) -m venv --clear .venv-latest
	$(LATEST_PIP) '$(LATEST_TORCH)'
	$(LATEST_PIP) --upgrade --upgrade-strategy eager '$(LATEST_TORCH)' --config-settings editable_mode=compat --editable '.[dev]'
	$(if $(BEYOND),$(LATEST_PIP) --upgrade $(foreach package,$(BEYOND),'$(package)'))
	@$(LATEST) -m pip --disable-pip-version-check freeze | grep -iE '^(accelerate|bitsandbytes|datasets|huggingface_hub|jinja2|peft|torch|transformers|trl)=='
	OMP_NUM_THREADS=1 $(LATEST) -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not torture" $(LATEST_TESTS)

# What engines carry that do not follow the newest transformers.
OLDER := .venv-older/bin/python

# As `qlora env vllm` installs it. VLLM names another Python that has vLLM and the openai client.
VLLM ?= $(shell QLORA_CACHE=$(CURDIR)/.venv-engines $(BIN)/python -c 'from qlora_cli.engine_environment import VLLM; print(VLLM.folder / "bin" / "python")')

test-vllm: install-dev ## adapters served by vLLM, in .venv-engines
	test -x $(VLLM) || QLORA_CACHE=$(CURDIR)/.venv-engines $(BIN)/qlora env vllm
	QLORA_VLLM_PYTHON=$(VLLM) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines/test_vllm.py

test-engines: install-dev test-vllm ## merged folders opened by transformers 4.57, adapters served by vLLM
	test -x $(OLDER) || $(PYTHON) -m venv .venv-older
	$(OLDER) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch
	$(OLDER) -m pip --disable-pip-version-check install --quiet 'transformers==4.57.*' safetensors jinja2
	QLORA_OLDER_PYTHON=$(CURDIR)/$(OLDER) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines/test_older_transformers.py
	$(BIN)/qlora env mlx
	$(BIN)/qlora env gptq
	$(BIN)/qlora env gguf
	cache=$${QLORA_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/qlora}/environments; \
	QLORA_MLX_PYTHON=$$cache/mlx/bin/python QLORA_GPTQ_PYTHON=$$cache/gptq/bin/python \
	QLORA_GGUF_PYTHON=$$cache/gguf/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines/test_formats.py \
	tests/engines/test_codes.py tests/engines/test_gguf_adapter.py tests/engines/test_gguf_ends.py \
	tests/engines/test_gguf_vocabulary.py tests/engines/test_gguf_prediction_layers.py

# Trackio needs other versions of libraries than constraints.txt has.
TRACKERS := .venv-trackers/bin/python

test-trackers: install-dev ## runs written by W&B, MLflow and Trackio and read back, in .venv-trackers
	test -x $(TRACKERS) || $(PYTHON) -m venv .venv-trackers
	$(TRACKERS) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch
	$(TRACKERS) -m pip --disable-pip-version-check install --quiet --editable '.[track]'
	QLORA_TRACKERS_PYTHON=$(CURDIR)/$(TRACKERS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines/test_trackers.py

format: install-dev ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: install-dev ## read broken data files for a minute; no fault may end in a traceback
	$(BIN)/python tests/fuzz/fuzz_data.py --seconds 60

bench-data: install ## JSON Lines to packed rows on disk, beside the bare tokenizer
	$(BIN)/python benchmarks/data.py

bench-checkpoint: install ## what saving every 50 steps costs a run
	$(BIN)/python benchmarks/checkpoint.py

bench-merge: install ## writing a merged model, beside PEFT and cp
	$(BIN)/python benchmarks/merge.py

bench-gpu: install ## tokens/s and peak memory of an 8B shape with random weights
	$(BIN)/python benchmarks/gpu.py

bench-plan: install ## memory that plans predict beside what 12 recipes take of a GPU
	$(BIN)/python benchmarks/plan.py

bench-eval: install ## batched evaluation beside one question at a time
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/eval.py

RUN ?= runs/smoke

bench-export: install ## every export format of a run (RUN=FOLDER), into docs/export.md
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/export.py $(RUN)

bench-verdicts: install ## coverage, false alarms and power of verdicts, into docs/evaluation.md
	$(BIN)/python benchmarks/verdicts.py

bench-serve: install ## tokens/s and latency of `qlora serve` and `transformers serve` at 1, 8 and 32 clients
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/serve.py

BASE ?=
TRAIN ?=
TEST ?=

bench-qalora: install ## QA-LoRA beside QLoRA rounded again (BASE=FOLDER TRAIN=FILE TEST=FILE), into docs/quantization.md
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/qalora.py --base '$(BASE)' --train '$(TRAIN)' --test '$(TEST)'

bench-rank: install ## int8 at a low rank beside NF4 at higher ones (BASE=, TRAIN=, TEST= as above), into docs/quantization.md
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/rank.py --base '$(BASE)' --train '$(TRAIN)' --test '$(TEST)'

bench-linear: install ## memory and speed of a linear layer in integers beside NF4
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/linear.py

clean: ## delete .venv and caches, never runs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build *.egg-info
