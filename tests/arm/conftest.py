"""Emulated runs are long and need cross compilers: `make test-arm` and `make test-arm-short` turn them on."""

from __future__ import annotations

import os

import pytest

MODE = os.environ.get("FEDMPQ_ARM", "")
#: The short form has no time for whole devices, and takes of the boards only their recorded states.
_LONG = ["test_gateway.py", "test_fleet.py", "test_small_ram.py"]
collect_ignore_glob = {"full": [], "short": _LONG}.get(MODE, ["test_*.py"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, in the short form, what is not said to be of it."""
    if MODE != "short":
        return
    left = [item for item in items if item.path.name == "test_cortex_m.py" and "recorded_state" not in item.name]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
