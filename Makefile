.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

# ARGS goes to the command as it is: make test ARGS="-k approval", make demo ARGS="--script restore"
ARGS ?=
SIZE ?= small
# Four more than there are cores: tests wait for servers as much as they compute.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 4)
PYTEST := .venv/bin/pytest
# Else each worker of the tests writes the assertions of every module anew, each time: 10 s of processor time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint format test-cluster bench soak mutate manifest lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: ## Make .venv with the locked wheels, the local Slack and a Chromium
	@scripts/setup

demo: setup ## Live through an incident on this machine (SIZE=small|large|huge)
	@exec .venv/bin/drbot demo --size $(SIZE) $(ARGS)

test: setup ## Run the tests (some 12 minutes on 2 cores)
	@exec $(PYTEST) -n $(WORKERS) --dist loadgroup $(ARGS)

lint: setup ## Run every static check
	@exec scripts/lint

format: setup ## Format the code and sort the imports
	@.venv/bin/ruff check --quiet --fix . || true
	@.venv/bin/ruff format .

test-cluster: setup ## Run the cluster tests against your own cluster (KUBECONFIG)
	@exec $(PYTEST) -m cluster --timeout 600 $(ARGS)

bench: setup ## Measure; leave the machine alone meanwhile
	@exec $(PYTEST) -m bench -p no:xdist --timeout 3600 -s benchmarks $(ARGS)

soak: setup ## Run the long random suites, and all that kills
	@exec $(PYTEST) -m "soak or kill" -n $(WORKERS) --dist loadgroup --timeout 3600 $(ARGS)

mutate: setup ## Change approvals, seats and the runner in every small way: does a test notice? (some minutes)
	@.venv/bin/mutmut run $(ARGS)
	@.venv/bin/mutmut results

manifest: setup ## Write manifest.yml from the commands the bot knows
	@exec .venv/bin/drbot manifest --output manifest.yml $(ARGS)

lock: setup ## Write the locks again (UPGRADE=--upgrade takes newer versions)
	@UPGRADE="$(UPGRADE)" scripts/lock

clean: ## Remove what set-up and the checks made
	@rm -rf .venv node_modules .setup.lock build dist test-results
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
