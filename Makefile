# `make demo` and `make test` set up everything they need in .venv; only Python 3.11 or newer, pip and make have to be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= msrn-demo

.PHONY: demo test test-slow faults fuzz docs release lock audit licenses sbom lint types check clean help

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## Draw a data set, train MSRN and a pooled head, write a page with pictures (about 5 minutes on 2 cores).
	@$(BIN)/msrn demo --out $(OUT)

test: $(VENV)/.dev  ## Run the tests (CPU, offline, two processes).
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.dev  ## Run the tests that take minutes, and property tests with new examples.
	$(BIN)/pytest -q -m slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "hypothesis and not slow and not gpu" --hypothesis-profile=default

faults: $(VENV)/.dev  ## Inject every fault of docs/reliability.md and print what was lost (20 to 40 minutes).
	$(BIN)/pytest -q -m fault

fuzz: $(VENV)/.dev  ## Give every reader half a million inputs (hours).
	$(BIN)/python -m pip install -q -c constraints.txt atheris
	$(BIN)/python tests/fuzz/long_run.py

docs: $(VENV)/.dev  ## Build the documentation into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: $(VENV)/.dev  ## Build wheel and sdist into dist/, check them, and try the wheel in an empty environment (about 5 minutes).
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	MSRN_DIST=dist $(BIN)/pytest -q -m slow tests/test_release.py
	@echo "To publish: git tag v$$($(BIN)/python -c 'import msrn; print(msrn.__version__)') && git push --tags && $(BIN)/twine upload dist/*"

lock: $(VENV)/.dev  ## Write requirements.lock: every package with its version and the SHA-256 of its file.
	$(BIN)/python -m pip install -q --dry-run --ignore-installed --report $(VENV)/report.json -c constraints.txt -e '.[all,dev]'
	$(BIN)/python tools/lock.py $(VENV)/report.json > $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock requirements.lock

# Advisories that `make audit` passes over, by number, since they do not touch msrn; say of each why.
IGNORED :=

# PyPI tells advisories of torch 2.13.0, and knows no 2.13.0+cpu.
audit: $(VENV)/.audit  ## Look for known vulnerabilities of the locked packages (needs PyPI's JSON interface).
	sed 's/+cpu / /' requirements.lock > $(VENV)/audit.lock
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes -r $(VENV)/audit.lock $(IGNORED:%=--ignore-vuln=%)

licenses: $(VENV)/.audit  ## Write docs/licenses.md: the licence of every locked package.
	$(VENV)/audit/bin/pip-licenses --python $(BIN)/python --with-system --packages $$(sed -n 's/==.*//p' requirements.lock) \
	  --order=license --format=markdown --with-urls --output-file=$(VENV)/licenses.md
	( echo '# Licences'; echo; \
	  echo 'Of every package of `requirements.lock`, as its metadata tell it; written by `make licenses`. `UNKNOWN` is one that tells none:'; \
	  echo 'axe-playwright-python, which tests use and releases do not, has the text of the MIT License in its wheel.'; echo; \
	  sed -E 's/ {2,}/ /g; s/-{3,}/---/g; s#https://pypi.org/[^ ]*#UNKNOWN#' $(VENV)/licenses.md ) > docs/licenses.md

sbom: $(VENV)/.audit  ## Write sbom.json, a bill of materials (CycloneDX).
	$(VENV)/audit/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible -o sbom.json

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

$(VENV)/.audit: | $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install -q pip-audit==2.10.1 cyclonedx-bom==7.5.0 pip-licenses==5.5.5
	@touch $@
