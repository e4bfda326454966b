"""What the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcg.data.sources import ImageSource, open_source
from tests.data.caches import make


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own for what is remembered of image files, outside of `tmp_path`, where its images lie."""
    folder = tmp_path_factory.mktemp("user-cache")
    monkeypatch.setenv("RCG_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def source() -> ImageSource:
    return open_source("shapes:n=23,size=12,seed=4")


@pytest.fixture
def built(source: ImageSource, tmp_path: Path) -> Path:
    make(source, tmp_path / "cache", crop_scale=0.5)
    return tmp_path / "cache"
