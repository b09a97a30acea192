# Speed and memory, measured on this machine and written into docs/performance.md. Wants a machine that does nothing else: about six minutes.

RESULTS := benchmarks/results
ALL_PEERS := torch,ort-training,executorch

.PHONY: bench
bench: setup  ## measure speed and memory beside other trainers; writes benchmarks/results/bench-*.json and docs/performance.md
	$(BIN)/fedmpq bench train --model resnet20 --bits 4 --batch 64 --threads 1 --against $(ALL_PEERS) --json > $(RESULTS)/bench-b64.json
	$(BIN)/fedmpq bench train --model resnet20 --bits 4 --batch 1 --threads 1 --against torch --json > $(RESULTS)/bench-b1.json
	$(BIN)/fedmpq bench train --model resnet20 --bits 4 --batch 64 --threads 1 --against torch --isa avx512vnni --json \
	  > $(RESULTS)/bench-avx512vnni.json
	$(BIN)/fedmpq bench train --model resnet20 --bits 4 --batch 64 --threads 1 --against torch --isa avx2 --json > $(RESULTS)/bench-avx2.json
	$(BIN)/fedmpq bench scaling --model resnet20 --bits 4 --json > $(RESULTS)/bench-scaling.json
	$(BIN)/fedmpq bench memory --model resnet20 --bits 4 --batch 1,64 --json > $(RESULTS)/bench-memory.json
	$(BIN)/fedmpq bench memory --model resnet8 --bits 4 --batch 1,64 --json > $(RESULTS)/bench-memory-resnet8.json
	$(BIN)/fedmpq bench kernels --model resnet20 --bits 4 --json > $(RESULTS)/bench-kernels.json
	$(BIN)/fedmpq bench targets --model resnet8 --batch 16 --repetitions 5 --seconds 1 --json > $(RESULTS)/targets.json
	$(BIN)/python benchmarks/render_targets.py
	$(BIN)/python benchmarks/render_performance.py

.PHONY: bench-kernels
bench-kernels: setup  ## time each layer of ResNet20 on each instruction set (pytest-benchmark; ARGS="--benchmark-compare")
	$(BIN)/python -m pytest benchmarks/test_kernels.py --benchmark-columns=min,median,iqr,rounds --benchmark-max-time=0.2 $(ARGS)
