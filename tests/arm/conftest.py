"""Emulated runs are long and need cross compilers: `make test-arm` and `make test-arm-short` turn them on."""

from __future__ import annotations

import os

MODE = os.environ.get("FEDMPQ_ARM", "")
#: The short form has no time for the bare-metal compiler and system emulation.
_SYSTEM = ["test_cortex_m.py", "test_gateway.py", "test_fleet.py", "test_small_ram.py"]
collect_ignore_glob = {"full": [], "short": _SYSTEM}.get(MODE, ["test_*.py"])
