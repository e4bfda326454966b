"""What files a set comes from is known in folders, archives and tables alike."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcg.data.sources import open_source
from rcg.eval.files import names_of
from rcg.eval.images import ImageSet
from rcg.eval.references import Origin
from rcg.eval.traps import format_notes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))


def encoded(kind: str, size: tuple[int, int] = (10, 9), level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(buffer, kind)
    return buffer.getvalue()


def test_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for i in range(8):
            archive.writestr(f"s/{i}.{'jpg' if i < 3 else 'png'}", encoded("JPEG" if i < 3 else "PNG", level=i))
        archive.writestr("s/sheet.png", encoded("PNG", (32, 29)))  # 3 × 3 pictures, gaps of 1 px
    source = open_source(tmp_path / "p.zip", progress=False)
    images = ImageSet(source, "reference")
    assert images.formats == {"jpg": 3, "png": 5}
    assert [note for note in images.notes if "sheet.png" in note]
    assert (images.count(), images.file_of(2)) == (8, "2.jpg")
    notes = format_notes(Origin(), Origin(formats=images.formats))
    assert notes[0].startswith("3 of the reference's files are JPEG")
    names = names_of(source)
    assert list(names) == [*names[:8], names[-1]]
    assert names[-1] == "sheet.png"
    with pytest.raises(IndexError):
        names[9]


def test_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "000000.tar", "w") as tar:
        for i in range(4):
            data = encoded("JPEG", level=i)
            info = tarfile.TarInfo(f"{i}.jpeg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    images = ImageSet(open_source(str(tmp_path / "000000.tar"), progress=False), "reference")
    assert images.formats == {"jpeg": 4}


def test_a_table_is_looked_into(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": encoded("JPEG" if i % 2 else "PNG", level=i), "path": None} for i in range(50)]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "t.parquet")
    images = ImageSet(open_source(str(tmp_path / "t.parquet"), progress=False), "reference")
    assert images.count() == 50
    assert set(images.formats) == {"jpeg", "png"}
    assert sum(images.formats.values()) == pytest.approx(50, abs=1)
    assert images.formats["jpeg"] == pytest.approx(25, abs=5)


def test_no_files() -> None:
    source = open_source("shapes:n=5,size=16")
    images = ImageSet(source, "reference")
    assert (images.formats, images.file_of(0), len(names_of(source))) == ({}, None, 0)
    assert np.array_equal(images.indices, np.arange(5))
