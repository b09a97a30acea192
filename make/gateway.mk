# The gateway and whole devices in emulators: boards behind it, a fleet of three architectures, an aarch64 system with little RAM.

# A folder for the figures that docs/arm.md quotes.
RESULTS ?=

.PHONY: test-gateway
test-gateway: arm-tools  ## microcontrollers behind the gateway, the four-device fleet, a small-RAM system
	FEDMPQ_ARM=full FEDMPQ_RESULTS="$(RESULTS)" $(BIN)/python -m pytest tests/arm/test_gateway.py tests/arm/test_fleet.py tests/arm/test_small_ram.py $(ARGS)
