# Long tests of the ExecuTorch target: the runner for aarch64 in an emulator, an epoch on Fashion-MNIST. docs/executorch.md

EXECUTORCH_PACKAGES := g++ g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static dataset-fashion-mnist
EXECUTORCH_AARCH64 := build/executorch-aarch64

.PHONY: test-executorch
test-executorch: setup $(EXECUTORCH_AARCH64)/.unpacked  ## .pte programs: C++ runner here and on emulated aarch64, real images
	@$(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="$(EXECUTORCH_PACKAGES)"
	FEDMPQ_EXECUTORCH_TESTS=1 FEDMPQ_EXECUTORCH_AARCH64=$(CURDIR)/$(EXECUTORCH_AARCH64)/executorch \
	  $(BIN)/python -m pytest tests/executorch $(ARGS)

# The runtime for aarch64 is in the wheel of that platform: headers, libexecutorch.so and its CMake files.
$(EXECUTORCH_AARCH64)/.unpacked: | $(VENV)/.installed
	@mkdir -p $(@D)
	$(PIP) download -q --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --python-version 3.11 \
	  -d $(@D) "$$(grep -oE 'executorch==[0-9.]+' pyproject.toml)"
	cd $(@D) && $(CURDIR)/$(BIN)/python -m zipfile -e executorch-*.whl . && rm executorch-*.whl
	@touch $@
