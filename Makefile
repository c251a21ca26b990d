PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo profile-demo test lint types imports bench soak soak-report fuzz browser clean setup
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

setup: $(STAMP)  ## make the virtual environment

demo: $(STAMP)  ## launch the captured guests and a fleet of 64 domains on Ray
	$(BIN)/shatterproof launch $(wildcard tests/data/xl/*.cfg) examples/fleet.toml
	$(BIN)/shatterproof replay tests/data/traces/balloon.t7-1g-dec4k.trimmed.trace.bin.xz

profile-demo: $(STAMP)  ## record a launch with shatters; report, page and Perfetto file of it, and of a real Xen
	mkdir -p out
	$(BIN)/shatterproof launch examples/shatters.toml --shards 2 --trace out/shatters.trace
	$(BIN)/shatterproof profile out/shatters.trace --domid 1 --html out/shatters.html --perfetto out/shatters.pftrace
	$(BIN)/shatterproof profile tests/data/traces/pod.p3-splinter.trimmed.trace.bin.xz --domid 3 --html out/xen.html
	@echo "open out/shatters.html and out/xen.html in a browser, out/shatters.pftrace in ui.perfetto.dev"

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

soak: $(STAMP)  ## campaigns of stress over everything, ten minutes or SOAK_SCHEDULES or SOAK_SECONDS; goes on where it ended
	$(BIN)/python -m tests.soak.run

soak-report: $(STAMP)  ## what the soak has found so far
	$(BIN)/python -m tests.soak.run --report

fuzz: $(STAMP)  ## mutated inputs of every format, two minutes or FUZZ_SECONDS or FUZZ_INPUTS; goes on where it ended
	$(BIN)/python -m tests.fuzz.run

browser:  ## what the tests of the page need: Debian's chromium (as root), and playwright-core from npm
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) >/dev/null
	npm install --silent --no-audit --no-fund --prefix .browser playwright-core@1

clean:  ## remove what make made
	rm -rf $(VENV) .browser build .pytest_cache .ruff_cache .hypothesis
