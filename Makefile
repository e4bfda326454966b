# Two commands on a fresh machine:  make demo   and   make test
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TESTS  ?= tests

.PHONY: demo test test-slow check lint types install clean

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

install: $(BIN)/.installed  ## create the environment

demo: $(BIN)/.installed  ## the main job at a small size: train every stage, sample, score
	PATH="$(abspath $(BIN)):$$PATH" sh demo/run.sh

test: $(BIN)/.installed  ## the test suite, without slow and GPU tests
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" $(TESTS)

test-slow: $(BIN)/.installed  ## the slow ones, a quarter of an hour; CI does not run them, so run them before a release
	$(BIN)/python -m pytest -m "slow and not gpu" $(TESTS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

check: lint types test  ## what CI runs

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
