# Cross builds and emulated runs. `make test-arm` proves the same bits on every processor; see docs/arm.md.

ARM_SHORT_PACKAGES := qemu-user-static qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi
ARM_PACKAGES := $(ARM_SHORT_PACKAGES) qemu-user mosquitto
# The same states on this machine, by every kernel table and by the PyTorch reference.
ARM_HERE := tests/golden/test_edge.py

.PHONY: arm-compiler
arm-compiler: setup
	@$(PIP) install -q "ziglang==0.17.1" "pyelftools>=0.31"

.PHONY: arm-tools
arm-tools: arm-compiler  ## install cross compilers and emulators
	@$(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="$(ARM_PACKAGES)"

.PHONY: test-arm
test-arm: arm-tools  ## golden states by the reference, on x86-64, aarch64, armv7, armv6 and Cortex-M in emulators
	FEDMPQ_ARM=full $(BIN)/python -m pytest $(ARM_HERE) tests/arm $(ARGS)

.PHONY: test-arm-short
test-arm-short: arm-compiler  ## the part of test-arm that CI runs, in under 10 minutes
	@$(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="$(ARM_SHORT_PACKAGES)"
	FEDMPQ_ARM=short $(BIN)/python -m pytest tests/arm $(ARGS)
