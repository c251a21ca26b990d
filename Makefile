PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo test lint types imports bench clean setup
help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

setup: $(STAMP)  ## make the virtual environment

demo: $(STAMP)  ## launch the captured guests and a fleet of 64 domains on Ray
	$(BIN)/shatterproof launch $(wildcard tests/data/xl/*.cfg) examples/fleet.toml
	$(BIN)/shatterproof replay tests/data/traces/balloon.t7-1g-dec4k.trimmed.trace.bin.xz

test: $(STAMP)  ## the whole test suite, real Ray actors included
	$(BIN)/python -m pytest

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## strict type check
	$(BIN)/basedpyright

imports: $(STAMP)  ## import contracts
	$(BIN)/lint-imports

bench: $(STAMP)  ## every figure of the README, measured
	$(BIN)/python -m benchmarks.run

clean:  ## remove what make made
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
