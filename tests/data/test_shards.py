"""WebDataset shards and folders of grouped images: what is read, what is refused, what a batch holds."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data.decode import decode
from rcg.data.groups import GroupedDataset
from rcg.data.images import ImageDataset
from rcg.data.sources import open_source
from tests.data.shards import picture, write_shards, write_tar

CAPTIONS = ["a red ship", "a dog", "a red ship", "a cat", "an owl"]


def test_images_groups_and_captions(tmp_path: Path) -> None:
    source = open_source(write_shards(tmp_path / "s", CAPTIONS))
    assert len(source) == 15
    assert np.array_equal(np.asarray(source.image(4)), np.asarray(decode(picture(101))))
    groups = source.groups()
    assert groups is not None
    assert groups.numbers.tolist() == [i // 3 for i in range(15)]
    assert groups.captions == CAPTIONS
    same = groups.identities()
    assert same[0] == same[2]
    assert len(set(same.tolist())) == 4
    assert source.labels is None
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.image(7)), np.asarray(source.image(7)))
    assert open_source(tmp_path / "s").fingerprint == source.fingerprint


def test_one_shard_and_its_classes(tmp_path: Path) -> None:
    write_shards(tmp_path, CAPTIONS, classes=True)
    source = open_source(tmp_path / "000000.tar")
    assert source.class_names == ["cat", "dog", "ship"]
    assert source.labels is not None
    assert source.labels.tolist() == [2] * 3 + [1] * 3 + [2] * 3 + [0] * 3


def test_a_folder_whose_files_share_a_stem(tmp_path: Path) -> None:
    for name in ("a.0", "a.1", "b.0", "alone"):
        (tmp_path / f"{name}.png").write_bytes(picture(len(name)))
    (tmp_path / "a.json").write_text('{"caption": "one"}')
    (tmp_path / "b.txt").write_text("two\n")
    groups = open_source(tmp_path).groups()
    assert groups is not None
    assert dict(zip(groups.keys, groups.captions, strict=True)) == {"a": "one", "alone": None, "b": "two"}
    assert np.bincount(groups.numbers).tolist() == [2, 1, 1]
    (tmp_path / "a.json").write_text('{"caption": 3}')
    with pytest.raises(UserError, match=r"a\.json: its caption must be text"):
        open_source(tmp_path).groups()


def test_batches_draw_distinct_images_of_each_caption(tmp_path: Path) -> None:
    images = ImageDataset(open_source(write_shards(tmp_path, CAPTIONS)), 16)
    dataset = GroupedDataset(images, 2, caption_bytes=8)
    assert len(dataset) == 5
    indices, seeds = np.array([3, 0, 3]), np.array([5, 2**63 + 1, 9], np.uint64)
    batch = dataset.batch(indices, seeds)
    assert batch["images"].shape == (3, 2, 3, 16, 16)
    assert bytes(batch["captions"][1].tolist()) == b"a red sh"
    assert bytes(batch["captions"][0].tolist()) == b"a cat\0\0\0"
    own = [np.asarray(images.source.image(i)) for i in (9, 10, 11)]
    found = batch["images"].permute(0, 1, 3, 4, 2).numpy()
    chosen = [[next(i for i, o in enumerate(own) if np.array_equal(o, x)) for x in found[row]] for row in (0, 2)]
    assert all(len(set(row)) == 2 for row in chosen)
    alone = dataset.batch(indices[2:], seeds[2:])
    assert all(np.array_equal(alone[k][0], batch[k][2]) for k in batch)
    draws = {
        tuple(dataset.batch(indices[:1], np.array([s], np.uint64))["images"][0, 0, 0, 0].tolist()) for s in range(20)
    }
    assert len(draws) == 3
    more = GroupedDataset(images, 5).batch(indices[:1], seeds[:1])["images"][0]
    assert [bool((more[0] == more[i]).all()) for i in range(5)] == [True, False, False, True, False]


def test_what_cannot_be_grouped_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which images belong together"):
        GroupedDataset(ImageDataset(open_source("shapes:n=8,size=16"), 16), 2)
    write_shards(tmp_path / "one", CAPTIONS, count=1)
    with pytest.raises(UserError, match="more than one image"):
        GroupedDataset(ImageDataset(open_source(tmp_path / "one"), 16), 2)
    write_tar(tmp_path / "x.tar", [("a.0.png", picture(0)), ("a.1.png", picture(1))])
    with pytest.raises(UserError, match=r"all images of x\.tar belong to one caption"):
        GroupedDataset(ImageDataset(open_source(tmp_path / "x.tar"), 16), 2)
    with pytest.raises(UserError, match=r"1 of 1 groups in x\.tar have no caption"):
        GroupedDataset(ImageDataset(open_source(tmp_path / "x.tar"), 16), 2, caption_bytes=4)


@pytest.mark.parametrize("name", ["/etc/x.0.png", "../x.0.png", "a/../../x.0.png", "a\\..\\x.png"])
def test_members_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "bad.tar", [(name, picture(0))])
    with pytest.raises(UserError, match="unsafe: it has a member that leaves its folder"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("a.0.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"unsafe: 'a.0.png' in it is no plain file"):
        open_source(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 700, 1500, -10000])
def test_torn_shards_are_refused(keep: int, tmp_path: Path) -> None:
    shard = write_shards(tmp_path, CAPTIONS[:2]) / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"000000\.tar is (cut off|no uncompressed tar file or is damaged)"):
        open_source(tmp_path)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", [(f"{i}.png", picture(i)) for i in range(6)])
    with tarfile.open(shard) as tar:
        fourth = tar.getmembers()[3].offset
    data = bytearray(shard.read_bytes())
    data[fourth + 5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        UserError, match=rf"x\.tar is no uncompressed tar file or is damaged \(bad header at byte {fourth}"
    ):
        open_source(shard)


def test_other_faults(tmp_path: Path) -> None:
    def refused(members: list[tuple[str, bytes]], message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_source(write_tar(tmp_path / "x.tar", members))

    refused([("a.0.png", picture(0)), ("a.0.png", picture(1))], "twice")
    refused([("a.json", b"{"), ("a.0.png", picture(0))], r"x\.tar: a\.json is no valid JSON")
    refused([("a.json", b"[]"), ("a.0.png", picture(0))], "must hold a JSON object")
    refused([("a.txt", b"\xff"), ("a.0.png", picture(0))], "no UTF-8 text")
    refused([("a.json", b"{}")], "holds no images")
    refused([("a.0.png", b"nothing")], "none of the 1 images")
    (tmp_path / "x.tar").unlink()
    for name in ("x", "y"):
        write_tar(tmp_path / f"{name}.tar", [("a.0.png", picture(0))])
    with pytest.raises(UserError, match="its positives are split"):
        open_source(tmp_path)


def test_captions_with_half_a_character(tmp_path: Path) -> None:
    said = json.dumps({"caption": "a \ud83d cat"}).encode()
    source = open_source(write_tar(tmp_path / "x.tar", [("a.json", said), ("a.0.png", picture(0))]))
    caption = GroupedDataset(ImageDataset(source, 8), 1, caption_bytes=16).batch(
        np.zeros(1, np.int64), np.zeros(1, np.int64)
    )
    assert bytes(caption["captions"][0].tolist()).rstrip(b"\0") == b"a ? cat"


def test_classes_of_their_own_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{i}.{e}", d) for i in (0, 1) for e, d in (("png", picture(i)), ("cls", b"10\n"))])
    write_tar(tmp_path / "y.tar", [("2.png", picture(2)), ("2.cls", b"9")])
    source = open_source(tmp_path)
    assert source.class_names == ["9", "10"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 1, 0]


def test_broken_images_are_skipped_and_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.0.png", picture(0)), ("a.1.png", picture(1)[:60]), ("b.0.png", b"")])
    with pytest.warns(UserWarning, match=r"2 of 3 images .* x\.tar/a\.1\.png"):
        source = open_source(tmp_path)
    assert len(source) == 1
    assert source.groups().keys == ["a"]  # type: ignore[union-attr]


def test_a_shard_that_changes_afterwards(tmp_path: Path) -> None:
    source = open_source(write_shards(tmp_path, CAPTIONS[:2]))
    with (tmp_path / "000000.tar").open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match="could be read when it was opened"):
        source.image(3)


@pytest.mark.filterwarnings("ignore:.*have no class")
def test_masks_and_images_without_a_class_are_told(tmp_path: Path) -> None:
    members = [(f"{i}.{ending}", picture(i)) for i in range(3) for ending in ("seg.png", "jpg", "png", "0.png")]
    members += [("3.image.png", picture(3)), ("3.depth.png", picture(4)), ("2020 12.30.15.png", picture(5))]
    members += [(f"{i}.cls", b"cat") for i in range(3)]
    write_tar(tmp_path / "a.tar", members)
    for _ in range(2):
        with pytest.warns(UserWarning, match="beside others") as caught:
            source = open_source(tmp_path / "a.tar", progress=False)
        assert source.labels is None
        assert len(source) == 8
        none, beside = (str(one.message) for one in caught)
        assert "2 of 8 images have no class, such as a.tar/3.image.png, so none has a label; give every image" in none
        assert "beside others of their key are left out: 7 (3 .png, 3 .seg.png, 1 .depth.png); name what is" in beside
