# Every target sets up what it needs, on a fresh machine with python3.11+, a C++20
# compiler and make. Second runs are fast: stamps under .venv remember what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints-dev.txt
export TOKENFLOW_EXT_REQUIRE_KERNELS = 1
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-slow bench lint format wheel build clean

$(VENV)/env.stamp: constraints-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) scikit-build-core pybind11 cmake ninja numpy safetensors huggingface_hub transformers pillow typer tqdm PyYAML scikit-image scikit-learn pytest pytest-benchmark pytest-timeout ruff mypy clang-format build
	touch $@

build: $(VENV)/env.stamp
	$(PIP) --no-build-isolation --no-deps -e .

demo: build
	$(BIN)/tokenflow demo

test: build
	$(BIN)/python -m pytest -m "not slow"

test-slow: build
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf build dist $(VENV)
