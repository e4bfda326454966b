"""Parquet in place: every way in which a writer may lay out a column gives the bytes that pyarrow reads."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.data import pages
from rcg.data.blobs import LocalBlob
from rcg.data.decode import DecodeError
from rcg.data.packed import NO_BYTES
from rcg.data.pages import Damaged, PageMemory, _Thrift, hybrid
from rcg.data.sources import open_source
from rcg.data.tables import COPIED, Columns, TableFormat
from tests.data.shards import picture

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(count: int = 90) -> list[Any]:
    """Noise of many lengths; every 7th row is empty in one of two ways, some values occur twice."""
    rng = np.random.default_rng(1)
    found: list[Any] = [{"bytes": rng.bytes(int(n)), "path": "x"} for n in rng.integers(0, 3000, count)]
    found[11], found[50] = found[10], found[10]
    for i in range(3, count, 7):
        found[i] = None if i % 2 else {"bytes": None, "path": "y"}
    return found


def read_back(path: Path) -> tuple[list[bytes | None], np.ndarray]:
    """What the format finds in a file."""
    blob, format = LocalBlob(path), TableFormat(Columns(), parquet=True)
    contents = list(format.contents(blob, 3))
    places = np.concatenate([content.places for content in contents])
    assert [n for c in contents for n in c.names] == [f"{path.name}/{i}" for i in range(len(places))]
    assert set(places["file"].tolist()) == {3}
    return [None if place["size"] < 0 else format.read(blob, place) for place in places], places


CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


@pytest.mark.parametrize(
    ("codec", "version", "dictionary"), list(itertools.product(CODECS, ["1.0", "2.0"], [True, False]))
)
def test_every_layout(
    tmp_path: Path, codec: str, version: str, dictionary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcg.data.tables.ROWS_AT_ONCE", 30)  # several parts
    table = pa.table({"image": pa.array(rows(), KIND), "label": [i % 3 for i in range(90)]})
    parquet.write_table(table, tmp_path / "t.parquet", compression=codec, data_page_version=version, row_group_size=40,
                        use_dictionary=dictionary, data_page_size=5000, dictionary_pagesize_limit=9000)  # fmt: skip
    found, places = read_back(tmp_path / "t.parquet")
    assert found == [row and row["bytes"] for row in rows()]
    there = places["size"] >= 0
    assert set(places["size"][~there].tolist()) == {NO_BYTES}
    if codec == "none" or version == "1.0":  # version 2 leaves noise as it is
        assert bool(places["packed"][there].any()) == (codec != "none")


def test_a_plain_column_without_empty_rows(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    some = [row["bytes"] for row in rows() if row and row["bytes"] is not None]
    parquet.write_table(pa.table({"image": some}, schema), tmp_path / "t.parquet", data_page_size=4000)
    assert read_back(tmp_path / "t.parquet")[0] == some


@pytest.mark.parametrize("options", [{"column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}, {"column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}, "use_dictionary": False}])  # fmt: skip
def test_rare_encodings_are_copied_once(tmp_path: Path, options: Any, user_cache: Path) -> None:
    parquet.write_table(pa.table({"image": pa.array(rows(), KIND)}), tmp_path / "t.parquet", **options)
    found, places = read_back(tmp_path / "t.parquet")
    assert found == [row and row["bytes"] for row in rows()]
    assert set(places["packed"].tolist()) == {COPIED}
    assert len(list((user_cache / "tables").glob("*.arrow"))) == 1


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_damage_is_named_and_skipped(tmp_path: Path, codec: str) -> None:
    some = [{"bytes": picture(i), "path": "x"} for i in range(40)]
    some[7]["bytes"] = some[7]["bytes"][:99]
    place = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": pa.array(some, KIND)}), place, compression=codec, row_group_size=20,
                        data_page_size=3000, use_dictionary=False, write_statistics=False)  # fmt: skip
    chunk = parquet.ParquetFile(place).metadata.row_group(1).column(0)
    data = bytearray(place.read_bytes())
    for i in range(150, 210):
        data[chunk.data_page_offset + i] ^= 255
    place.write_bytes(data)
    with pytest.warns(UserWarning, match=r"of 40 images .* are skipped: t\.parquet/7 \(.*t\.parquet/20 \("):
        source = open_source(place)
    assert 30 <= len(source) < 39
    assert np.asarray(source.image(0)).shape == (16, 16, 3)
    data[chunk.data_page_offset : chunk.data_page_offset + 30] = b"\xff" * 30
    place.write_bytes(data)
    with pytest.warns(UserWarning, match=r"21 of 40 images .*t\.parquet/20 \(its page is damaged\)"):
        assert len(open_source(place)) == 19


def test_any_damage_is_one_sentence(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """400 files with some bytes changed: fewer images, or a `UserError`."""
    some = [{"bytes": picture(i), "path": "x"} for i in range(6)]
    good = tmp_path / "good.parquet"
    parquet.write_table(pa.table({"image": pa.array(some, KIND), "label": list("abcabc")}), good, data_page_size=900)
    whole = good.read_bytes()
    rng = np.random.default_rng(0)
    place = tmp_path / "t.parquet"
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            data[at] = rng.integers(256)
        place.write_bytes(data[: rng.integers(20, len(data))] if rng.random() < 0.2 else data)
        try:
            read_back(place)
        except UserError:
            refused += 1
        except DecodeError:
            pass
    assert 0 < refused < 400


def test_a_known_table_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it needs no pyarrow, as its index is remembered; unpacking its pages does."""
    some = [{"bytes": picture(i), "path": "x"} for i in range(3)]
    parquet.write_table(pa.table({"image": pa.array(some, KIND)}), tmp_path / "t.parquet", compression="zstd")
    open_source(tmp_path / "t.parquet", progress=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    again = open_source(tmp_path / "t.parquet", progress=False)
    with pytest.raises(UserError, match=r"missing; run: pip install pyarrow\.$"):
        again.image(0)


def test_runs_and_groups() -> None:
    assert hybrid(bytes([6, 5, 3, 0b10001000, 0b11000110, 0b11111010]), 3, 11).tolist() == [
        5,
        5,
        5,
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    assert hybrid(b"", 3, 0).tolist() == []
    assert hybrid(bytes([200, 1]), 0, 4).tolist() == [0] * 4
    assert hybrid(b"\x03", 0, 1).tolist() == [0]  # as other writers put down the one value of a dictionary
    for data, width in ((b"", 1), (b"\x03", 1), (b"\x00\x00", 1), (b"\xff" * 12, 4), (b"\x02\x00", 99)):
        with pytest.raises(Damaged):
            hybrid(data, width, 5)


def test_a_header_of_lists_without_end() -> None:
    with pytest.raises(Damaged):
        _Thrift(b"\x19" * 5000).struct()


def test_a_page_that_is_let_go_has_been_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a page's unpacking and its being counted, another thread may make room."""
    (tmp_path / "x").write_bytes(bytes(100))
    memory, blob = PageMemory(30), LocalBlob(tmp_path / "x")
    held = list[int]()

    class Page(pages._Page):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "data" and value is not None and not memory._lock.locked() and not held:
                held.append(1)
                for i in range(10, 60, 10):
                    memory.get(blob, i, 10, 10, 0)

    monkeypatch.setattr(pages, "_Page", Page)
    memory.get(blob, 0, 10, 10, 0)
    assert memory._held == sum(len(page.data or b"") for page in memory._pages.values())


def test_pages_are_kept_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    memory, blob = PageMemory(30), LocalBlob(tmp_path / "x")
    for i in range(0, 100, 10):
        assert memory.get(blob, i, 10, 10, 0) == bytes(range(i, i + 10))
    assert len(memory._pages) == 3
    assert memory._held == 30
    with pytest.raises(DecodeError, match="its page is damaged"):
        memory.get(blob, 5, 3, 4, 0)
