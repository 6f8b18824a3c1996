PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto

.PHONY: demo test test-slow lint docs bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[torch,cpu,dev]'
	@touch $@

demo: $(VENV)/.installed  ## export a model with a data-dependent branch, run it, prove parity
	$(BIN)/python docs/snippets/demo.py

test: $(VENV)/.installed lint  ## the default suite
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not gpu"

test-slow: $(VENV)/.installed  ## full-size model zoos
	$(BIN)/python -m pytest -q -n 2 -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) site dist build
