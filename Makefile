# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv first if it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs setup clean

setup: .venv/installed

# Without this check, pip fails after minutes, when the disk is full.
ROOM := import shutil, sys; free = shutil.disk_usage(".").free / 1e9; \
  free > 9 or sys.exit(f"A new environment .venv and its downloads need 9 GB, but only {free:.1f} GB are free here.")

.venv/installed: pyproject.toml
	@test -d .venv || $(PYTHON) -c '$(ROOM)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable ".[dev,offline]"
	touch $@

demo: setup
	$(BIN)/contextcrf quickstart --out demo

test: setup lint
	$(BIN)/python -m pytest --numprocesses auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# Into site/. The variable quietens an announcement of the theme's makers.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv demo runs site
