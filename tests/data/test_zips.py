"""Zip archives: the source that the folder is; what is refused; what is remembered."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data import packed, zips
from rcg.data.sources import open_source
from tests.data.shards import picture

NAMES = ["b/x.0.png", "b/x.1.png", "a/y.0.png", "a/z.PNG"]


def make(path: Path, names: Iterable[str] = NAMES, method: int = zipfile.ZIP_DEFLATED, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, name in enumerate(names):
            archive.writestr(prefix + name, picture(number))
    return path


@pytest.mark.parametrize("prefix", ["", "photos/train/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_what_the_folder_is(tmp_path: Path, prefix: str, method: int) -> None:
    place = make(tmp_path / "p.zip", method=method, prefix=prefix)
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(prefix + "b/x.txt", "two boats")
        archive.writestr("__MACOSX/b/._x.0.png", b"nothing")
        archive.writestr(prefix + "list.csv", b"a,b")
    with zipfile.ZipFile(place) as archive:
        archive.extractall(tmp_path / "out")
    folder, source = open_source(tmp_path / "out" / prefix), open_source(place)
    assert source.fingerprint == folder.fingerprint
    assert source.class_names == ["a", "b"]
    assert source.labels is not None
    assert source.labels.tolist() == folder.labels.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]
    for i in range(4):
        assert np.array_equal(np.asarray(source.image(i)), np.asarray(folder.image(i)))
    ours, theirs = source.groups(), folder.groups()
    assert ours is not None
    assert theirs is not None
    assert (ours.keys, ours.captions, ours.numbers.tolist()) == (theirs.keys, theirs.captions, theirs.numbers.tolist())
    assert "two boats" in ours.captions
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.image(2)), np.asarray(source.image(2)))


def test_several_archives(tmp_path: Path) -> None:
    make(tmp_path / "1.zip", ["w/cat/a.png", "w/dog/a.png"])
    make(tmp_path / "2.zip", ["w/cat/a.png"])
    for spec in (tmp_path, f"{tmp_path}/*.zip"):
        source = open_source(spec)
        assert len(source) == 3
        assert source.class_names == ["cat", "dog"]
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 0]
    (tmp_path / "more").mkdir()  # a folder of pictures with an archive beside them stays a folder
    (tmp_path / "more" / "x.png").write_bytes(picture(0))
    with pytest.warns(UserWarning, match=r"the single images are taken, and 1\.zip, 2\.zip ignored"):
        assert len(open_source(tmp_path)) == 1


def test_archives_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# A set")
    for number in range(2):
        make(tmp_path / "data" / f"train-{number}.zip", ["cat/a.0.png", "dog/b.0.png"])
    source = open_source(f"hf:{tmp_path}")
    assert source.class_names == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1]
    groups = source.groups()
    assert groups is not None
    assert groups.keys[0] == "data/train-0.zip/cat/a"


def test_opening_again_reads_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> None:
    place = make(tmp_path / "p.zip")
    first = open_source(place)

    def never(*_: object) -> None:
        raise AssertionError("the archive was read")

    monkeypatch.setattr(zips, "read_directory", never)
    monkeypatch.setattr(packed, "verify", never)
    again = open_source(place)
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.sizes.base, np.memmap | np.ndarray)
    monkeypatch.undo()
    (damaged,) = (user_cache / "indexed").glob("*/sizes.bin")
    damaged.write_bytes(damaged.read_bytes()[:-3])
    monkeypatch.setenv("RCG_CACHE_DIR", str(user_cache))
    assert open_source(place).fingerprint == first.fingerprint


def test_what_cannot_be_used_decides_nothing(tmp_path: Path) -> None:
    place = make(tmp_path / "p.zip", ["a/1.0.png", "b/2.png"])
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr("cover.png", b"broken")
        archive.writestr("icon.png", picture(7, size=4))
        archive.writestr("LICENSE.txt", "© someone".encode("latin-1"))
        archive.writestr("info.json", b"[1, 2")
        archive.writestr("a/1.txt", "a boat")
    with zipfile.ZipFile(place) as archive:
        archive.extractall(tmp_path / "out")
    with pytest.warns(UserWarning, match="2 of 4 images"):
        folder, source = open_source(tmp_path / "out"), open_source(place)
    assert source.fingerprint == folder.fingerprint
    assert source.class_names == folder.class_names == ["a", "b"]
    groups = source.groups()
    assert groups is not None
    assert groups.captions == ["a boat", None]
    make(tmp_path / "mixed.zip", ["a/1.png", "2.png"])
    for _ in range(2):  # when it is known, too
        with pytest.warns(UserWarning, match=r"mixed\.zip: images lie both in sub-folders and beside them"):
            assert open_source(tmp_path / "mixed.zip").labels is None
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:  # the only usable folder is a class all the same
        archive.writestr("a/1.png", picture(1))
        archive.writestr("b/2.png", b"broken")
    with pytest.warns(UserWarning, match="1 of 2 images"):
        assert open_source(tmp_path / "one.zip").class_names == ["a"]


def test_a_changed_archive_is_another_source(tmp_path: Path) -> None:
    first = open_source(make(tmp_path / "p.zip"))
    make(tmp_path / "p.zip", NAMES[:3])
    again = open_source(tmp_path / "p.zip")
    assert (len(first), len(again)) == (4, 3)
    assert again.fingerprint != first.fingerprint


def test_broken_images_are_skipped_and_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("a.png", picture(0))
        archive.writestr("b.png", picture(1)[:50])
        archive.writestr("c.png", picture(2, size=4))
        archive.writestr("d.png", picture(3))
    data = bytearray((tmp_path / "p.zip").read_bytes())
    data[data.rindex(picture(3)) + 60] ^= 1
    (tmp_path / "p.zip").write_bytes(data)
    with pytest.warns(UserWarning, match=r"3 of 4 images .*b\.png .*c\.png \(only 4×4.*d\.png \(it is damaged"):
        assert len(open_source(tmp_path / "p.zip")) == 1


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png", "a\\..\\x.png", "C:x.png"])
def test_members_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unsafe: it has a member that leaves its folder"):
        open_source(make(tmp_path / "p.zip", [name]))


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_unsafe_and_unreadable_archives(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / "p.zip")

    place = make(tmp_path / "p.zip", ["a.png"])
    data = bytearray(place.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    whole = bytes(data)
    for change, message in (
        ({8: 1}, "encrypted"),
        ({10: 14}, "method 14"),
        ({27: 0x7F}, "decompression bomb"),
        ({41: 0xA0}, "no plain file"),
    ):
        data[:] = whole
        for offset, byte in change.items():
            data[central + offset] = byte
        place.write_bytes(data)
        refused(message)
    for keep in (0, 10, len(whole) - 30):
        place.write_bytes(whole[:keep])
        refused("no zip archive or is damaged")
    make(place, ["a.txt"])
    refused("holds no images")
    with pytest.warns(UserWarning, match="Duplicate"):
        make(place, ["a.png", "a.png"])
    refused("twice")
    make(place, ["a.png", "b.png"])  # b's entry points at a's bytes
    data = bytearray(place.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    place.write_bytes(data)
    refused("overlaps")


def test_an_archive_that_changes_afterwards(tmp_path: Path, user_cache: Path) -> None:
    source = open_source(make(tmp_path / "p.zip"))
    with (tmp_path / "p.zip").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="could be read when it was opened but cannot be now"):
        source.image(3)
    shutil.rmtree(user_cache)
    with pytest.raises(UserError, match="damaged"):
        open_source(tmp_path / "p.zip")
