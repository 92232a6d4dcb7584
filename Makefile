PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test slow fuzz crash results lint clean

quickstart: .venv/quickstart
	$(BIN)/hf-lottery run quickstart

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: .venv/test
	$(BIN)/python -m pytest -m slow

# 100,000 recipes and overrides, and as many tickets: WHAT=recipes COUNT=1000 SEED=1 for other numbers
fuzz: .venv/test
	$(BIN)/python -m tests.fuzz $(WHAT) --count $(or $(COUNT),100000) --seed $(or $(SEED),0)

# searches that are killed, whose disk fails, or whose files are damaged: a long run
crash: .venv/test
	$(BIN)/python -m tests.crash kills --kills 1000 --seed 0
	$(BIN)/python -m tests.crash faults
	$(BIN)/python -m tests.crash tears

# all numbers of README.md and docs/results.md, from the committed lines; `make results WRITE=1` writes them anew
results: .venv/test
	$(BIN)/python benchmarks/published.py $(if $(WRITE),,--check)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# the same environment: the tests only add to it
.venv/quickstart .venv/test: .venv/%: pyproject.toml setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[$*]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
