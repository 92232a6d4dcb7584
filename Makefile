PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test slow lint clean

quickstart: .venv/installed
	$(BIN)/hf-lottery run quickstart

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch .venv/installed

clean:
	rm -rf .venv build dist *.egg-info
