"""Shards and archives at an address, through fsspec's stores in memory and on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data.sources import open_source
from tests.data.shards import picture, write_shards
from tests.data.test_zips import make


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_shards_and_archives(tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "a dog", "an owl", "a cat", "a fox"], classes=True)
    for shard in folder.glob("*.tar"):
        store.pipe_file(f"/data/s/{shard.name}", shard.read_bytes())
    archive = make(tmp_path / "p.zip")
    store.pipe_file("/data/p.zip", archive.read_bytes())
    for address, place in (
        ("memory://data/s", folder),
        ("memory://data/s/*.tar", folder),
        (f"file://{folder}", folder),
        ("memory://data/s/000001.tar", folder / "000001.tar"),
        ("memory://data/p.zip", archive),
        (f"file://{archive}", archive),
    ):
        there, here = open_source(address), open_source(place)
        assert there.fingerprint == here.fingerprint, address
        assert np.array_equal(there.labels, here.labels)  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(there.image(1)), np.asarray(here.image(1)))


def test_a_web_server_lists_addresses_without_sizes(
    tmp_path: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "a dog", "an owl", "a cat", "a fox"])
    for shard in folder.glob("*.tar"):
        store.pipe_file(f"/data/s/{shard.name}", shard.read_bytes())
        store.pipe_file(f"/data/p/{shard.stem}.png", picture(int(shard.stem)))

    def listed(infos: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        names = [f"memory://{name.lstrip('/')}" for name in reversed(infos)]
        return {name: {"name": name, "size": None, "type": "file"} for name in names}

    def look(path: str, **_: object) -> dict[str, dict[str, object]]:
        return listed(find(path.removesuffix("/*.tar"), detail=True))

    find = store.find
    monkeypatch.setattr(store, "glob", look)
    monkeypatch.setattr(store, "find", look)
    monkeypatch.setattr(store, "ls", lambda path, **_: list(look(path).values()))
    for address in ("memory://data/s/*.tar", "memory://data/s"):
        assert open_source(address).fingerprint == open_source(folder).fingerprint, address
    assert len(open_source("memory://data/p")) == 2


def test_images_are_read_by_ranges(
    tmp_path: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_shards(tmp_path / "s", ["one", "two"]).joinpath("000000.tar").read_bytes()
    store.pipe_file("/s/0.tar", data)
    open_source("memory://s/0.tar")
    asked: list[int] = []
    whole = type(store).cat_file

    def cat(self: object, path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return whole(self, path, start, end)

    monkeypatch.setattr(type(store), "cat_file", cat)
    monkeypatch.setattr(type(store), "open", None)
    source = open_source("memory://s/0.tar")  # known by now: nothing is read
    assert asked == []
    source.image(4)
    assert len(asked) == 1
    assert asked[0] < 1000


def test_what_cannot_be_reached(tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    store.pipe_file("/f/a.png", b"x")
    store.pipe_file("/d/e/a.arrow", b"x")
    for spec, message in (
        ("memory://nothing", "there is nothing at memory://nothing"),
        ("memory://d/*.tar", "nothing lies at"),
        ("memory://f", "none of the 1 images in memory://f/ can be used"),
        ("memory://d/e", "read from a disk only"),
        ("nosuch://x/y", "cannot be opened"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(spec)
    source = open_source(make_remote(tmp_path, store))
    store.rm("/p.zip")
    with pytest.raises(UserError, match="cannot be now"):
        source.image(0)


def make_remote(tmp_path: Path, store: fsspec.AbstractFileSystem) -> str:
    store.pipe_file("/p.zip", make(tmp_path / "p.zip").read_bytes())
    return "memory://p.zip"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"Install s3fs to access S3.*rcg\[s3\]"):
        open_source("s3://bucket/some/shards")
