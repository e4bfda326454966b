"""Arrow files as Hugging Face `datasets` saves them, and Parquet files."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data.decode import decode
from rcg.data.sources import open_source
from rcg.data.tables import TableFormat
from tests.data.shards import picture

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["zebra", "ape"]}}


def table(count: int = 5, labels: list[Any] | None = None, start: int = 0, features: Any = FEATURES) -> Any:
    rows = [{"bytes": picture(start + i), "path": f"{i}.png"} for i in range(count)]
    columns = {
        "image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array(labels or [i % 2 for i in range(count)]),
    }
    said = None if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(said)


def save_arrow(path: Path, what: Any, rows: int = 2, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, what.schema, **options) as writer:
        writer.write_table(what, max_chunksize=rows)
    return path


def save_folder(folder: Path) -> Path:
    """As `Dataset.save_to_disk` does."""
    save_arrow(folder / "data-00000-of-00002.arrow", table())
    save_arrow(folder / "data-00001-of-00002.arrow", table(3, start=5))
    save_arrow(folder / "cache-0123.arrow", table(1, start=90))
    names = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
    return folder


def same(source: Any, count: int) -> None:
    assert len(source) == count
    for i in range(count):
        assert np.array_equal(np.asarray(source.image(i)), np.asarray(decode(picture(i))))


def test_a_saved_data_set(tmp_path: Path) -> None:
    source = open_source(save_folder(tmp_path / "d"))
    same(source, 8)
    assert source.class_names == ["zebra", "ape"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    assert open_source(tmp_path / "d").fingerprint == source.fingerprint
    same(open_source(tmp_path / "d" / "data-00000-of-00002.arrow"), 5)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(2):
        parquet.write_table(table(4, start=4 * i), folder / f"train-0000{i}-of-00002.parquet", row_group_size=3)
    source = open_source(folder)
    same(source, 8)
    assert source.class_names == ["zebra", "ape"]
    monkeypatch.setattr(parquet, "ParquetFile", None)  # copied once
    assert open_source(folder).fingerprint == source.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "other"))
    parquet.write_table(table(1), folder / "test-00000-of-00001.parquet")
    for place in (folder, f"{folder}/*.parquet"):
        with pytest.raises(UserError, match=rf"several sets \(test, train\); .* such as '{folder}/train-0000\*'\."):
            open_source(place)
    assert len(open_source(f"{folder}/train-*")) == 8


def test_columns_and_labels(tmp_path: Path) -> None:
    plain = pa.table({
        "picture": pa.array([picture(0), picture(1), picture(2)], pa.large_binary()),
        "thumb": pa.array([picture(9)] * 3, pa.binary()),
        "kind": ["b", "a", "b"],
    })  # fmt: skip
    place = save_arrow(tmp_path / "t.arrow", plain)
    with pytest.raises(UserError, match=r"several columns of images \(picture, thumb\)"):
        open_source(place)
    source = open_source(f"{place}:image=picture,label=kind")
    same(source, 3)
    assert source.class_names == ["a", "b"]
    assert open_source(f"{place}:image=picture").labels is None
    for options, message in (
        ("image=nothing", "no column 'nothing'"), ("image=kind", "no column of image files in 'kind'|in 'kind'"),
        ("image=picture,label=thumb", "must be whole numbers or text"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_source(f"{place}:{options}")
    numbers = open_source(save_arrow(tmp_path / "n.arrow", table(3, [10, 9, 10], features=None)))
    assert numbers.class_names == ["9", "10"]
    with pytest.warns(UserWarning, match=r"1 of 3 images have no class, such as u\.arrow/1, so none has a label"):
        assert open_source(save_arrow(tmp_path / "u.arrow", table(3, [0, -1, 1]))).labels is None


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": picture(0), "path": None},
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": b"x", "path": ""},
    ]
    place = save_arrow(tmp_path / "t.arrow", pa.table({"image": pa.array(rows, kind)}), rows=10)
    with pytest.warns(UserWarning, match=r"3 of 4 images .*arrow/1 \(its row holds no bytes\).*arrow/3 \(not an image"):
        assert len(open_source(place)) == 1


def test_bad_tables(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.arrow").write_bytes(b"nothing at all")
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    save_arrow(tmp_path / "d.arrow", table(), options=pa.ipc.IpcWriteOptions(compression="zstd"))
    cut = save_arrow(tmp_path / "e.arrow", table(), rows=9)
    cut.write_bytes(cut.read_bytes()[:900])
    for name, message in (
        ("a.parquet", "no Parquet file or is damaged"),
        ("b.arrow", "no Arrow file or is damaged"),
        ("c.parquet", "no column of image files"),
        ("d.arrow", "compressed"),
        ("e.arrow", "no Arrow file or is damaged"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / name)
    (save_folder(tmp_path / "f") / "state.json").write_text('{"_data_files": [{"filename": "../b.arrow"}]}')
    with pytest.raises(UserError, match="does not name the set's"):
        open_source(tmp_path / "f")
    save_folder(tmp_path / "g" / "train")
    (tmp_path / "g" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=r"several sets \(train\)"):
        open_source(tmp_path / "g")


def test_files_of_which_only_some_name_their_classes(tmp_path: Path) -> None:
    parquet.write_table(table(3), tmp_path / "a.parquet")
    parquet.write_table(table(3, features=None), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"name their classes and others do not \(the label '0'"):
        open_source(tmp_path)


def test_a_folder_that_is_called_like_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()  # as Spark writes
    parquet.write_table(table(3), tmp_path / "x.parquet" / "part-00000.snappy.parquet")
    same(open_source(tmp_path / "x.parquet"), 3)
    same(open_source(tmp_path), 3)


def test_a_full_disk_is_no_damaged_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "t.parquet"
    plain = {"column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}, "use_dictionary": False}
    parquet.write_table(table().select(["image"]), place, **plain)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TableFormat, "_copy", full)
    with (
        pytest.warns(UserWarning, match="cannot be remembered"),
        pytest.raises(OSError, match="No space left") as caught,
    ):
        open_source(place)
    assert not isinstance(caught.value, UserError)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save_arrow(tmp_path / "t.arrow", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install pyarrow"):
        open_source(place)


def test_what_datasets_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ape"])})
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(i), "path": None} for i in range(6)], "label": [i % 2 for i in range(6)]}, features
    )
    made.save_to_disk(str(tmp_path / "d"), num_shards=2)
    made.to_parquet(str(tmp_path / "t.parquet"))
    for place in (tmp_path / "d", tmp_path / "t.parquet"):
        source = open_source(place)
        same(source, 6)
        assert source.class_names == ["zebra", "ape"]
