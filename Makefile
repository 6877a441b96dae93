# Every target sets up what it needs, on a fresh machine with Python 3.11 or newer, a
# C++20 compiler and make. Second runs are fast: stamps in .venv remember what is done.
# What pip asks, and where, is the user's own pip configuration.
#   make demo         a picture into tokens and back
#   make test         the quick suite          make test-slow    what takes longer
#   make lint         layout, types, imports   make format       let the tools mend it
#   make mini         trains the models that ship again
#   make bench        timings of the ops       make wheel        wheel and sdist in dist/
#                     (BENCH="--op quantize --quick" and what else `tokenflow bench` takes)
# TOKENFLOW_CUDA=auto|on|off and TOKENFLOW_CUDA_ARCHITECTURES="90a;100" choose the kernels.
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip --disable-pip-version-check install --quiet \
  --no-build-isolation -c constraints-dev.txt
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$p && break; done)
CPP := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')
FONT_FOLDERS := /usr/share/fonts ~/.local/share/fonts ~/.fonts
NEEDED_MB := 4000
TORCHRUN = $(PY) -m torch.distributed.run --standalone --nproc-per-node 2
export TOKENFLOW_EXT_REQUIRE_KERNELS = 1
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-slow mini bench lint format wheel build font clean FORCE
.DELETE_ON_ERROR:

define fail
{ echo "make: $(1)" >&2; exit 1; }
endef

define need_compiler
@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null \
  || command -v clang++ >/dev/null || $(call fail,a C++20 compiler is needed and none \
  was found (Debian and Ubuntu: apt-get install g++; or set CXX))
endef

$(VENV)/env.stamp: constraints-dev.txt
	@test -n "$(PYTHON)" || $(call fail,Python 3.11 or newer is needed and none was \
	  found (or name it: make PYTHON=/path/to/python3))
	$(need_compiler)
	@free=$$(($$(df -Pk . | awk 'NR == 2 { print $$4 }') / 1024)); \
	  test -x $(PY) || test $$free -ge $(NEEDED_MB) || $(call fail,about $(NEEDED_MB) MB \
	  of free disk are needed here for the environment and the build; $$free MB are left)
	@echo "make: installing what constraints-dev.txt names into $(VENV)"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || $(call fail,$(PYTHON) \
	  could not make the environment $(VENV) (Debian and Ubuntu: apt-get install \
	  python3-venv))
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -r constraints-dev.txt
	@touch $@

# What the build was asked for; changes only when that does.
$(VENV)/build.config: $(VENV)/env.stamp FORCE
	@asked="$(TOKENFLOW_CUDA) $(TOKENFLOW_CUDA_ARCHITECTURES) $(CXX)"; \
	  test "$$asked" = "$$(cat $@ 2>/dev/null)" || echo "$$asked" > $@

# An editable build sees every change of a Python file at once; only what is compiled,
# or how, needs a new one.
$(VENV)/build.stamp: $(VENV)/build.config CMakeLists.txt pyproject.toml $(CPP)
	$(need_compiler)
	@echo "make: building the kernels"
	$(PIP_INSTALL) --no-deps -e .
	@$(PY) -m tokenflow.foreign
	@touch $@

build: $(VENV)/build.stamp

# The glyphs that the training pictures and their tests are drawn from.
font:
	@test -n "$$TOKENFLOW_EMOJI_FONT" \
	  || find $(FONT_FOLDERS) -name NotoColorEmoji.ttf 2>/dev/null | grep -q . \
	  || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	       && { apt-get install -y -qq fonts-noto-color-emoji >/dev/null 2>&1 \
	            || { apt-get update -qq && apt-get install -y -qq fonts-noto-color-emoji; } \
	            >/dev/null 2>&1; }; } \
	  || echo "make: the font Noto Color Emoji is not installed (Debian and Ubuntu:" \
	    "apt-get install fonts-noto-color-emoji); what draws with it will say so."

demo: build
	$(VENV)/bin/tokenflow demo

test: build font
	$(PY) -m pytest -m "not slow"

test-slow: build font
	$(PY) -m pytest -m slow

# The models that ship, into runs/: a teacher, the tokenizer, which learns from it, what
# answers, the judge of painted pictures, what paints and, begun with the one of those
# that ships, what does both.
mini: build font
	OMP_NUM_THREADS=1 $(TORCHRUN) -m tokenflow train teacher mini --resume auto
	OMP_NUM_THREADS=1 $(TORCHRUN) -m tokenflow train tokenizer mini --resume auto \
	  --set teacher.source=runs/teacher-mini/model
	OMP_NUM_THREADS=1 $(TORCHRUN) -m tokenflow train understanding mini --resume auto
	$(VENV)/bin/tokenflow train detector scenes --resume auto
	for task in generation unified; do OMP_NUM_THREADS=1 $(TORCHRUN) -m tokenflow train \
	  $$task mini --resume auto --set run.compile=true \
	  --set model.attn_implementation=eager || exit 1; done

bench: build
	$(VENV)/bin/tokenflow bench $(BENCH)

lint: $(VENV)/env.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/env.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

wheel: $(VENV)/env.stamp
	$(need_compiler)
	$(PY) -m build --no-isolation --sdist --outdir dist .
	$(PY) -m build --no-isolation --wheel --outdir dist .

clean:
	rm -rf build dist $(VENV)
