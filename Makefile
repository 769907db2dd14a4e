# Each target sets up by itself: make demo on a fresh checkout is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The lock in requirements/ that .venv is made from: gpu where a machine has CUDA, else cpu. LOCK=cpu214 or LOCK=gpu214,
# on the command line or in the environment (so of .ci/run too), takes the newer three of torch, torchrec and fbgemm.
LOCK ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
STAMP := $(VENV)/.stamp-$(LOCK)
# PyPI's torch for Linux is the CUDA build; the CPU build is on this index, asked only if it can be reached.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# One more than there are cores, at most 8: tests wait for ranks and commands that they start.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n + 1 : 8)))
PIP := $(BIN)/pip --disable-pip-version-check install -qq --no-deps --no-compile

# Bytecode is kept whatever the environment says: without it each process compiles the sources of torch again, 6 s of
# every start, and tests start some hundred.
export PYTHONDONTWRITEBYTECODE :=

# What runs where nothing can be installed: the virtual environment's Python if there is one, else the system's.
ANY_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: help setup demo test check docs bench gpu-check clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(STAMP) ## .venv with the locked versions; instant when nothing changed

# The lock is complete, so nothing is resolved (--no-deps): one call takes torchrec without the CUDA fbgemm-gpu too.
$(STAMP): requirements/common.txt requirements/$(LOCK).txt setup.py
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.stamp*
	index=; \
	if [ $(LOCK:cpu%=cpu) = cpu ] && curl -sfo /dev/null --max-time 10 $(TORCH_INDEX)/; then index="--extra-index-url $(TORCH_INDEX)"; fi; \
	$(PIP) -r requirements/$(LOCK).txt $$index
	$(PIP) --no-build-isolation --editable .
	$(BIN)/placerank doctor
	@touch $@

# A third of the default city, and the alignment cut short, to fit into three minutes: 10 steps, a small reward model.
demo: $(STAMP) ## a simulated city, from simulate to export and lists of places, training on two ranks; in runs/demo
	$(BIN)/placerank simulate --out runs/demo/raw --overwrite --items 1700 --users 1700 --requests 11600
	$(BIN)/placerank prepare --input runs/demo/raw --out runs/demo/data --overwrite
	$(BIN)/placerank align --data runs/demo/data --out runs/demo/align --overwrite \
		--reward.lists 60 --reward.held-out-lists 20 --reward.negatives 7 --gdpo.pairs 160 --queries 500
	$(BIN)/placerank tokenize --data runs/demo/data --embeddings runs/demo/align --out runs/demo/tokens --overwrite
	$(BIN)/placerank train --data runs/demo/data --run runs/demo/ranker --nproc 2 --epochs 2 --overwrite \
		--features.semantic-ids runs/demo/tokens
	$(BIN)/placerank evaluate --run runs/demo/ranker --overwrite
	$(BIN)/placerank export --run runs/demo/ranker --out runs/demo/export --overwrite
	$(BIN)/placerank train --data runs/demo/data --run runs/demo/lists --nproc 2 --epochs 1 --overwrite \
		--ranker.kind generative --features.semantic-ids runs/demo/tokens
	$(BIN)/placerank generate --run runs/demo/lists --out runs/demo/asked --within-km 3 --overwrite

test: $(STAMP) ## all tests; those that need a GPU are skipped where there is none
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## lint, format, types, and that imports between folders run one way
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Warnings are errors: a broken link, a page that nothing leads to, a docstring that can't be read.
docs: $(STAMP) ## the site of docs/ with all commands and the Python reference, into site/
	$(PIP) -r requirements/docs.txt
	PYTHONPATH=src DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs build --strict

bench: $(STAMP) ## quick runs of the benchmarks; their figures in benchmarks/results come from longer ones
	$(PIP) -r requirements/bench.txt
	$(BIN)/placerank bench kernels --quick
	$(BIN)/python benchmarks/bench_loader.py
	$(BIN)/python benchmarks/bench_export.py
	$(BIN)/python benchmarks/bench_throughput.py --quick

gpu-check: ## all that wants a GPU, on one, in 8 minutes, into runs/gpu-check; DRY=1: at toy sizes without one
	PYTHONPATH=src $(ANY_PYTHON) -P -m placerank.benchmarks.gpu --out runs/gpu-check $(if $(DRY),--dry-run)

clean: ## removes .venv, caches and builds, not runs/
	rm -rf $(VENV) build dist site src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find -L src/placerank -name '*.nb[ic]' -delete
