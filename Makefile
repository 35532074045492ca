# Two commands do everything on a machine with Python 3.11 and nothing else:
#   make demo   create .venv, install, run the built-in demo
#   make test   create .venv, install, lint, type-check, run all tests
# and:
#   make docs   build the documentation into site/
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin

.PHONY: demo test docs lint format bench clean

demo: $(VENV)/.installed
	$(BIN)/iisan demo

test: lint
	$(BIN)/python -m pytest -q -n 2

# The variable silences what Material says about a future mkdocs.
docs: $(VENV)/.installed
	$(BIN)/python docs/make.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is touched last, so an interrupted installation starts again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Benchmarks of less than 20 minutes together, see benchmarks/README.md: `make bench DATA=… MODEL=…`. `OUT` takes the
# results elsewhere.
OUT ?= benchmarks/results
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/training.py $(DATA) $(MODEL) --out $(OUT)/training.json
	$(BIN)/python benchmarks/extraction.py $(DATA) $(MODEL) --out $(OUT)/extraction.json
	$(BIN)/python benchmarks/ranking.py --out $(OUT)/ranking.json
	$(BIN)/python benchmarks/store.py --out $(OUT)/store.json
	$(BIN)/python benchmarks/preparation.py --out $(OUT)/preparation.json

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
