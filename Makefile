# `make test` and `make demo` are all a fresh clone needs. See `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Debian packages: the broker of the demo and of the network tests, the Fashion-MNIST images, the voices of the keywords.
SYSTEM_PACKAGES := gcc g++ make mosquitto dataset-fashion-mnist espeak-ng python3-venv
# Folders that become subpackages of fedmpq (pyproject.toml, tool.scikit-build.wheel.packages).
FOLDERS := models export coordinator edge_runtime firmware_profiles
CORE_SOURCES = $(shell find CMakeLists.txt edge_runtime/core -name '*.c' -o -name '*.h' -o -name '*.inc' -o -name 'CMakeLists.txt')
ARGS ?=

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# --- set-up ---------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.installed core  ## fill .venv with everything (rerun at will: it does only what changed)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v=sys.version_info[:2]; sys.exit(None if v in [(3, 11), (3, 12)] else \
	  f"fedmpq needs Python 3.11 or 3.12, $(PYTHON) is {v[0]}.{v[1]}: pass PYTHON=/path/to/python3.11")'
	@command -v $${CC:-cc} >/dev/null || { echo "fedmpq needs a C compiler: run make system" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): run make system" >&2; exit 1; }
	@touch $@

# torch goes first and pinned: left to the resolver it brings several GB of accelerator packages along.
$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(PIP) install -q "$$(grep -oE 'torch==[0-9.]+' pyproject.toml | head -1)"
	$(PIP) install -q "scikit-build-core>=1.0" "cmake>=3.20" "ninja>=1.11"
	$(PIP) install -q --no-build-isolation -e ".[all]"
	@touch $@ $(VENV)/.core

.PHONY: core
core: $(VENV)/.core  ## rebuild the C core where its sources changed

# The library is moved out of the way first: what runs keeps the file it has loaded, which is not written over.
$(VENV)/.core: $(CORE_SOURCES) | $(VENV)/.installed
	@if [ -f build/editable/CMakeCache.txt ] && [ -f "$(SITE)/fedmpq/edge_runtime/libfmpq.so" ]; then \
	  $(BIN)/cmake --build build/editable --parallel 2 && \
	  mv "$(SITE)/fedmpq/edge_runtime/libfmpq.so" build/editable/libfmpq.before && \
	  $(BIN)/cmake --install build/editable --prefix "$(SITE)" >/dev/null; \
	else $(PIP) install -q --no-build-isolation --no-deps -e .; fi
	@touch $@

.PHONY: system
system:  ## install the Debian packages (as root; otherwise says what to run)
	@missing=(); for p in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f='$${Status}' "$$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$$p"); done; \
	if [ "$${#missing[@]}" -eq 0 ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
	  echo "please install with your package manager: $${missing[*]}" >&2; exit 1; fi; \
	if [ "$$(id -u)" -ne 0 ]; then \
	  echo "please run: sudo apt-get install -y $${missing[*]}" >&2; exit 1; fi; \
	echo "installing $${missing[*]}"; \
	{ apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}"; } >/dev/null

# --- checks ---------------------------------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/.installed  ## ruff, both linter and formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.installed  ## mypy --strict over the package as it is installed
	@rm -rf build/typing && mkdir -p build/typing/fedmpq
	@ln -s $(CURDIR)/src/fedmpq/* $(addprefix $(CURDIR)/,$(FOLDERS)) build/typing/fedmpq/
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p fedmpq

.PHONY: unit
unit: setup  ## pytest; ARGS="-k name" selects
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test
test: setup lint types unit  ## everything CI checks

# --- running --------------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup  ## broker, coordinator and four devices on real images; ARGS="--data fashion-mnist"
	@$(MAKE) --no-print-directory -s system || echo "going on without: the demo falls back to the built-in broker" >&2
	$(BIN)/fedmpq demo $(ARGS)

.PHONY: clean
clean:  ## remove builds and caches, keep .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# targets of single parts (cross builds, emulators)
-include make/*.mk
