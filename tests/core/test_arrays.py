"""numpy's files: arrays or a sentence, without pickles and without memory for what a header merely says."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rcg.core.arrays import load_array, load_arrays
from rcg.core.errors import UserError


@pytest.mark.parametrize("mode", [None, "r", "r+"])
@pytest.mark.parametrize(
    "array", [np.arange(12.0).reshape(3, 4), np.asfortranarray(np.ones((2, 3))), np.zeros((0, 5), np.int8), np.array(7)]
)
def test_reads_what_numpy_writes(mode: str | None, array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    found = load_array(tmp_path / "a.npy", "again", mode=mode)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def _header(text: str) -> bytes:
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


BAD = {
    "empty": b"",
    "cut": _header("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }") + bytes(8),
    "huge": _header("{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000000,), }"),
    "negative": _header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
    "objects": _header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + bytes(8),
    "no dictionary": _header("(1, 2"),
    "other keys": _header("{'x': 1}"),
    "strange type": _header("{'descr': [('a', 3)], 'fortran_order': False, 'shape': (1,), }"),
    "version 3": b"\x93NUMPY\x03\x00" + bytes(50),
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(BAD[name])
    for mode in (None, "r"):
        with pytest.raises(UserError, match=r"a\.npy cannot be read \(.*\); make it again\."):
            load_array(tmp_path / "a.npy", "make it again", mode=mode)  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", BAD[name])
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        load_arrays(tmp_path / "a.npz", "make it again")


def test_another_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match=r"holds float32 \[2, 3\], not float32 \[3\]"):
        load_array(tmp_path / "a.npy", "again", shape=(3,))
    with pytest.raises(UserError, match=r"not int64 \[2, 3\]"):
        load_array(tmp_path / "a.npy", "again", dtype="int64")
    with pytest.raises(UserError, match="No such file"):
        load_array(tmp_path / "b.npy", "again")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(save: object, tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.asfortranarray(np.ones((2, 3))), "c": np.array("text")}
    save(tmp_path / "a.npz", **arrays)  # type: ignore[operator]
    found = load_arrays(tmp_path / "a.npz", "again")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        data = io.BytesIO()
        np.save(data, np.zeros(1000))
        archive.writestr("a.npy", data.getvalue())
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    place = raw.index(b"PK\x01\x02") + 24
    raw[place : place + 4] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(UserError, match="cannot be read"):
        load_arrays(tmp_path / "a.npz", "again")
