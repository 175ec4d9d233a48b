# `make demo` and `make test` need nothing but make, a shell and a way to get Python 3.12: they set up the rest.

BIN := .venv/bin
WORKERS ?= 2
MINUTES ?= 30
PYTEST = -m pytest -n auto --maxprocesses=$(WORKERS) --dist worksteal
BENCHMARKS ?= $(wildcard benchmarks/[!_]*.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-lowest golden golden-record soak lint bench lock format clean

# Compiling, not sampling, is what tests spend their time on: keep what XLA compiled between runs.
test test-all test-lowest: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
test test-all test-lowest: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
test test-all test-lowest: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1

# Nor do fast tests need the fastest machine code: without LLVM's optimisations XLA compiles in half the time. They
# are compiled in the same way by all targets, which therefore share the cache; `make test CHEAP=` optimises them.
# Slow tests draw much, and are optimised. Programs are compiled in one piece: the cores have other tests to run.
CHEAP ?= --xla_backend_optimization_level=0
ONE_PIECE := --xla_cpu_parallel_codegen_split_count=1 $(XLA_FLAGS)

# $(call suite,PYTHON,MARKERS,XLA-FLAGS,PYTEST-OPTIONS): the tests, then those that need float64, in a process of their
# own. Both run even where the first fails. pytest's exit status 5 means that nothing was selected.
define suite
	status=0; export XLA_FLAGS="$(strip $(3) $(ONE_PIECE))"; \
	echo "== $(2) tests"; \
	$(1) $(PYTEST) $(4) -m "$(2) and not x64" || status=$$?; \
	echo "== $(2) tests in float64"; \
	rc=0; JAX_ENABLE_X64=1 $(1) $(PYTEST) $(4) -m "$(2) and x64" || rc=$$?; \
	if [ $$rc -ne 0 ] && [ $$rc -ne 5 ]; then status=$$rc; fi
endef

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## make .venv with mcx and its development tools
	@sh scripts/setup.sh

demo: setup ## run examples/eight_schools.py
	@$(BIN)/python examples/eight_schools.py

lint: setup ## ruff and mypy
	@echo "== ruff check"; $(BIN)/python -m ruff check .
	@echo "== ruff format --check"; $(BIN)/python -m ruff format --check .
	@echo "== mypy"; $(BIN)/python -m mypy

test: lint ## lint, type-check and run the fast tests, in float32 and float64
	@$(call suite,$(BIN)/python,not slow,$(CHEAP)); exit $$status

test-all: lint ## the same, then the slow tests
	@$(call suite,$(BIN)/python,not slow,$(CHEAP)); fast=$$status; \
	$(call suite,$(BIN)/python,slow,,--durations=40); exit $$((status ? status : fast))

test-lowest: ## run the fast tests on the lowest supported versions, in .venv-lowest
	@sh scripts/setup.sh lowest
	@$(call suite,.venv-lowest/bin/python,not slow,$(CHEAP)); exit $$status

golden: setup ## compare the bits of small runs of every method with those recorded; CASES="infer/* smc" for some
	@$(BIN)/python tests/golden/golden.py $(CASES)

golden-record: setup ## record these bits anew
	@$(BIN)/python tests/golden/golden.py --record $(CASES)

soak: setup ## repeat kills, full disks, damage, threads and many models for half an hour; MINUTES=5 for less
	@$(BIN)/python scripts/soak.py --minutes $(MINUTES)

bench: setup ## run benchmarks/*.py, or those named in BENCHMARKS="..."
	@if [ -z "$(BENCHMARKS)" ]; then echo "benchmarks/ has no benchmark"; fi
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python "$$file"; done

lock: ## write requirements/dev.lock anew from the newest versions
	@sh scripts/setup.sh lock

format: setup ## sort imports, apply ruff's safe fixes, format
	@$(BIN)/python -m ruff check --fix-only .
	@$(BIN)/python -m ruff format .

clean: ## remove caches and build products; keeps .venv
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .venv-lowest .venv-lock build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
