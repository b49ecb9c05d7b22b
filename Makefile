# Needs Python >= 3.11 and make; everything else is installed into $(VENV).
#   make demo    simulate, train, run through coffea, plot: results/demo/
#   make test    the tests, without the longest of tests/faults
#   make lint    style, types, layers
#   make faults  damaged files, kills, full disks: ten minutes, results/faults/
#   make bench   benchmarks: results/bench.md; BENCH="chain solvers" runs some

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint faults bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-demo
	PATH="$(abspath $(BIN)):$$PATH" scripts/demo.sh

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 -m "not (faults and slow)" $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m numpydoc.hooks.validate_docstrings $$(git ls-files 'topreco/*.py')

faults: $(VENV)/installed-dev
	mkdir -p results/faults
	$(BIN)/python scripts/faults/fuzz.py --json results/faults/fuzz.json & fuzz=$$!; \
	$(BIN)/python scripts/faults/kill.py --json results/faults/kill.json; killed=$$?; \
	wait $$fuzz && exit $$killed
	$(BIN)/python scripts/faults/scarce.py --json results/faults/scarce.json
	$(BIN)/python -m pytest -m faults --ignore tests/faults/test_kill.py

bench: $(VENV)/installed-dev
	$(BIN)/python scripts/bench/run_all.py $(BENCH)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "topreco needs Python >= 3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[sim]'
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[sim,dask,parsl,onnx,pepper,mlflow,lloca,dev]'
	touch $@ $(VENV)/installed-demo

clean:
	rm -rf $(VENV) results build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
