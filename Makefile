# Everything here needs only Python 3.11+, pip and make; the rest comes from uv.lock.
PYTHON ?= python3
UV_VERSION := 0.13.9
REDOCLY := npx --yes @redocly/cli@2.77.0
BIN := .venv/bin

export UV_PYTHON_DOWNLOADS := never
export PYTHONUNBUFFERED := 1
export REDOCLY_TELEMETRY := off
export REDOCLY_SUPPRESS_UPDATE_NOTICE := true

.PHONY: help demo test check check-openapi format chaos clean

help:
	@echo "make demo    show the main job on this machine"
	@echo "make test    run all tests, on real servers"
	@echo "make check   lint, types, imports"
	@echo "make chaos   kill, freeze and cut off everything for ten minutes under load, and judge"
	@echo "make format  format the code"
	@echo "make clean   remove what make made, and the data of the embedded servers"

demo: .venv/synced
	@$(BIN)/promptstack demo

test: .venv/synced
	$(BIN)/pytest

chaos: .venv/synced
	@$(BIN)/python -m promptstack.chaos $(CHAOS)

check: .venv/synced
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cd client && ../$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@if $(REDOCLY) --version > /dev/null 2>&1; then $(MAKE) --no-print-directory check-openapi; \
	  else echo "The description of the API is not linted: npx is not here, or can't fetch $(REDOCLY)."; fi

check-openapi: .venv/synced
	$(BIN)/promptstack openapi > .venv/openapi.json
	$(REDOCLY) lint --extends=recommended-strict .venv/openapi.json

format: .venv/synced
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The installer has an environment of its own, so that .venv holds exactly what the lock names.
.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Prompt Stack needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up (first time only) ..."
	@rm -rf .uv && $(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/synced: pyproject.toml client/pyproject.toml uv.lock | .uv/bin/uv
	@.uv/bin/uv sync --quiet --frozen --all-packages --all-groups --all-extras --compile-bytecode --python $(PYTHON)
	@touch $@

clean:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m promptstack.embedded; fi
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
