# The page of a run in a real browser.

.PHONY: test-web
test-web: setup  ## the read-only page in Chromium (installed if it is not there)
	@$(MAKE) --no-print-directory -s system SYSTEM_PACKAGES="chromium fonts-dejavu-core"
	FEDMPQ_BROWSER=chromium $(BIN)/python -m pytest tests/web $(ARGS)
