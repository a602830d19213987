# One folder, .venv, holds everything; `make demo` and `make test` need Python 3.11+, make and a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
NAME   ?=

# Idle OpenMP threads sleep instead of spinning; without this two threads on a busy 2-core machine are slower than one.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: venv demo test cover check format docs bench clean

$(BIN)/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(BIN)/.dev: $(BIN)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

venv: $(BIN)/.dev

demo: $(BIN)/.runtime
	$(BIN)/lfp-lens run tiny

test: $(BIN)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Which lines no test runs; below 85 % it fails. It takes 1.6 times the CPU time of `make test`, so it is asked for by itself.
cover: $(BIN)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

check: $(BIN)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(BIN)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(BIN)/.dev
	$(BIN)/mkdocs build --strict

# The peer of the PPO benchmark: TRL removed its PPO after 1.12. All else is as in .venv, so that only TRL differs.
$(BENCH)/.made: $(BIN)/.dev
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BIN)/python -m pip list --format=freeze --disable-pip-version-check \
		| sed -n -E 's/^((torch|transformers|accelerate|datasets)==[0-9.]+).*/\1/p' > $(BENCH)/same.txt
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check 'trl==1.12.0' -r $(BENCH)/same.txt
	touch $@

bench: $(BIN)/.dev $(BENCH)/.made
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks $(NAME)

clean:
	rm -rf $(VENV) $(BENCH) site .pytest_cache .mypy_cache .ruff_cache
