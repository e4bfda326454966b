"""What the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcg.data.sources import ImageSource, open_source
from tests.data.caches import make


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings about image files are remembered in the test's own folder."""
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "user-cache"))


@pytest.fixture
def source() -> ImageSource:
    return open_source("shapes:n=23,size=12,seed=4")


@pytest.fixture
def built(source: ImageSource, tmp_path: Path) -> Path:
    make(source, tmp_path / "cache", crop_scale=0.5)
    return tmp_path / "cache"
