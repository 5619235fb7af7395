# Needs Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One test process a core; threads inside a process are fixed by the tests themselves.
WORKERS ?= auto

.PHONY: quickstart test test-full gpu bench-gpu lint format venv clean

# The committed record of the quickstart holds no weights and no manifests: it stands aside when the study is run here.
quickstart: $(STAMP)
	@if [ -d results/quickstart/states ] && [ ! -e results/quickstart/manifests ] && [ ! -e results/quickstart.record ]; \
	then mv results/quickstart results/quickstart.record; \
	  echo "the committed results/quickstart is now results/quickstart.record"; fi
	$(BIN)/ablate run sweeps/quickstart.yaml --yes

test: $(STAMP) lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu and not slurm"

test-full: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu and not slurm"
	$(BIN)/python -m pytest -m "slurm and not gpu" # one cluster, which a test may disturb

# What needs a GPU; nothing else runs it. Several small trainings share the card.
gpu: $(STAMP)
	$(BIN)/python -m pytest -n 4 -m gpu tests/train

# The goals of docs/speed.md, into results/bench/<device>.json; one that fails does not keep the others from it.
BENCH = $(BIN)/ablate bench train --kernels liger+compile --rounds 1 --save results/bench
bench-gpu: $(STAMP)
	-$(BENCH) --model SmolLM2-135M --context 2048
	-$(BENCH) --model SmolLM2-135M --context 8192
	-$(BENCH) --model Qwen3-0.6B --context 4096
	-$(BENCH) --model Llama-3.2-1B --context 4096
	-$(BENCH) --model Llama-3.2-1B --context 32768
	-$(BENCH) --model Llama-3.2-1B --context 65536 --activation-checkpointing full --updates 4

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,gguf,liger,trackers]"
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
