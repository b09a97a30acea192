"""`make test-executorch` turns the long ones on: the aarch64 build in an emulator, Fashion-MNIST."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("FEDMPQ_EXECUTORCH_TESTS") else ["test_aarch64.py", "test_fashion_mnist.py"]
