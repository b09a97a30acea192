# Cross builds and emulated runs. `make test-arm` proves the same bits on every processor; see docs/arm.md.

ARM_PACKAGES := qemu-user qemu-user-static qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi
ARM_SHORT_PACKAGES := qemu-user-static

.PHONY: arm-tools
arm-tools: setup  ## install cross compilers and emulators
	$(PIP) install -q "ziglang==0.17.1" "pyelftools>=0.31"
	@$(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="$(ARM_PACKAGES)"

.PHONY: test-arm
test-arm: arm-tools  ## golden states on aarch64, armv7, armv6 and Cortex-M in emulators
	FEDMPQ_ARM=full $(BIN)/python -m pytest tests/arm $(ARGS)

.PHONY: test-arm-short
test-arm-short: setup  ## the part of test-arm that CI runs, in under 10 minutes
	$(PIP) install -q "ziglang==0.17.1" "pyelftools>=0.31"
	@$(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="$(ARM_SHORT_PACKAGES)"
	FEDMPQ_ARM=short $(BIN)/python -m pytest tests/arm $(ARGS)
