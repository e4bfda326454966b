"""What the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings about image files are remembered in the test's own folder."""
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "user-cache"))
