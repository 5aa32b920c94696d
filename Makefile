# Everything from a plain Python: `make run` and `make test` set up .venv by themselves.
# PYTHON=python3.12 make test    takes another interpreter;  ARGS="-k fill" make test    narrows it down.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
APT := apt-get update && apt-get install -y python3-venv make
ARGS ?=
# Four processes, as many wait for others; what shares daemons stays together (tests/conftest.py). SPLIT= for one, as a debugger needs.
SPLIT ?= -n 4 --dist loadscope --no-loadscope-reorder

# Every program that the suite starts would compile all modules anew.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help run demo test test-slow go-clients bench screenshots lint types imports format check lock clean

help:
	@echo "make run         start the mirror on 127.0.0.1:5000 (ARGS=\"--data DIR …\" adds flags)"
	@echo "make demo        a mirror at work and its dashboard, with no network at all"
	@echo "make test        the everyday suite"
	@echo "make test-slow   kill rounds, big images, soaks as well"
	@echo "make bench       the mirror beside nginx and docker-registry"
	@echo "make check       lint, types, imports and the everyday suite"

run: $(RUN_READY)
	@exec $(BIN)/entrepot serve $(ARGS)

demo: $(RUN_READY)
	@exec $(BIN)/entrepot demo $(ARGS)

test: $(DEV_READY)
	$(BIN)/python -m pytest $(SPLIT) $(ARGS)

test-slow: $(DEV_READY)
	$(BIN)/python -m pytest --slow $(ARGS)

# The clients written in Go that the suite drives where they are there: a minute for all, once.
go-clients: $(DEV_READY)
	$(BIN)/python -m tests.support.go_tools

bench: $(DEV_READY)
	$(BIN)/python -m bench $(ARGS)

# The pictures of the documents, of the demo in Chromium.
screenshots: $(DEV_READY)
	$(BIN)/python -m tests.support.screenshots

lint: $(DEV_READY)
	$(BIN)/ruff check .

types: $(DEV_READY)
	$(BIN)/mypy

imports: $(DEV_READY)
	$(BIN)/lint-imports --no-logo

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types imports test

# The lock pins what development and CI install; run it after a change of the dependencies.
lock: $(DEV_READY)
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[dev]"
	{ echo "# Versions that development and CI install; 'make lock' renews them."; \
	  $(BIN)/python -m pip freeze --exclude-editable; } > requirements-dev.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: there is no $(PYTHON); on Debian and Ubuntu: $(APT)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) is too old, entrepot needs 3.11 or newer: PYTHON=python3.12 make …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv module; on Debian and Ubuntu: $(APT)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(DEV_READY): pyproject.toml requirements-dev.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-dev.lock -e ".[dev]"
	@touch $@ $(RUN_READY)
