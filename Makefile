PYTHON ?= python3

.PHONY: install test lint format demo bench build

install:
	$(PYTHON) -m pip install -e ".[dev]"

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

demo:
	$(PYTHON) -m hfgen demo

# Each benchmark runs without arguments and prints one JSON line last.
bench:
	@set -e; for script in $$(ls benchmarks/*.py | grep -v '/_'); do echo "== $$script"; $(PYTHON) $$script; done

build:
	$(PYTHON) -m build
