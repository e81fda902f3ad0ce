# The everyday commands; `make` alone lists them. Needs Python 3.11 or later, make and pip.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.installed-bench
GENERATOR := $(VENV)/.installed-docs
PIP_FLAGS := --disable-pip-version-check --no-input --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo up test unit soak chaos crash-matrix mcp-conformance lint format schema client api typescript bench soak-load flood screenshots docs dist lock clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
	    while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

install: $(INSTALLED)  ## Install into .venv, from the lock file with hashes

# The stamp is the last step, so that an interrupted installation starts over.
$(INSTALLED): requirements-dev.lock pyproject.toml minions/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Minions needs Python 3.11 or later, and " + \
	    sys.executable + " is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "Installing into $(VENV) (this takes about a minute) ..."
	@$(RUN) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(RUN) pip install $(PIP_FLAGS) --require-hashes -r requirements-dev.lock
	@$(RUN) pip uninstall $(PIP_FLAGS) --yes minions 2>/dev/null  # 0.2 was one distribution of this name
	@$(RUN) pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable ./minions --editable .
	@touch $@

# The systems that `make bench` measures beside: only what they need on top of the installation.
$(PEERS): $(INSTALLED) requirements-bench.lock
	@$(RUN) pip install $(PIP_FLAGS) --require-hashes -r requirements-bench.lock
	@touch $@

# The generator of the documentation's site.
$(GENERATOR): $(INSTALLED) requirements-docs.lock
	@$(RUN) pip install $(PIP_FLAGS) --require-hashes -r requirements-docs.lock
	@touch $@

demo: install  ## Run everything once: audit the installed Python packages, report, stop
	@$(RUN) orchestrator.cli demo

up: install  ## Run everything on this machine until Ctrl-C: servers, orchestrator, workers, Flower
	@$(RUN) orchestrator.cli up

# Tests start many processes. They keep their bytecode, even if the environment disables that.
test: install  ## Run the tests against real servers, which they start themselves
	@PYTHONDONTWRITEBYTECODE= $(RUN) pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations=25

unit: install  ## Run the tests that need no server (under a minute)
	@PYTHONDONTWRITEBYTECODE= $(RUN) pytest --numprocesses 3 tests/unit

soak: install  ## Run the long tests that `make test` leaves out
	@$(RUN) pytest -m soak

chaos: install  ## Kill, freeze, fill and flush everything under load, beside plain Celery (half an hour; CHAOS=--help)
	@$(RUN) tests.chaos.run $(CHAOS)

crash-matrix: install  ## Kill processes at every boundary of every step of an agent, and inside (15 min; CRASH=--help)
	@$(RUN) tests.crash_matrix.run $(CRASH)

mcp-conformance: install  ## Run the official MCP conformance suite against our server and our client (5 min, needs npx)
	@$(RUN) tests.mcp_conformance.run_server
	@$(RUN) tests.mcp_conformance.run_client

lint: install  ## Check style, types and the layers' import contracts
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports

format: install  ## Format the code
	@$(RUN) ruff check --fix-only --quiet .
	@$(RUN) ruff format .

schema: install  ## Regenerate migrations/schema.sql, after each change of a table or function
	@$(RUN) tests.support.schema_dump

client: install  ## Derive the client for threads from minions/aio, after each change of it
	@$(RUN) tests.support.sync_client

api: install  ## Accept additions to the API's OpenAPI document, docs/openapi.json (API=--breaking for other changes)
	@$(RUN) tests.support.api_surface $(API)

typescript:  ## Compile the example for TypeScript against docs/openapi.json (needs Node.js and npm)
	@folder=$$(mktemp -d); trap "rm -rf $$folder" EXIT; cp examples/typescript/* docs/openapi.json $$folder; cd $$folder && \
	    npm install --silent --no-audit --no-fund && \
	    npx openapi-typescript openapi.json --default-non-nullable=false --output minions.d.ts && npx tsc --noEmit

bench: $(PEERS)  ## Measure beside Celery, procrastinate, DBOS and others, in one run (20 min; BENCH=--quick, BENCH=--help)
	@PYTHONDONTWRITEBYTECODE= $(RUN) benchmarks $(BENCH)

soak-load: install  ## Run a steady load for an hour, and fail if something grows (SOAK="--minutes 10", SOAK=--help)
	@PYTHONDONTWRITEBYTECODE= $(RUN) benchmarks.soak $(SOAK)

flood: install  ## Send 1,000 bad and unauthorised requests a second while tasks run (3 min; FLOOD="--seconds 20")
	@PYTHONDONTWRITEBYTECODE= $(RUN) benchmarks.flood $(FLOOD)

screenshots: install  ## Take the pictures of the documentation, with Chromium (2 min)
	@$(RUN) tests.support.screenshots

docs: $(GENERATOR)  ## Build the documentation as a site into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --clean --quiet
	@echo "Open site/index.html in a browser."

dist: install  ## Build client and server into dist/, as wheels and source archives
	@$(RUN) build --no-isolation --outdir dist minions
	@$(RUN) build --no-isolation --outdir dist .

lock: install  ## Renew the lock files (needs uv: pip install uv)
	@for target in "pyproject.toml --output-file requirements.lock" \
	    "pyproject.toml --extra dev --output-file requirements-dev.lock" \
	    "--group bench --constraint requirements-dev.lock --output-file requirements-bench.lock" \
	    "--group docs --constraint requirements-dev.lock --output-file requirements-docs.lock"; do \
	    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	        --no-annotate --no-emit-package minions-client --upgrade $$target; \
	done

clean:  ## Remove the installation and build output (the data folder stays)
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
