"""What the package, `make setup` and README say about versions of Python agrees."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_all_name_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    extras = project["optional-dependencies"]
    ort = [need for name in ("export", "ort-training") for need in extras[name] if need.startswith("onnxruntime")]
    assert len(ort) == 2
    assert all("python_version < '3.13'" in need for need in ort)
    assert "needs Python 3.11 or 3.12," in (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "with Python 3.11 or newer" in readme
    assert "`make` wants Python 3.11 or 3.12" in readme
