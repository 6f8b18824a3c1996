# The first Python that is new enough; name another with `make PYTHON=python3.13 test`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= auto

.PHONY: demo test test-slow lint docs bench wheel clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or later is needed: make PYTHON=/path/to/python3'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP) -e '.[torch,cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP) -e '.[torch,cpu,dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## export a model that branches on its data, run it, compare it with eager
	$(BIN)/python docs/snippets/demo.py

test: lint  ## lint, type check and the default suite
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not gpu"

test-slow: $(VENV)/.dev  ## full-size models
	$(BIN)/python -m pytest -q -n 2 -m slow

lint: $(VENV)/.dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev  ## the documentation, into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## every benchmark
	$(BIN)/python -m tests.benchmarks

wheel: $(VENV)/.demo  ## the wheel, into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## what these targets made
	rm -rf $(VENV) site dist build
