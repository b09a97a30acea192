# Long forms of the durability tests; `make test` runs a short form of each.

.PHONY: test-kill
test-kill: setup  ## SIGKILL at every fault point of coordinator, devices and broker (about 15 minutes)
	FEDMPQ_KILLS=full FEDMPQ_KILLS_REPORT=$(CURDIR)/benchmarks/results/kills.json \
	  $(BIN)/python -m pytest tests/faults $(ARGS)
