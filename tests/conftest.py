"""For all tests: one thread a process (the models are tiny), and no trace outside temporary folders."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, fake_hub

os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
    del os.environ[_name]  # a job that runs the tests is none of theirs
os.environ["RCG_CACHE_DIR"] = tempfile.mkdtemp(prefix="rcg-test-cache-")
atexit.register(shutil.rmtree, os.environ["RCG_CACHE_DIR"], ignore_errors=True)

LONGEST = ["test_bad_json.py", "test_end_to_end.py", "training", "scripts", "encoders", "image_gen"]
"""Files and folders that take longest: started first, so that no worker is left with one when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: places.get(item.path.relative_to(root).parts[0], len(LONGEST)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[FakeHub]]:
    """A local Hub that huggingface_hub talks to; `user` is signed in."""
    with fake_hub() as (address, handler):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_TOKEN", handler.token)
        yield handler
