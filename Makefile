# `make run` and `make test` set themselves up; a second call installs nothing.
PYTHON   ?= python3
VENV     ?= .venv
PROFILE  ?= quick
ARGS     ?=
PIP_ARGS ?=
BIN      := $(VENV)/bin
READY    := $(VENV)/.installed

.PHONY: help setup run test test-all readme prepare lint facts docs dist

help:
	@echo "make run      install, then run the workbook (PROFILE=quick, ARGS='-p phase1.lr=1e-3')"
	@echo "make test     install, then test the notebooks and the library"
	@echo "make test-all the same, with many kills and a thousand examples of each kind of bad input"
	@echo "make prepare  bring library, notebooks and README in step: export, clean, readme"
	@echo "make lint     check style, format, imports between packages, and types"
	@echo "make facts    measure the form of code and prose (ARGS=--check fails over a limit)"
	@echo "make dist     build the wheel in dist/"
	@echo "make docs     build the book in _docs/html, without a network"

setup: $(READY)

# pip itself first: an old one takes many minutes to resolve what a new one resolves in seconds. Bytecode is left to the first import,
# which compiles what is used instead of everything.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "spfpn needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Install one and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) --editable '.[dev]'
	@touch $@

run: $(READY)
	$(BIN)/spfpn run --profile $(PROFILE) $(ARGS)

# Several notebooks at once: one thread each, or they fight over the cores.
test test-all: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests

# an hour may pass; `-m ""` takes the slow tests too
test-all: export HYPOTHESIS_PROFILE = thorough
test-all: $(READY)
	$(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests -m ""

readme: $(READY)
	$(BIN)/python tools/readme.py

prepare: $(READY)
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python tools/readme.py

lint: $(READY)
	$(BIN)/ruff check nbs tests tools docs examples hubconf.py spfpn
	$(BIN)/ruff format --check nbs tests tools docs examples hubconf.py
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

facts: $(READY)
	$(BIN)/python tools/facts.py $(ARGS)

docs: $(READY)
	$(BIN)/python docs/book.py

dist: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
