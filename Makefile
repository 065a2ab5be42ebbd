# Everyday commands; `make help` lists them. Needs Python 3.10, 3.11 or 3.12 and nothing else.

VENV := .venv
PYTHON ?=
ARGS ?=
UV ?= $(VENV)/bin/uv
UV_COMPILE := $(UV) pip compile --quiet --universal --python-version 3.10 --no-header

.DEFAULT_GOAL := help
.PHONY: help venv venv-dev demo test test-slow lint format lock clean distclean
# Two installations in one environment at a time would spoil each other.
.NOTPARALLEL:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'PYTHON=/path/to/python3.11 chooses the interpreter that makes $(VENV) (3.10, 3.11 or 3.12);'
	@echo 'ARGS="..." goes to the command, as in: make test ARGS="-k masking -x"'

demo: $(VENV)/.requirements.installed  ## train, evaluate and export a small model on this machine
	$(VENV)/bin/python scripts/demo.py $(ARGS)

# A process a core, of one thread each: the tests' models are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

test: $(VENV)/.requirements-dev.installed  ## the tests that take seconds each
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: $(VENV)/.requirements-dev.installed  ## those that start whole runs, several processes, clean environments
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.requirements-dev.installed  ## check style and formatting
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(VENV)/.requirements-dev.installed  ## mend what ruff can mend
	$(VENV)/bin/python -m ruff check --fix-only .
	$(VENV)/bin/python -m ruff format .

venv: $(VENV)/.requirements.installed  ## the environment that runs the commands

venv-dev: $(VENV)/.requirements-dev.installed  ## the same with pytest, ruff and uv

lock: $(VENV)/.requirements-dev.installed  ## compile both requirements files from pyproject.toml (ARGS=--upgrade: newest)
	$(UV_COMPILE) $(ARGS) pyproject.toml --output-file requirements.txt
	$(UV_COMPILE) $(ARGS) pyproject.toml --extra dev --constraint requirements.txt --output-file requirements-dev.txt

clean:  ## remove caches, build folders and the demo's output
	rm -rf demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## the same and the environment
	rm -rf $(VENV)

# An environment that works is kept, whoever made it; one whose making was interrupted is made again.
$(VENV)/.created:
	@if [ -z '$(PYTHON)' ] && sh scripts/find_python.sh $(VENV)/bin/python >/dev/null 2>&1 && \
	    $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then :; else \
	    python=$$(sh scripts/find_python.sh '$(PYTHON)') && echo "making $(VENV) with $$python" && \
	    "$$python" -m venv --clear $(VENV); \
	fi
	@touch $@

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(VENV)/.%.installed: %.txt $(VENV)/.created
	$(VENV)/bin/python -m pip install --disable-pip-version-check --requirement $<
	@touch $@
