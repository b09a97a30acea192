# Long forms of the durability tests; `make test` runs a short form of each.

.PHONY: test-kill
test-kill: setup  ## SIGKILL at every fault point of coordinator, devices and broker (about 15 minutes)
	FEDMPQ_KILLS=full FEDMPQ_KILLS_REPORT=$(CURDIR)/benchmarks/results/kills.json \
	  $(BIN)/python -m pytest tests/faults $(ARGS)

.PHONY: fuzz
fuzz: setup  ## fuzz every parser and reader; SECONDS_EACH=20
	$(PIP) install -q "atheris==3.0.0"
	@command -v clang-14 >/dev/null || command -v clang >/dev/null || \
	  $(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="clang-14 libclang-rt-14-dev"
	$(BIN)/python -m fuzz.campaign --seconds $(or $(SECONDS_EACH),20) $(ARGS)

.PHONY: bench-fleet
bench-fleet: setup  ## ingest, 1,000 devices with TLS, 5,000 idle, 100 rounds: the figures of docs/scale.md
	$(BIN)/python -m benchmarks.ingest --devices 300 --out benchmarks/results/ingest.json
	$(BIN)/python -m benchmarks.fleet round --devices 1000 --tls --out benchmarks/results/fleet-1000.json
	$(BIN)/python -m benchmarks.fleet idle --devices 5000 --tls --rate 300 --out benchmarks/results/fleet-idle.json
	$(BIN)/python -m benchmarks.fleet soak --devices 10 --rounds 100 --out benchmarks/results/fleet-soak.json
