# Ray as the engine of simulations and of aggregation.

.PHONY: test-ray
test-ray: setup  ## a local Ray cluster: same bytes with 1 and 2 workers, and the throughput
	$(PIP) install -q "$$(grep -oE 'ray==[0-9.]+' pyproject.toml | head -1)"
	FEDMPQ_RAY=1 $(BIN)/python -m pytest tests/ray $(ARGS)
