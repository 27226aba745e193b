.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup run test test-slow test-distributed test-adapters reproduce proof heads lint audit format bench tables docs \
        screenshots lock build clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv with the locked dependencies

# uv installs the locked set in seconds; it comes from the package index like everything else.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	UV_LINK_MODE=copy $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint requirements.lock --editable ".[dev]"
	@touch $(STAMP)

run: $(STAMP)  ## train, test and draw the embedded default (minutes on two cores, no download); ends with what to type next
	$(BIN)/python -m adbench.run

lint: $(STAMP) audit  ## check style, formatting, types and the dependencies' known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(STAMP)  ## known vulnerabilities of the locked dependencies; says so where the service is out of reach
	@$(BIN)/python .ci/audit $(BIN)/pip-audit

format: $(STAMP)  ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) lint  ## lint, and all tests but those of the next three targets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not distributed and not slow and not adapters"

test-slow: $(STAMP)  ## every method exported, runs killed over and over, every experiment matched with its table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-distributed: $(STAMP)  ## tests of launchers, killed sweeps and several devices: minutes, real processes
	$(BIN)/python -m pytest -m distributed

# The extras stay out of .venv: importing them costs seconds, and what users install need not have them.
test-adapters: $(STAMP)  ## detectors of other libraries, in an environment of their own: about twenty minutes
	rm -rf .venv-adapters
	$(BIN)/uv venv --quiet --python $(BIN)/python .venv-adapters
	UV_LINK_MODE=copy $(BIN)/uv pip install --quiet --compile-bytecode --python .venv-adapters/bin/python --constraint requirements.lock --editable ".[anomalib,export,pyod,weights]" pytest
	OMP_NUM_THREADS=1 .venv-adapters/bin/python -m pytest -m adapters tests/adapters

PAPER ?= cbigan
BUDGET ?= quick
reproduce: $(STAMP)  ## a paper's tables on the data in reach, and the report: PAPER=cbigan BUDGET=quick|paper
	$(BIN)/python -m adbench.reproduce $(PAPER) --budget $(BUDGET) $(ARGS)

proof: $(STAMP)  ## on a machine with a GPU: the papers' presets, speed first, then figures, hour by hour; resumable: ARGS="data_root=DIR"
	$(BIN)/python -m adbench.proof $(ARGS)

heads: $(STAMP)  ## write the counts and lengths in the heads of conf/experiment anew
	$(BIN)/python -m adbench.experiment.heads

bench: $(STAMP)  ## measure speed and memory beside what they are compared with; writes bench.json and the table of docs/speed.md
	$(BIN)/python -m bench

tables: $(STAMP)  ## write the generated tables of README and docs anew, and the picture of the protocols
	$(BIN)/python -m pages

docs: $(STAMP)  ## build the site into site/, every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

screenshots: $(STAMP)  ## pictures of the site and of the report, into docs/pictures
	$(BIN)/python -m pages.screenshots

lock: $(STAMP)  ## resolve the dependencies anew
	$(BIN)/uv pip compile --universal --python-version 3.11 pyproject.toml --all-extras --no-annotate --no-header -o requirements.lock

build: $(STAMP)  ## a wheel with the configuration inside
	$(BIN)/uv build --wheel

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) .venv-adapters dist build site .pytest_cache .ruff_cache .mypy_cache .hypothesis
