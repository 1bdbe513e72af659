# `make demo` and `make test` each do all set-up on a fresh machine (a .venv with the pinned set) and then run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test quick lint bench bench-gpu clean

demo: $(STAMP)
	$(BIN)/voidzoo demo -o demo

test: lint
	$(BIN)/python -m pytest -n 2

quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p voidzoo
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/inference.py --json benchmarks/results/inference.json

bench-gpu: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,cuda]"
	$(BIN)/python benchmarks/inference.py --device cuda --json benchmarks/results/inference-gpu.json

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,formats,remote,cluster,dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist *.egg-info
