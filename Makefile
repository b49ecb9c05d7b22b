# Needs Python >= 3.11 and make; everything else is installed into $(VENV).
#   make demo      simulate, train, run through coffea, plot: results/demo/
#   make test      the tests, without long campaigns and further kinds of the same: twelve minutes on two cores
#   make test-all  all tests, those of drawn examples with new ones
#   make lint      style, types, layers
#   make faults    thousands of damaged files, kills, full disks
#   make docs      the manual, docs/_build/html/index.html; runs the quickstart notebook
#   make dist      source distribution and wheel, checked
#   make bench     benchmarks: results/bench.md; BENCH="chain solvers" runs some

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo test test-all lint faults docs dist bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-demo
	PATH="$(abspath $(BIN)):$$PATH" scripts/demo.sh

test: $(VENV)/installed-dev
	$(PYTEST) -m "not exhaustive" $(PYTEST_ARGS)

test-all: $(VENV)/installed-dev
	$(PYTEST) --hypothesis-profile random $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m numpydoc.hooks.validate_docstrings $$(git ls-files 'topreco/*.py')

faults: $(VENV)/installed-dev
	TOPRECO_FAULTS=1 $(PYTEST) -rP tests/faults $(PYTEST_ARGS)

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

dist: $(VENV)/installed-docs
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/installed-dev
	$(BIN)/python scripts/bench/run_all.py $(BENCH)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "topreco needs Python >= 3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[sim]'
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[sim,dask,parsl,onnx,pepper,mlflow,lloca,tokens,calibration,fit,dev]'
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-docs: $(VENV)/installed-demo
	$(PIP_INSTALL) --editable '.[docs,sim]' build twine
	touch $@

clean:
	rm -rf $(VENV) results build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
