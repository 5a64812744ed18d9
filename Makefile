# make caption: install, then caption the sounds in samples/ with the bundled model
# make test:    install with the test extra, then lint, type check and all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# one thread per test process: two processes share the cores
export OMP_NUM_THREADS ?= 1

.PHONY: caption test samples clean

caption: export OMP_NUM_THREADS :=
caption: $(VENV)/.installed
	@$(BIN)/lamb caption samples --format table

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

samples: $(VENV)/.installed
	$(BIN)/python scripts/make_samples.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
