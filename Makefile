# Every target makes the environment it needs, in .venv, with the versions of constraints.txt.
#
#   make quickstart   a pretrained model learns arithmetic: numbers before and after, a figure, its chains
#   make test         the tests (no torch, no network)
#   make slow         the tests that tests/slow.txt names, which take longer
#   make parity       our model against transformers on torch
#   make pods         the long tests of pods: processes, kills, and compilation for TPUs (libtpu, no TPU)
#   make sweeps       the long tests of sweeps: real runs that are killed, ray, the page in a browser
#   make lint         ruff, mypy on what pyproject.toml names, and oxlint for the JavaScript of the page
#   make bench        timed comparisons
#   make clean        takes all of this away again
#
# Python 3.11 or 3.12 is looked for; `make test PYTHON=/path/to/python3.11` takes the one you say.

SHELL := /bin/bash
VENV := .venv
RUN := $(VENV)/bin/python
PYTHON ?=
# On a terminal pip shows what it downloads.
INSTALL := $(RUN) -m pip install $(if $(MAKE_TERMOUT),,-q) --disable-pip-version-check

.PHONY: quickstart test slow learn parity pods sweeps lint bench clean
.DEFAULT_GOAL := test

quickstart: $(VENV)/.test
	$(RUN) -m rl_likelihood.train --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.test
	$(RUN) -m pytest -q tests -m 'not slow' --ignore=tests/parity -n auto --maxprocesses=4 --dist=loadfile

slow: $(VENV)/.test
	$(RUN) -m pytest -q -n auto --maxprocesses=4 --dist=loadfile @tests/slow.txt

learn: $(VENV)/.test
	$(RUN) -m pytest -q tests/test_learns.py -m slow

parity: $(VENV)/.parity
	$(RUN) -m pytest -q tests/parity

pods: $(VENV)/libtpu
	PYTHONPATH=$(VENV)/libtpu $(RUN) -m pytest -q tests/runtime tests/planning tests/test_task.py tests/test_plan.py tests/tpu_setup \
	  -m 'slow or not slow' -n auto --maxprocesses=2 --dist=loadfile

sweeps: $(VENV)/.sweeps
	$(RUN) -m pytest -q tests/test_sweep.py tests/sweeps \
	  tests/report -m 'slow or not slow'

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check -q .
	$(VENV)/bin/mypy
	$(VENV)/bin/oxlint --deny-warnings rl_likelihood/report/page
	$(VENV)/bin/hadolint Dockerfile

bench: $(VENV)/.test
	@set -e; for script in speed evaluation; do echo "== bench/$$script.py"; $(RUN) -m bench.$$script; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An empty file says that the environment is complete; a changed setup.py or constraints.txt renews it.
$(VENV)/.test: setup.py constraints.txt
	@for python in $(or $(PYTHON),python3.11 python3.12 python3); do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: needs Python 3.11 or 3.12 and found none (tried $(or $(PYTHON),python3.11 python3.12 python3)): install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$found --version), once, some minutes and 2 GB"; \
	if ! $$found -m venv $(VENV); then \
	  echo "make: $$found cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)" >&2; exit 1; \
	fi
	@$(INSTALL) -c constraints.txt -e '.[test]'
	@touch $@

# Beside the environment, not in it: wherever libtpu is installed, jax looks for a TPU first.
$(VENV)/libtpu: $(VENV)/.test
	@$(INSTALL) --target $@.part $$(grep ^libtpu constraints.txt)
	@mv $@.part $@

$(VENV)/.parity: $(VENV)/.test
	@$(INSTALL) -c constraints.txt -e '.[test,parity]'
	@touch $@

$(VENV)/.sweeps: $(VENV)/.test
	@$(INSTALL) -c constraints.txt -e '.[test,ray]'
	@touch $@
