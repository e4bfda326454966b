"""For all tests: one thread a process (the models are tiny), and no trace outside temporary folders."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RCG_CACHE_DIR"] = tempfile.mkdtemp(prefix="rcg-test-cache-")
