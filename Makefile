# `make demo` and `make test` set up everything they need in .venv; only Python 3.11 or newer, pip and make have to be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= msrn-demo

.PHONY: demo test test-slow faults fuzz lint types check clean help

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## Draw a data set, train MSRN and a pooled head, write a page with pictures (about 5 minutes on 2 cores).
	@$(BIN)/msrn demo --out $(OUT)

test: $(VENV)/.dev  ## Run the tests (CPU, offline).
	$(BIN)/pytest -q

test-slow: $(VENV)/.dev  ## Run the tests that take minutes.
	$(BIN)/pytest -q -m slow

faults: $(VENV)/.dev  ## Inject every fault of docs/reliability.md and print what was lost (about 30 minutes).
	$(BIN)/pytest -q -m fault

fuzz: $(VENV)/.dev  ## Give every reader half a million inputs (hours).
	$(BIN)/python -m pip install -q -c constraints.txt atheris
	$(BIN)/python tests/fuzz/long_run.py

lint: $(VENV)/.dev  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types.
	$(BIN)/mypy

check: lint types test  ## Everything that CI runs.

clean:  ## Remove the environment and what tools left.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,report]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo
