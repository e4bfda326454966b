"""Shards and archives at an address, through fsspec's stores in memory and on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data import blobs
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


def test_a_server_that_knows_no_ranges_is_not_called_damage(
    tmp_path: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as Python's own: it gives the whole file, whatever part is asked for."""
    shards = write_shards(tmp_path / "s", ["one", "two"])
    store.pipe_file("/s/0.tar", (shards / "000000.tar").read_bytes())
    store.pipe_file("/p/0.png", picture(0))
    whole = type(store).cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **_: whole(self, path))
    for address in ("memory://s/0.tar", make_remote(tmp_path, store)):
        with pytest.raises(UserError, match=r"cannot be read \(its server gives whole files .* give the copy\)"):
            open_source(address)
    assert len(open_source("memory://p")) == 1  # single images are read whole


def test_a_table_of_texts_about_single_images_is_none_of_images(
    tmp_path: Path, store: fsspec.AbstractFileSystem
) -> None:
    (tmp_path / "photos").mkdir()
    for name, data in (("0.png", picture(0)), ("1.png", picture(1)), ("metadata.parquet", b"texts")):
        (tmp_path / "photos" / name).write_bytes(data)
        store.pipe_file(f"/photos/{name}", data)
    assert open_source("memory://photos").fingerprint == open_source(tmp_path / "photos").fingerprint
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="is no Parquet file"):  # named itself, it is meant
        open_source("memory://photos/metadata.parquet")


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


class Faults:
    """A store whose reading fails some times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: fsspec.AbstractFileSystem) -> None:
        self.left, self.asked = 0, 0
        monkeypatch.setattr(blobs, "PAUSE", 0.0)
        cat, opened = type(store).cat_file, type(store).open
        faults = self

        def cat_file(self: object, *given: object, **more: object) -> bytes:
            faults.count()
            return cat(self, *given, **more)

        def open_(self: object, *given: object, **more: object) -> object:
            file = opened(self, *given, **more)
            read = file.read

            def failing(*size: int) -> bytes:
                faults.count()
                return read(*size)

            file.read = failing
            return file

        monkeypatch.setattr(type(store), "cat_file", cat_file)
        monkeypatch.setattr(type(store), "open", open_)

    def count(self) -> None:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise RuntimeError("Server disconnected")


def test_a_fault_of_the_store_leaves_no_image_out(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        store.pipe_file(f"/p/{i}.png", picture(i))
    store.pipe_file("/p/broken.png", b"x")
    faults = Faults(monkeypatch, store)
    faults.left = 2
    with pytest.raises(
        UserError, match=r"memory://p/\d\.png cannot be read .*Server disconnected.*run the command again"
    ):
        open_source("memory://p", threads=1)
    faults.left = 1  # a passing one
    with pytest.warns(UserWarning, match=r"1 of 4 images .* are skipped: broken\.png"):
        assert len(open_source("memory://p", threads=1)) == 3


def test_a_table_that_cannot_be_reached_is_not_called_damaged(
    tmp_path: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, user_cache: Path
) -> None:
    pytest.importorskip("pyarrow")
    from tests.data.test_tables import parquet, table

    parquet.write_table(table(), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    store.pipe_file("/x.parquet", data)
    store.pipe_file("/broken.parquet", data[:100] + bytes(len(data) - 100))
    faults = Faults(monkeypatch, store)
    faults.left = 1 << 30
    for place in ("memory://x.parquet", make_remote(tmp_path, store)):
        with pytest.raises(UserError, match=r"cannot be read \(RuntimeError: Server disconnected"):
            open_source(place)
    faults.left = 0
    with pytest.raises(UserError, match="is no Parquet file or is damaged"):
        open_source("memory://broken.parquet")
    faults.asked = 0
    open_source("memory://x.parquet")
    needed = faults.asked
    for _ in range(needed):  # wherever it comes
        faults.left = 1
        shutil.rmtree(user_cache)
        assert len(open_source("memory://x.parquet")) == 5


def make_remote(tmp_path: Path, store: fsspec.AbstractFileSystem) -> str:
    store.pipe_file("/p.zip", make(tmp_path / "p.zip").read_bytes())
    return "memory://p.zip"


@pytest.mark.parametrize(
    ("address", "way_out"),
    [
        ("s3://bucket/some/shards", r"run: pip install s3fs\.$"),
        ("https://host/shards", r"run: pip install aiohttp\.$"),
        ("gs://bucket/shards", r"run: pip install gcsfs\.$"),
        ("abfs://bucket/shards", r"install it\.$"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, address: str, way_out: str) -> None:
    import fsspec.core

    def missing(_: str) -> None:
        raise ImportError("Install such-and-such")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"Install such-and-such\); {way_out}"):
        open_source(address)
