# `make run` and `make test` set themselves up; a second call installs nothing.
PYTHON   ?= python3
VENV     ?= .venv
PROFILE  ?= quick
ARGS     ?=
PIP_ARGS ?=
BIN      := $(VENV)/bin
READY    := $(VENV)/.installed

.PHONY: help setup run test test-all readme prepare

help:
	@echo "make run      install, then run the workbook (PROFILE=quick, ARGS='-p key=value')"
	@echo "make test     install, then test the notebooks and the library"
	@echo "make test-all the same, with many kills and ten thousand examples of each kind of bad input"
	@echo "make prepare  bring library, notebooks and README in step: export, clean, readme"

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
	$(BIN)/python -m pytest tests

# hours may pass; `-m ""` takes the slow tests too
test-all: export HYPOTHESIS_PROFILE = thorough
test-all: $(READY)
	$(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest tests -m ""

readme: $(READY)
	$(BIN)/python tools/readme.py

prepare: $(READY)
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python tools/readme.py
