"""The browser that these tests drive: named by FEDMPQ_BROWSER (`make test-web`)."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("FEDMPQ_BROWSER") else ["test_browser.py"]
