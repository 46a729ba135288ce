# One command each, on a fresh clone, with nothing but Python 3.11 or newer and make.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint format docs bench soak clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP)  ## the virtual environment .venv with the project and its tools, once

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ForgeLLM needs Python 3.11 or newer: make PYTHON=python3.12 install" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) has no venv module: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

demo: install  ## install, then: a model answers, its worker is killed, and answers again
	$(BIN)/forgellm demo

lint: install  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The machines, which try the pool with hundreds of examples (CI: thousands), are left to the lanes: a tracer would double their time.
test: lint  ## everything: lint, all tests in lanes, and that the pool's decisions are covered (minutes)
	$(BIN)/python tests/lanes.py -m 'not alone'
	$(BIN)/python -m pytest -q -m alone tests/supervisor tests/worker tests/chaos
	$(BIN)/python -m pytest -q -m 'not process and not model and not e2e and not chaos' tests/supervisor \
	  --ignore=tests/supervisor/test_pool_machine.py --ignore=tests/supervisor/test_memory_machine.py \
	  --cov=forgellm.supervisor --cov-branch --cov-report=
	$(BIN)/python -m coverage report --fail-under=100 --include="$$(printf '*/supervisor/%s.py,' pool requests loads budget \
	  fairness fair_queue drains renewal reload replay)"

check: lint  ## in a minute: lint, the unit tests, and the life of one real worker
	$(BIN)/python tests/lanes.py -m 'smoke or (not process and not model and not e2e and not chaos)'

format: install  ## let ruff mend style and layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## write the tables of the docs that come from the code
	$(BIN)/python docs/generate.py

bench: install  ## the numbers of docs/benchmarks.md on this machine (16 to 20 minutes)
	$(BIN)/python -m benchmarks

SECONDS ?= 60
soak: install  ## clients stream while workers are killed at random: SECONDS=600, and SEED=… to replay one
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

clean:  ## remove the virtual environment and every cache in this folder
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
