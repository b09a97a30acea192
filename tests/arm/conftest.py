"""Emulated runs are long and need cross compilers: `make test-arm` and `make test-arm-short` turn them on."""

from __future__ import annotations

import os

MODE = os.environ.get("FEDMPQ_ARM", "")
#: The short form has no time for the bare-metal compiler and system emulation.
collect_ignore_glob = {"full": [], "short": ["test_cortex_m.py"]}.get(MODE, ["test_*.py"])
