"""Ray is a large package: `make test-ray` installs it for these tests."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("FEDMPQ_RAY") else ["test_ray.py"]
