"""The index of a source of packed files: kept as arrays, where it can be kept, and no larger than it says."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from rcg.core.errors import UserError
from rcg.data.packed import Index, PackedSource
from rcg.data.sources import open_source
from tests.data.shards import write_shards


def same(one: PackedSource, other: PackedSource) -> None:
    assert one.fingerprint == other.fingerprint
    for name in Index.ARRAYS:
        assert np.array_equal(getattr(one.index, name), getattr(other.index, name))
    a, b = one.groups(), other.groups()
    assert a is not None
    assert b is not None
    assert (a.keys, a.captions) == (b.keys, b.captions)
    assert np.array_equal(np.asarray(one.image(3)), np.asarray(other.image(3)))


def opened(folder: Path) -> PackedSource:
    source = open_source(folder, progress=False)
    assert isinstance(source, PackedSource)
    return source


def test_an_index_is_mapped_and_pickled_by_its_place(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "Ärger 🦉", "a cat", "an owl", "a hen"], classes=True)
    source = opened(folder)
    again = opened(folder)
    same(source, again)
    assert isinstance(again.index.places.base, np.memmap)
    data = pickle.dumps(again)
    assert len(data) < 3000  # what a worker of a loader is sent
    same(pickle.loads(data), source)
    groups = again.groups()
    assert groups is not None
    assert groups.captions == ["a cat", "Ärger 🦉", "a cat", "an owl", "a hen"]
    assert Index.ARRAYS["places"].itemsize == 29


def test_another_index_in_its_place_is_refused(tmp_path: Path, user_cache: Path) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "a dog"])
    data = pickle.dumps(opened(folder))
    shard = next(folder.glob("*.tar"))
    write_shards(tmp_path / "t", ["an owl", "a fox"])
    shard.write_bytes((tmp_path / "t" / shard.name).read_bytes())
    opened(folder)  # another process looks meanwhile
    with pytest.raises(UserError, match=r"is another one by now.*run the command again"):
        pickle.loads(data)
    shutil.rmtree(user_cache)
    with pytest.raises(UserError, match="is not there"):
        pickle.loads(data)


def test_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "a dog"])
    source = opened(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot be remembered in .*; set RCG_CACHE_DIR"):
        other = opened(folder)
    same(source, other)
    same(source, pickle.loads(pickle.dumps(other)))


def test_an_older_filelock_on_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", none)
    folder = write_shards(tmp_path / "s", ["a cat", "a dog"])
    with pytest.warns(UserWarning, match=r"cannot be remembered in .* \(FileSystem does not .*; set RCG_CACHE_DIR"):
        source = opened(folder)
    same(source, opened(folder))


def test_a_full_disk_while_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "a dog"])
    real, calls = PackedSource._look, []

    def full(self: PackedSource, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedSource, "_look", full)
    with pytest.warns(UserWarning, match=r"cannot be remembered .*No space left"):
        source = opened(folder)
    kept = user_cache / "indexed"
    assert [p.name for p in kept.iterdir() if p.is_dir()] == []
    monkeypatch.undo()
    monkeypatch.setenv("RCG_CACHE_DIR", str(user_cache))
    same(source, opened(folder))


def test_damaged_and_left_over_indexes_are_made_anew(tmp_path: Path, user_cache: Path) -> None:
    folder = write_shards(tmp_path / "s", ["a cat", "a dog"])
    source = opened(folder)
    (index,) = (p for p in (user_cache / "indexed").iterdir() if p.is_dir())
    left = index.with_name(f".{index.name}.0123abcd")
    left.mkdir()
    for name in ("places", "ends", "keys", "names"):
        file = index / f"{name}.bin"
        for data in (file.read_bytes()[:-1], b"", file.read_bytes() + bytes(100)):
            file.write_bytes(data)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                same(opened(folder), source)
    assert not left.exists()
