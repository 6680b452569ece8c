# Needs python3 (3.11 or newer) with venv, and make. Everything else comes into .venv from requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# Bytecode is kept beside its source: an environment that forbids it (container images do) costs 3 s at every start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo serve test check format docs schema bench lock clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp: the environment is made again when the lock or the project's own entry points change.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "listingd needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## make a listing from a photo and show it: make demo PHOTO=my.jpg
	$(BIN)/listingd demo $(if $(PHOTO),"$(PHOTO)")

serve: $(READY) ## run the daemon with an embedded Postgres
	$(BIN)/listingd serve

test: $(READY) ## run all tests: make test ARGS="tests/unit -k lease"
	$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## lint, format, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## write docs/configuration.md from the settings
	$(BIN)/python -c 'from daemon.settings_sources import write_reference; print(write_reference(), end="")' > docs/configuration.tmp
	{ sed '/^<!-- settings -->$$/q' docs/configuration.md; echo; cat docs/configuration.tmp; } > docs/configuration.new
	mv docs/configuration.new docs/configuration.md
	rm docs/configuration.tmp

schema: $(READY) ## write sql/schema.sql from the migrations
	$(BIN)/python -m tests.pg.schema_snapshot

bench: $(READY) ## measure, and write docs/benchmarks.md
	$(BIN)/python -m bench

lock: ## renew requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra embedded --extra genai --extra otel --extra dev --upgrade pyproject.toml -o requirements.lock

clean: ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
