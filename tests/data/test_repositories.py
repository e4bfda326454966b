"""Data sets as the Hub lays them out: which files are a split, from a folder, the Hub (a store in memory) and an address."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rcg.core.errors import UserError
from rcg.data import places
from rcg.data.blobs import _store
from rcg.data.repositories import Asked, choose, parse
from rcg.data.sources import open_source
from tests.data.shards import picture, write_shards, write_tar

FEATURES = {"img": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["zebra", "ape"]}}


class Hub(MemoryFileSystem):
    """What `huggingface_hub` gives for `hf://`, in memory, with its kind of listing."""

    protocol = "hf"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    asked: list[tuple[str, int | None, int | None]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return "/" + str(path).removeprefix("hf://").strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        self.asked.append((path, start, end))
        return super().cat_file(path, start=start, end=end, **more)

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        return _as_hub(super().info(path, **more))

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        found = super().ls(path, detail=True, **more)
        return [_as_hub(one) for one in found] if detail else [one["name"].lstrip("/") for one in found]


def _as_hub(info: dict[str, Any]) -> dict[str, Any]:
    name = str(info["name"]).lstrip("/")
    return {"name": name, "size": info["size"], "type": info["type"], "blob_id": f"of {name} {info['size']}"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    fsspec.register_implementation("hf", Hub, clobber=True)
    Hub.store.clear()
    Hub.asked.clear()
    Hub.pseudo_dirs[:] = [""]
    _store.cache_clear()
    yield fsspec.filesystem("hf")
    Hub.store.clear()
    fsspec.register_implementation("hf", "huggingface_hub.HfFileSystem", clobber=True)


def upload(hub: Hub, folder: Path, repository: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            hub.pipe_file(f"/datasets/{repository}/{file.relative_to(folder)}", file.read_bytes())


def table_bytes(start: int, count: int, described: bool = True) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": picture(start + i), "path": f"{i}.png"} for i in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"img": pa.array(rows, kind), "kind": [i % 2 for i in range(count)], "thumb": pa.array(rows, kind)}
    )
    if described:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=3)
    return out.getvalue()


def write_repository(folder: Path, readme: str = "", described: bool = True) -> Path:
    (folder / "data").mkdir(parents=True)
    for i in range(2):
        (folder / "data" / f"train-0000{i}-of-00002.parquet").write_bytes(table_bytes(5 * i, 5, described))
    (folder / "data" / "test-00000-of-00001.parquet").write_bytes(table_bytes(90, 4, described))
    (folder / "README.md").write_text(f"---\n{readme}\n---\n# A set" if readme else "# A set")
    (folder / ".gitattributes").write_text("x")
    return folder


def test_a_repository_of_parquet(tmp_path: Path, hub: Hub) -> None:
    folder = write_repository(tmp_path / "birds")
    upload(hub, folder, "me/birds")
    sources = [
        open_source(spec)
        for spec in (
            f"hf:{folder}:train", f"hf:{folder}:train:img", "hf:me/birds:train", "hf:me/birds:training:img",
            "hf:me/birds:train:image=img,label=kind", f"{folder}/data/train-*", "hf://datasets/me/birds/data/train-*",
        )
    ]  # fmt: skip
    for source in sources:
        assert len(source) == 10
        assert source.class_names == ["zebra", "ape"]
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 0, 1, 0] * 2
        for i in (0, 4, 9):
            assert np.array_equal(np.asarray(source.image(i)), np.asarray(sources[0].image(i)))
    assert len({source.fingerprint for source in sources[:5]}) == 1
    assert len(open_source("hf:me/birds:test")) == 4
    assert sources[2].name == "birds:train"
    for spec in (f"hf:{folder}", "hf:me/birds", "hf://datasets/me/birds", str(folder)):
        with pytest.raises(UserError, match=r"several (splits|sets) .test, train.; give one"):
            open_source(spec)
    with pytest.raises(UserError, match=r"hf:me/birds has no split 'dev'; it has test, train"):
        open_source("hf:me/birds:dev")
    with pytest.raises(UserError, match="no column 'imgs'; it has img, kind, thumb"):
        open_source("hf:me/birds:train:imgs")
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(table_bytes(0, 3))
    assert len(open_source(folder)) == 3  # a clone, named without hf:


def test_opening_again_reads_one_page_an_image(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, write_repository(tmp_path / "birds"), "me/birds")
    open_source("hf:me/birds:train")
    Hub.asked.clear()
    monkeypatch.setattr(Hub, "open", None)
    source = open_source("hf:me/birds:train")
    assert [path for path, *_ in Hub.asked if path.endswith("parquet")] == []
    source.image(7)
    ((_, start, end),) = Hub.asked[-1:]
    assert start is not None
    assert end is not None
    assert end - start < 4000
    assert len([path for path, *_ in Hub.asked if path.endswith("parquet")]) == 1


def test_the_first_look_takes_few_requests(tmp_path: Path, hub: Hub) -> None:
    write_shards(tmp_path / "s", [f"word {i}" for i in range(300)], per_shard=300)
    upload(hub, tmp_path / "s", "me/shards")
    assert len(open_source("hf:me/shards")) == 900
    assert len(Hub.asked) < 60


README = """
configs:
- config_name: small
  data_files:
  - split: train
    path: data/train-00000-*
  - split: held_out
    path: ["data/test-*.parquet"]
- config_name: all
  default: true
  data_files: {train: "**/*.parquet"}
dataset_info:
- config_name: small
  features:
  - {name: img, dtype: image}
  - name: kind
    dtype:
      class_label:
        names: {'0': horse, '1': gibbon}
"""


def test_the_header_of_a_readme(tmp_path: Path, hub: Hub) -> None:
    folder = write_repository(tmp_path / "birds", README, described=False)
    upload(hub, folder, "me/birds")
    for place in (f"hf:{folder}", "hf:me/birds"):
        source = open_source(f"{place}/small:train:img")
        assert len(source) == 5
        assert open_source(f"{place}/small:held_out:image=img,label=kind").class_names == ["horse", "gibbon"]
        assert len(open_source(f"{place}::".rstrip(":") + ":train:img")) == 14
        with pytest.raises(UserError, match=r"no configuration 'large'; there are small, all"):
            open_source(f"{place}/large")
    (folder / "README.md").write_text("---\n{a: [\n---\n")
    with pytest.raises(UserError, match=r"header of README\.md .* is no valid YAML"):
        open_source(f"hf:{folder}")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: 'data/[z-a]*'\n---\n")
    with pytest.raises(UserError, match=r"a pattern in the `configs` of its README\.md is damaged"):
        open_source(f"hf:{folder}")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: gone/*\n---\n")
    with pytest.raises(UserError, match="look at its `configs`"):
        open_source(f"hf:{folder}")


def test_image_folders(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "pets"
    for split in ("train", "val"):
        for i in range(6):
            place = folder / split / ["cat", "dog"][i % 2] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture(i))
    (folder / "train" / "cat" / "bad.jpg").write_bytes(b"no image")
    upload(hub, folder, "me/pets")
    with pytest.warns(UserWarning, match=r"1 of 7 images in .* are skipped: cat/bad\.jpg \(not an image\)"):
        here = open_source(f"hf:{folder}:train")
    with pytest.warns(UserWarning, match=r"1 of 7 images in .* are skipped: cat/bad\.jpg \(not an image\)"):
        there = open_source("hf:me/pets:train")
    with pytest.warns(UserWarning, match="skipped"):
        plain = open_source(folder / "train")
    address = open_source("hf://datasets/me/pets/val")
    assert here.fingerprint == there.fingerprint == plain.fingerprint
    assert here.class_names == there.class_names == address.class_names == ["cat", "dog"]
    assert len(address) == len(open_source("hf:me/pets:validation")) == 6
    assert np.array_equal(np.asarray(there.image(2)), np.asarray(plain.image(2)))
    Hub.asked.clear()
    with pytest.warns(UserWarning, match="skipped"):
        open_source("hf:me/pets:train")
    assert Hub.asked == []  # size and version are those of the listing
    hub.rm_file("/datasets/me/pets/train/cat/0.png")
    with pytest.raises(UserError, match=r"me/pets/train/cat/0\.png could be read .* but cannot be now"):
        there.image(0)


def test_splits_and_configurations_of_single_images(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "pets"
    for number, name in enumerate(["cats/tabby/1.png", "cats/grey/2.png", "dogs/pug/3.png", "cats/grey/2.txt"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number) if name.endswith("png") else b"one")
    upload(hub, folder, "me/pets")
    cats = open_source("hf:me/pets/cats")
    assert (len(cats), cats.class_names) == (2, ["grey", "tabby"])
    assert cats.fingerprint == open_source(folder / "cats").fingerprint
    said = "configs:\n- config_name: x\n  data_files: {train: '*/*/[13].png', test: '*/grey/*'}\n"
    (folder / "README.md").write_text(f"---\n{said}---\n")
    upload(hub, folder, "me/said")
    for place in (f"hf:{folder}", "hf:me/said"):
        assert [len(open_source(f"{place}:{split}")) for split in ("train", "test")] == [2, 1]
        assert open_source(f"{place}:train").class_names == ["cats", "dogs"]


def test_a_repository_is_known_whatever_comes_first_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = write_repository(tmp_path / "birds")
    (repository / "data" / "README.md").touch()
    photos = tmp_path / "photos"
    for name in ("a/0.png", "b/1.png", "b/left-over.tar", "c/metadata.parquet"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(picture(0) if name.endswith("png") else b"x")
    scan = os.scandir
    for backwards in (False, True):

        @contextmanager
        def ordered(folder: Any, backwards: bool = backwards) -> Iterator[Any]:
            with scan(folder) as entries:
                yield iter(sorted(entries, key=lambda e: e.name, reverse=backwards))

        monkeypatch.setattr(os, "scandir", ordered)
        assert places._is_repository(repository)
        assert not places._is_repository(photos)


def test_captions_beside_remote_images(hub: Hub) -> None:
    for name, data in {"a.0.png": picture(0), "a.1.png": picture(1), "b.0.png": picture(2), "a.json": b'{"caption": "one"}',
                       "b.txt": b"two"}.items():  # fmt: skip
        hub.pipe_file(f"/datasets/me/some/{name}", data)
    groups = open_source("hf://datasets/me/some").groups()
    assert groups is not None
    assert groups.captions == ["one", "two"]
    hub.pipe_file("/datasets/me/some/a.json", b"{")
    with pytest.raises(UserError, match=r"hf://datasets/me/some/a\.json is no valid JSON"):
        open_source("hf://datasets/me/some").groups()


def test_archives_and_shards(tmp_path: Path, hub: Hub) -> None:
    write_shards(tmp_path / "w", ["a cat", "a dog", "a cow", "a pig", "a hen"], classes=True)
    upload(hub, tmp_path / "w", "me/w")
    assert open_source("hf:me/w").fingerprint == open_source(tmp_path / "w").fingerprint
    (tmp_path / "z").mkdir()
    for split in ("train", "test"):
        with zipfile.ZipFile(tmp_path / "z" / f"{split}.zip", "w") as archive:
            archive.writestr("cat/0.png", picture(0))
            archive.writestr("dog/1.png", picture(1))
    assert open_source(f"hf:{tmp_path}/z:test").class_names == ["cat", "dog"]


ASKED = Asked("hf://datasets/a/b", None, None, None, "hf:a/b")


def chosen(*paths: str, readme: str = "", **asked: Any) -> list[str]:
    return choose(Asked(**{**ASKED.__dict__, **asked}), paths, readme.encode()).paths


def test_what_is_advised_works_as_it_stands(tmp_path: Path, hub: Hub) -> None:
    places = dict[str, Path]()
    for name, pattern in (("plain", "{}-{}.tar"), ("folders", "{}/{}.tar"), ("deep", "data/{}-{}.tar")):
        for split in ("train", "val"):
            for i in range(2):
                path = tmp_path / name / "set" / pattern.format(split, i)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tar(path, [(f"{i}.png", picture(i + 7 * (split == "val")))])
        upload(hub, tmp_path / name / "set", f"me/{name}")
        places |= {f"{tmp_path}/{name}/set": tmp_path, f"file://{tmp_path}/{name}/set": tmp_path}
        places |= {
            f"hf:{tmp_path}/{name}/set": tmp_path,
            f"hf://datasets/me/{name}": tmp_path,
            f"hf:me/{name}": tmp_path,
        }
    for place in places:
        with pytest.raises(UserError, match="such as '") as caught:
            open_source(place)
        (advised,) = re.findall("such as '(.*)'", str(caught.value))
        assert len(open_source(advised, progress=False)) == 2, (place, advised)


def test_which_files_are_a_split() -> None:
    assert chosen("x.parquet", "y.parquet", "readme.txt") == ["x.parquet", "y.parquet"]
    assert chosen("train.parquet", "dev.parquet", split="validation") == ["dev.parquet"]
    assert chosen("my-train-set/1.tar", "test/1.tar", split="train") == ["my-train-set/1.tar"]
    assert chosen("data/odd-00000-of-00001-ab1.parquet", "data/train-00000-of-00001.parquet", split="odd") == [
        "data/odd-00000-of-00001-ab1.parquet"
    ]
    assert chosen("contest/1.png", "trainer/2.png") == ["contest/1.png", "trainer/2.png"]
    assert chosen("a/train/0.parquet", "b/train/0.parquet", config="b") == ["b/train/0.parquet"]
    assert chosen("data/b/train.parquet", "data/a/train.parquet", config="b") == ["data/b/train.parquet"]
    converted = {"place": "hf://datasets/a/b@~parquet", "spec": "hf:a/b@~parquet"}
    assert chosen("x/odd/0.parquet", "x/train/0.parquet", split="odd", **converted) == ["x/odd/0.parquet"]
    with pytest.raises(UserError, match=r"several configurations .x, y.; give one, such as 'hf:a/b@~parquet/x'"):
        chosen("x/train/0.parquet", "y/train/0.parquet", **converted)
    with pytest.raises(UserError, match=r"holds no Parquet.*a\.json.*copy in Parquet, called OWNER/NAME@~parquet"):
        chosen("a.json")
    with pytest.raises(UserError, match="no configuration and no folder with images called 'z'"):
        chosen("x/0.parquet", config="z")
    with pytest.raises(UserError, match="the images of train lie in several folders"):
        chosen("train/0.png", "train-2/1.png")
    with pytest.raises(UserError, match=r"several configurations .u, v"):
        chosen(
            "x.parquet", readme="---\nconfigs:\n- {config_name: u, data_dir: x}\n- {config_name: v, data_dir: y}\n---\n"
        )


@pytest.mark.parametrize("said", ["null", "[a, b]", "{names: null}"])
def test_classes_that_a_readme_does_not_name(said: str) -> None:
    readme = f"---\ndataset_info:\n  features:\n  - {{name: kind, dtype: {{class_label: {said}}}}}\n---\n"
    assert choose(ASKED, ["x.parquet"], readme.encode()).class_names == {}


def test_what_is_asked(tmp_path: Path) -> None:
    assert parse("photos") is None
    assert parse("hf://datasets/a/b") is None
    assert parse("hf:mnist") == Asked("hf://datasets/mnist", None, None, None, "hf:mnist")
    found = parse("hf:a/b@v1/c/d:train:img")
    assert found == Asked("hf://datasets/a/b@v1", "c/d", "train", "img", "hf:a/b@v1/c/d")
    for spec, message in (
        ("hf:", "is not of the form"), ("hf:a/b:", "is not of the form"), ("hf:a:b:c:d", "is not of the form"),
        ("hf:./nothing", "there is no folder './nothing'"), ("hf:a b/c", "neither a folder nor"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            parse(spec)


def test_what_is_not_there(hub: Hub) -> None:
    with pytest.raises(UserError, match="there is nothing at hf://datasets/me/nothing"):
        open_source("hf:me/nothing:train")
