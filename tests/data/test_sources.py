"""Folders of images: what is found, skipped, labelled, remembered and refused."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sqlite3
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcg.core.errors import UserError
from rcg.data import verify as verify_module
from rcg.data.image_source import divide
from rcg.data.part import Part
from rcg.data.repositories import split_folders
from rcg.data.shapes import draw
from rcg.data.sources import FolderSource, ImageSource, open_source
from tests.data.shards import picture, write_shards, write_tar


def write(path: Path, index: int = 0, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(0, index, size)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, six images."""
    root = tmp_path / "pictures"
    for i in range(6):
        write(root / ("cat" if i % 2 else "ant") / ("deep" if i > 3 else "") / f"{i}.{'png' if i else 'webp'}", i)
    return root


def quiet(spec: str | Path, **options: object) -> ImageSource:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return open_source(spec, progress=False, **options)  # type: ignore[arg-type]


def test_order_labels_and_images(folder: Path) -> None:
    source = quiet(folder)
    assert isinstance(source, FolderSource)
    assert source.files == ["ant/0.webp", "ant/2.png", "ant/deep/4.png", "cat/1.png", "cat/3.png", "cat/deep/5.png"]
    assert source.class_names == ["ant", "cat"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labels.dtype == np.int64
    assert source.name == "pictures"
    assert len(source) == 6
    assert source.sizes.tolist() == [[16, 16]] * 6
    assert np.array_equal(np.asarray(source.image(2)), draw(0, 4, 16))
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(source)).image(3)), draw(0, 1, 16))


def test_families_are_groups_but_not_whole_classes(tmp_path: Path) -> None:
    for i, name in enumerate(("cat/cat.0", "cat/cat.1", "ship/a.0", "ship/a.1", "ship/b.0", "ship/c")):
        write(tmp_path / f"{name}.png", i)
    whole = quiet(tmp_path)
    assert whole.families().tolist() == [6, 7, 1, 1, 2, 3]
    part = Part(whole, np.array([5, 3, 2]), "some")
    assert part.groups().keys == ["ship/a", "ship/c"]  # type: ignore[union-attr]
    assert part.families().tolist() == [1, 0, 0]
    rows = np.random.default_rng(0).permutation(60)
    for first in (1, 20, 59):
        assert [p.tolist() for p in divide(rows, np.arange(60), first)] == [
            rows[:first].tolist(),
            rows[first:].tolist(),
        ]
        a, b = divide(rows, np.arange(60) // 4, first)
        assert not set(a // 4) & set(b // 4)
        assert sorted([*a, *b]) == list(range(60))
        assert abs(len(a) - first) <= 3
    assert [len(p) for p in divide(rows, np.zeros(60, int), 20)] == [20, 40]


def test_flat_and_mixed_folders(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "flat" / f"{i}.png", i)
    source = quiet(tmp_path / "flat")
    assert source.labels is None
    assert source.class_names == []
    write(tmp_path / "flat" / "cat" / "9.png", 9)
    with pytest.warns(UserWarning, match="no labels"):
        source = open_source(tmp_path / "flat", progress=False)
    assert len(source) == 4
    assert source.labels is None


def test_what_is_heavier_is_taken_and_the_rest_named(tmp_path: Path) -> None:
    def opened(place: Path | str, ignored: str) -> ImageSource:
        with pytest.warns(UserWarning, match=rf"files of several kinds; .*{ignored}.* ignored"):
            return open_source(place, progress=False)

    photos = tmp_path / "photos"
    for i in range(6):
        (photos / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (photos / "ab"[i % 2] / f"{i}.png").write_bytes(picture(i, 64))
    plain = quiet(photos)
    (photos / "labels.parquet").write_bytes(b"a table of something else")
    write_tar(photos / "sample.tar", [("x.png", picture(9))])
    found = opened(photos, r"labels\.parquet, sample\.tar")
    assert (found.fingerprint, found.class_names) == (plain.fingerprint, ["a", "b"])
    assert len(opened(f"{photos}/*.[tp]*", r"labels\.parquet")) == 1  # a pattern's shards are taken before its tables
    shards = write_shards(tmp_path / "shards", ["a cat", "a dog"], count=9)
    quiet(shards)
    (shards / "preview").mkdir()
    (shards / "preview" / "one.png").write_bytes(picture(1))
    (shards / "top.png").write_bytes(picture(2))
    assert len(opened(shards, "top.png, preview")) == 18
    drawn = write_shards(tmp_path / "drawn", ["a cat", "a dog"], count=9)
    (drawn / "grid.png").write_bytes(picture(1, 64) + bytes(1 << 20))
    assert len(quiet(drawn)) == 18  # the sheet of rcg-sample is none of its images


def test_splits_side_by_side_are_not_one_set(tmp_path: Path) -> None:
    for number, name in enumerate(("train-000.tar", "train-001.tar", "val-000.tar", "cats-00000-of-00002.tar")):
        write_tar(tmp_path / name, [(f"{number}.png", picture(number))])
    for place in (tmp_path, f"{tmp_path}/*.tar"):
        with pytest.raises(
            UserError, match=rf"several sets \(train, validation\); .* such as '{tmp_path}/train-00\*'\."
        ):
            quiet(place)
    assert len(quiet(f"{tmp_path}/train-*")) == 2
    (tmp_path / "train-001.tar").rename(tmp_path / "training.tar")
    (tmp_path / "val-000.tar").rename(tmp_path / "trained-val.tar")
    with pytest.raises(UserError, match=r"keep each in a folder of its own\."):
        quiet(tmp_path)
    (tmp_path / "trained-val.tar").unlink()
    assert len(quiet(tmp_path)) == 3


def test_bad_files_are_named_and_skipped(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "ant" / "half.jpg")
    data = (folder / "ant" / "half.jpg").read_bytes()
    (folder / "ant" / "half.jpg").write_bytes(data[: len(data) // 2])
    (folder / "ant" / "nothing.png").touch()
    (folder / "cat" / "text.png").write_text("no picture")
    write(folder / "cat" / "dot.png", size=1)
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "notes.txt").write_text("not meant to be an image")
    (folder / ".thumb.png").write_text("hidden")
    with pytest.warns(UserWarning, match="6 of 12") as caught:
        source = open_source(folder, progress=False)
    reasons = dict(source.skipped)
    assert set(reasons) == {
        "ant/half.jpg",
        "ant/nothing.png",
        "cat/text.png",
        "cat/dot.png",
        "gone.jpg",
        "cat/pipe.png",
    }
    assert "truncated" in reasons["ant/half.jpg"]
    assert "empty" in reasons["ant/nothing.png"]
    assert "not an image" in reasons["cat/text.png"]
    assert "1×1" in reasons["cat/dot.png"]
    assert "not a regular file" in reasons["cat/pipe.png"]
    assert "No such file" in reasons["gone.jpg"]
    assert len(caught) == 1  # a skipped file at the top does not make the folder a mixed one
    message = str(caught[0].message)
    assert all(f"{path} ({reason})" in message for path, reason in source.skipped)
    assert len(source) == 6
    assert source.labels is not None


def test_only_ten_are_named(folder: Path) -> None:
    for i in range(14):
        (folder / "ant" / f"bad{i}.png").touch()
    with pytest.warns(UserWarning, match="and 4 more"):
        assert len(open_source(folder, progress=False).skipped) == 14


def test_fingerprint(folder: Path, tmp_path: Path) -> None:
    first = quiet(folder).fingerprint
    elsewhere = tmp_path / "other" / "place"
    shutil.copytree(folder, elsewhere)
    for file in elsewhere.rglob("*.*"):
        os.utime(file, (1, 1))
    assert quiet(elsewhere).fingerprint == first
    write(elsewhere / "cat" / "1.png", 77)
    changed = quiet(elsewhere).fingerprint
    assert changed != first
    write(elsewhere / "cat" / "1.png", 1)
    assert quiet(elsewhere).fingerprint == first
    (elsewhere / "cat" / "1.png").rename(elsewhere / "ant" / "1.png")
    assert quiet(elsewhere).fingerprint not in (first, changed)


def test_a_file_in_the_place_of_another_as_old_and_as_large(tmp_path: Path) -> None:
    bmp = tmp_path / "images" / "1.bmp"
    write(bmp, 1)
    before, times = quiet(bmp.parent), bmp.stat()
    write(tmp_path / "2.bmp", 2)
    os.utime(tmp_path / "2.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "2.bmp").replace(bmp)
    assert (bmp.stat().st_size, bmp.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert quiet(bmp.parent).fingerprint != before.fingerprint


def test_files_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ant" / "bad.png").write_text("no picture")
    looked_at: list[str] = []
    real = verify_module.inspect
    monkeypatch.setattr(verify_module, "inspect", lambda p: looked_at.append(p.name) or real(p))
    with pytest.warns(UserWarning, match=r"bad\.png"):
        first = open_source(folder, progress=False)
    assert len(looked_at) == 7
    looked_at.clear()
    with pytest.warns(UserWarning, match=r"bad\.png"):  # never silent, the second time neither
        again = open_source(folder, progress=False)
    assert looked_at == []
    assert again.fingerprint == first.fingerprint
    assert again.skipped == first.skipped
    write(folder / "ant" / "2.png", 50)
    write(folder / "ant" / "bad.png", 51)
    assert len(quiet(folder)) == 7
    assert sorted(looked_at) == ["2.png", "bad.png"]
    assert len(quiet(folder, min_size=16)) == 7
    with pytest.raises(UserError, match="only 16×16 px, less than 17"):
        quiet(folder, min_size=17)


def test_a_memory_that_cannot_be_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path
) -> None:
    quiet(folder)
    (memory,) = (user_cache / "verified").glob("*.sqlite")
    memory.write_bytes(b"damaged" * 1000)
    assert len(quiet(folder)) == 6
    (tmp_path / "a file").touch()
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "a file" / "below"))
    with pytest.warns(UserWarning, match="RCG_CACHE_DIR"):
        assert len(open_source(folder, progress=False)) == 6


def test_a_memory_that_is_damaged_anywhere_or_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path
) -> None:
    files, looked_at = [f"{i:04d}.png" for i in range(700)], list[int]()
    real = [verify_module.Finding(bytes([i % 256] * 16), 9, 9, None) for i in range(700)]

    def verify() -> list[verify_module.Finding]:
        looked_at.clear()
        stamps = [(1, 1)] * 700
        return verify_module.verify(
            tmp_path, files, progress=False, stamps=stamps, look=lambda i: looked_at.append(i) or real[i]
        )

    assert verify() == real
    (memory,) = (user_cache / "verified").glob("*.sqlite")
    whole = memory.read_bytes()
    assert len(whole) > 8 * 4096
    for page in range(0, len(whole), 3 * 4096):
        memory.write_bytes(whole[:page] + b"\xa7" * 4096 + whole[page + 4096 :])
        assert verify() == real, page
    memory.write_bytes(whole)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **options: connect(name, **options | {"timeout": 0}))
    other = connect(memory)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match=r"cannot be remembered .*locked"):
        assert verify() == real
    other.close()
    assert memory.read_bytes() == whole  # it was healthy
    assert verify() == real
    assert looked_at == []


def test_processes_share_the_checking(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = verify_module.inspect

    def noted(path: Path) -> verify_module.Finding:
        with (tmp_path / "looked-at").open("a") as file:
            file.write(f"{path.name}\n")
        time.sleep(0.02)
        return real(path)

    monkeypatch.setattr(verify_module, "inspect", noted)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        fingerprints = pool.starmap(_fingerprint, [(folder,)] * 3, chunksize=1)
    assert set(fingerprints) == {quiet(folder).fingerprint}
    assert len((tmp_path / "looked-at").read_text().split()) == 6


def _fingerprint(folder: Path) -> str:
    return quiet(folder).fingerprint


def test_links_in_a_circle(folder: Path) -> None:
    plain = quiet(folder).fingerprint
    (folder / "ant" / "up").symlink_to("../..", target_is_directory=True)
    (folder / "cat" / "self").symlink_to(".", target_is_directory=True)
    assert quiet(folder).fingerprint == plain


def test_names_that_are_not_utf8(folder: Path) -> None:
    (folder / "ant" / "2.png").rename(folder / "ant" / os.fsdecode(b"\xff\xfe.png"))
    assert len(quiet(folder)) == 6
    assert len(quiet(folder)) == 6


def test_a_file_that_vanishes_later(folder: Path) -> None:
    source = quiet(folder)
    (folder / "ant" / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png"):
        source.image(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape:n=3", "there is no folder"),
        ("shapes:n", "n must be a whole number"),
        ("shapes:n=0", "n must be a whole number"),
        ("shapes:n=-3", "n must be a whole number"),
        ("shapes:size=3", "size must be"),
        ("shapes:size=1e3", "size must be"),
        ("shapes:sized=3", "'sized' is no option"),
        ("shapes:n=3,n=4", "'n' is given twice"),
        ("clothing:split=dev", "split must be one of train, validation, test, all, not 'dev'"),
        ("clothing:size=65", "size must be a whole number from 8 to 64"),
        ("clothing:n=373,split=test", "split=test has 372 photographs, not 373"),
        ("clothing:colour=red", "'colour' is no option"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
    way_out = ("shapes:n=2000", "clothing:split=train", "whole number from", "one of train", "ask for fewer")
    assert any(words in str(caught.value) for words in way_out)


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pictures" / "0.png")
    write_shards(tmp_path / "set" / "data", ["a cat"])
    assert len(quiet("~/pictures")) == 1
    assert len(quiet("~/set")) == len(quiet("hf:~/set")) == len(quiet("~/set/data")) == 3
    for spec in ("~nobody-of-this-name/x", "hf:~nobody-of-this-name/x"):
        with pytest.raises(UserError, match="there is no folder '~nobody-of-this-name/x'"):
            open_source(spec)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        open_source(tmp_path)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UserError, match=r"none of the 1 images .*a\.png \(not an image\)"):
        open_source(tmp_path, progress=False)
    with pytest.raises(UserError, match="is a file"):
        open_source(tmp_path / "a.png")


def test_a_rank_that_is_no_number_is_not_looked_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "main")
    assert len(open_source(folder)) == 6


def test_images_that_are_not_read_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(2):
        write(folder / "cat" / f"{i}.png", i)
    for name in ("a.HEIC", "b.heic", "c.CR2", ".d.heic", "notes.txt"):
        (folder / "cat" / name).write_bytes(b"x")
    told = r"not read are left out: 3 \(2 \.heic, 1 \.cr2\); convert them to \.png or \.jpg"
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    write_tar(
        tmp_path / "p.tar", [("0.png", picture(0)), ("a.heic", b""), ("b.HEIC", b""), ("c.cr2", b""), ("0.cr2", b"")]
    )
    for place in (folder, tmp_path / "photos.zip", f"file://{folder}", tmp_path / "p.tar"):
        for _ in range(2):  # the second time from what is remembered
            with pytest.warns(UserWarning, match=told):
                open_source(place, progress=False)
    for i in range(2):
        (folder / "cat" / f"{i}.png").unlink()
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    write_tar(tmp_path / "p.tar", [("a.heic", b""), ("b.HEIC", b""), ("c.cr2", b"")])
    for place in (folder, tmp_path / "photos.zip", f"file://{folder}", tmp_path / "p.tar", f"hf:{folder}"):
        with pytest.raises(
            UserError, match=r"holds no images that are read .* 3 \(2 \.heic, 1 \.cr2\)\); convert them"
        ):
            quiet(place)


def test_archives_within_and_empty_classes_are_told(folder: Path, tmp_path: Path) -> None:
    inner = r"archives within it are not looked into: 1 \(1 \.zip\); unpack them"
    (folder / "cat" / "more.zip").write_bytes(b"x")
    (folder / "dog").mkdir()
    (folder / "self").symlink_to(".", target_is_directory=True)
    with pytest.warns(UserWarning, match=inner) as caught:
        assert open_source(folder, progress=False).class_names == ["ant", "cat"]
    assert "folders without a usable image are no classes: dog; fill or remove them" in str(caught[1].message)
    (folder / "self").unlink()
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    with pytest.warns(UserWarning, match=inner):
        open_source(tmp_path / "photos.zip", progress=False)
    shutil.rmtree(folder / "ant")
    for file in folder.rglob("*.png"):
        file.unlink()
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    for place in (folder, tmp_path / "photos.zip"):
        with pytest.raises(UserError, match=rf"holds no images that are read \({inner[:-13]}\); unpack them"):
            quiet(place)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("train/cat/0.png val/cat/0.png test/0.png", "train test val"),
        ("images/train2017/0.png images/val2017/0.png", "images/train2017 images/val2017"),
        ("train/cat/0.png Test/cat/0.png sheet.png", "train Test"),
        ("train/cat/0.png train/dog/0.png", "train"),
        ("cat/train/0.png cat/0.png", ""),
        ("train/0.png car/0.png", ""),
        ("freight_train/0.png blood_test/0.png", ""),
        ("cat/0.png", ""),
        ("0.png", ""),
    ],
)
def test_folders_of_splits_are_no_classes(paths: str, found: str, tmp_path: Path) -> None:
    assert split_folders(paths.split()) == found.split()
    for i, path in enumerate(paths.split()):
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(picture(i))
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    write_tar(tmp_path / "set.tar", [(path, picture(i)) for i, path in enumerate(paths.split())])
    names = [name.rpartition("/")[2] for name in found.split()]
    for place in (tmp_path / "set", tmp_path / "set.zip", tmp_path / "set.tar"):
        if len(names) > 1:
            with pytest.raises(UserError, match=rf"several sets \(.*{', .*'.join(names)}\); .*give one of them"):
                quiet(place)
    if found == "train":
        whole, one = quiet(tmp_path / "set"), quiet(tmp_path / "set" / "train")
        assert whole.fingerprint == one.fingerprint == quiet(tmp_path / "set.zip").fingerprint
        assert whole.class_names == one.class_names == quiet(tmp_path / "set.zip").class_names == ["cat", "dog"]
        assert whole.image(1).size == (16, 16)


def test_dark_files_of_sixteen_bits_are_told(tmp_path: Path) -> None:
    def write_bits(name: str, bits: int, kind: type = np.uint16) -> Path:
        (tmp_path / name).mkdir()
        for i in range(4):
            values = np.random.default_rng(i).integers(0, 1 << bits, (16, 16)).astype(kind)
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")
        return tmp_path / name

    for name, bits in (("10", 10), ("12", 12), ("14", 14)):
        folder = write_bits(name, bits)
        for _ in range(2):
            with pytest.warns(UserWarning, match=r"4 of 4 images are nearly black .* multiply these by 4, 16 or 64"):
                open_source(folder, progress=False)
    quiet(write_bits("16", 16))
    quiet(write_bits("6 of 8", 6, np.uint8))
    with pytest.warns(UserWarning, match="nearly black"):
        open_source(write_bits("4 of 8", 4, np.uint8), progress=False)
