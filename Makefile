# Every target does its own set-up. `make serve` and `make test` need only Python >= 3.11, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help setup js serve test test-all coverage lint type bench bench-peers fuzz docs wheel lock format clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := --require-hashes --only-binary :all: -r

.venv/.ready: requirements/setup.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "confide needs Python 3.11 or newer; say PYTHON=/path/to/python3.11 make ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(LOCKED) requirements/setup.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(LOCKED) requirements/dev.txt || $(PIP) $(LOCKED) requirements/dev.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/.ready  ## build .venv from the hash-locked requirements

.venv/.js: .venv/.ready requirements/js.txt tests/js/package-lock.json
	$(PIP) $(LOCKED) requirements/js.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm ci --silent --prefix tests/js
	@touch $@

js: .venv/.js  ## Node and the official JavaScript SDKs, for the tests that run them

serve: setup  ## run the service with the embedded model (ARGS="--port 9000")
	$(BIN)/confide serve $(ARGS)

test: setup  ## the tests that a change must pass (ARGS="-k receipts")
	@$(MAKE) --no-print-directory js || echo "the JavaScript SDKs are not to be had here: their tests are skipped"
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile $(ARGS)

test-all: setup js  ## those and the long ones
	$(BIN)/python -m pytest $(ARGS)

coverage: setup  ## every branch of protocol/ and evidence/ is taken by those rooms' own tests
	$(BIN)/python -m pytest tests/unit/protocol tests/unit/evidence tests/vectors -m "not long" -q --cov=confide.protocol --cov=confide.evidence --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered $(ARGS)

lint: setup  ## ruff (format and check) and the layering contract
	$(BIN)/ruff format --check src tests bench fuzz docs requirements deploy
	$(BIN)/ruff check src tests bench fuzz docs requirements deploy
	$(BIN)/lint-imports --no-cache

type: setup  ## mypy, strict
	$(BIN)/mypy

format: setup  ## rewrite in the house's format
	$(BIN)/ruff format src tests bench fuzz docs requirements deploy
	$(BIN)/ruff check --fix src tests bench fuzz docs requirements deploy

bench: setup  ## the budgets, as ratios to a floor measured in the same run
	$(BIN)/python -m bench $(ARGS)

bench-peers: setup  ## the same load on other gateways, which it installs below build/
	$(BIN)/python -m bench --only peers $(ARGS)

.venv/.fuzz: .venv/.ready requirements/fuzz.txt
	$(PIP) $(LOCKED) requirements/fuzz.txt
	@touch $@

fuzz: .venv/.fuzz  ## coverage-guided fuzzing of every parser (SECONDS=300)
	$(BIN)/python -m fuzz --seconds $(or $(SECONDS),60) $(ARGS)

docs: setup  ## check the documents: commands run, --help matches, links resolve
	$(BIN)/python -m pytest tests/docs $(ARGS)

# One time for every build, so that the same source is the same wheel also without the history that a commit's time is in.
wheel: export SOURCE_DATE_EPOCH ?= 1577836800
wheel: setup  ## the wheel in dist/, the same to the last bit wherever it is made, and its SHA-256
	rm -f dist/*.whl
	$(BIN)/python -m hatchling build --target wheel --directory dist
	cd dist && sha256sum *.whl

lock:  ## rewrite requirements/*.txt: releases a week old, hashes, no registry named
	$(PYTHON) requirements/lock.py

clean:  ## remove what set-up and tests made
	rm -rf .venv tests/js/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
