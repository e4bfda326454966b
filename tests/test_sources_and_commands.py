"""Every command takes every kind of source, and finds the same images in it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from rcg.data.sources import open_source
from tests.components import get_dummy_components
from tests.data.shards import picture, write_tar

COUNT = 14
BAD = 5
KINDS = ("folder", "shards", "zip", "arrow", "parquet", "repository", "memory-folder", "memory-shards", "memory-zip", "memory-parquet")  # fmt: skip
CLASSES = ("cat", "dog")
RUN = [
    "--device",
    "cpu",
    "--steps",
    "1",
    "--batch-size",
    "8",
    "--log-every",
    "1",
    "--save-every",
    "9",
    "--eval-every",
    "9",
]
STAGES = {
    "train_encoder": [
        "--image-size", "16", "--width", "32", "--depth", "1", "--heads", "2", "--patch-size", "4", "--representation-dim", "16",
        "--head-hidden-dim", "32", "--eval-samples", "8",
    ],
    "train_tokenizer": [
        "--image-size", "16", "--base-channels", "8", "--num-codes", "32", "--code-dim", "8", "--held-out", "1",
    ],
}  # fmt: skip


def data(i: int) -> bytes:
    """Image number `i`; one of them is cut off."""
    return picture(i)[: 99 if i == BAD else None]


def name(i: int) -> str:
    """In a folder, so that the order is that of the numbers: the cats, then the dogs."""
    return f"{CLASSES[i >= COUNT // 2]}/{i:02d}.png"


def write_tables(place: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": data(i), "path": name(i)} for i in range(COUNT)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    table = pa.table({"image": rows, "label": [int(i >= COUNT // 2) for i in range(COUNT)]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (place / "repository" / "data").mkdir(parents=True)
    parquet.write_table(table, place / "all.parquet", row_group_size=5)
    for number, start in enumerate((0, 8)):
        parquet.write_table(table.slice(start, 8), place / f"repository/data/train-0000{number}-of-00002.parquet")
    parquet.write_table(table.slice(0, 2), place / "repository/data/test-00000-of-00001.parquet")
    with pa.ipc.new_stream(str(place / "all.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The images in every form, and an encoder."""
    place = tmp_path_factory.mktemp("sources")
    (place / "shards").mkdir()
    members: list[tuple[str, bytes]] = []
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for i in range(COUNT):
            (place / "folder" / name(i)).parent.mkdir(parents=True, exist_ok=True)
            (place / "folder" / name(i)).write_bytes(data(i))
            archive.writestr(name(i), data(i))
            members += [(f"{i:02d}.png", data(i)), (f"{i:02d}.cls", CLASSES[i >= COUNT // 2].encode())]
    (place / "all.zip").write_bytes(packed.getvalue())
    write_tar(place / "shards" / "0.tar", members[:16])
    write_tar(place / "shards" / "1.tar", members[16:])
    with suppress(pytest.skip.Exception):
        write_tables(place)
    files = fsspec.filesystem("memory")
    files.store.clear()
    for file in place.rglob("*"):
        if file.is_file():
            files.pipe_file(f"/all/{file.relative_to(place)}", file.read_bytes())
    get_dummy_components()["encoder"].save_pretrained(place / "encoder")
    yield place
    files.store.clear()


def spec_of(place: Path, kind: str) -> str:
    if any(word in kind for word in ("arrow", "parquet", "repository")):
        pytest.importorskip("pyarrow")
    where, _, rest = kind.rpartition("-")
    inside = {"zip": "all.zip", "arrow": "all.arrow", "parquet": "all.parquet"}.get(rest, rest)
    if kind == "repository":
        return f"hf:{place}/repository:train"
    return f"memory://all/{inside}" if where else str(place / inside)


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "user-cache"))
    monkeypatch.setenv("RCG_OFFLINE", "1")


def call(command: str, *arguments: str | Path) -> None:
    import_module(f"rcg.scripts.{command}").main([str(a) for a in arguments])


SKIPPED = r"1 of 14 images in .* are skipped: \S*(cat/05\.png|05\.png|/5) \(image file is truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_and_what_is_broken_is_named(place: Path, kind: str) -> None:
    with pytest.warns(UserWarning, match=SKIPPED):
        source = open_source(spec_of(place, kind))
    assert source.class_names == list(CLASSES)
    assert source.labels is not None
    good = [i for i in range(COUNT) if i != BAD]
    assert source.labels.tolist() == [int(i >= COUNT // 2) for i in good]
    with pytest.warns(UserWarning, match="skipped"):
        folder = open_source(place / "folder")
    for i in range(len(good)):
        assert np.array_equal(np.asarray(source.image(i)), np.asarray(folder.image(i)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:1 of 14")
def test_caches_and_evaluation(place: Path, kind: str, tmp_path: Path) -> None:
    """The cache holds what that of the folder holds, and the set is as far from itself as the folder is: not at all."""
    made: dict[str, np.ndarray] = {}
    for one in ("folder", kind):
        call("cache", "--data", spec_of(place, one), "--out", tmp_path / one, "--image-size", "16", "--encoder",
             place / "encoder", "--device", "cpu")  # fmt: skip
        (file,) = (tmp_path / one).glob("shard-*/representations.npy")
        made[one] = np.load(file)
    assert np.array_equal(made["folder"], made[kind])
    figures: dict[str, Any] = {}
    for side, sets in {"generated": (kind, "folder"), "reference": ("folder", kind)}.items():
        out = tmp_path / f"{side}.json"
        call("eval", "--generated", spec_of(place, sets[0]), "--reference", spec_of(place, sets[1]), "--metrics", "fid",
             "--extractor", f"encoder:{place / 'encoder'}", "--device", "cpu", "--out", out)  # fmt: skip
        figures |= json.loads(out.read_text())["metrics"]
    assert all(abs(value) < 1e-3 for value in figures.values() if value is not None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["train_encoder", "train_tokenizer"])
@pytest.mark.filterwarnings("ignore:1 of 14")
def test_training(place: Path, kind: str, stage: str, tmp_path: Path) -> None:
    flags = STAGES[stage]
    call(stage, "--data", spec_of(place, kind), "--out", tmp_path / "out", *flags, *RUN)
    assert list((tmp_path / "out").glob("*.safetensors"))
