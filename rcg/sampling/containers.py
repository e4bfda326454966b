"""Files that hold many samples: WebDataset's tar, or Parquet as Hugging Face `datasets` reads it."""

from __future__ import annotations

import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from rcg.core.errors import UserError

ShardKind = Literal["tar", "parquet"]
ROWS = 100
"""Rows of a Parquet file that are held in memory at a time, and in a row group."""


class Container(ABC):
    """A kind of file of named members, whose bytes follow from its members alone.

    Attributes:
        kind: ending of its name.
        broken: what reading a damaged one raises.
    """

    kind: ShardKind
    broken: tuple[type[Exception], ...]

    @abstractmethod
    def write(self, file: Path, members: Iterable[tuple[str, bytes]]) -> None:
        """Write a file of these members, in this order."""

    @abstractmethod
    def names(self, file: Path) -> list[str]:
        """Names of the members, in order."""

    @abstractmethod
    def read(self, file: Path, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of members, in the order of the names."""


class TarContainer(Container):
    """A WebDataset shard."""

    kind = "tar"
    broken = (tarfile.TarError, EOFError)

    def write(self, file: Path, members: Iterable[tuple[str, bytes]]) -> None:
        """See `Container.write`."""
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)  # owner, mode and time are always the same
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def names(self, file: Path) -> list[str]:
        """See `Container.names`."""
        with tarfile.open(file, "r:") as tar:
            return tar.getnames()

    def read(self, file: Path, names: Iterable[str]) -> Iterator[bytes]:
        """See `Container.read`."""
        with tarfile.open(file, "r:") as tar:
            members = {member.name: member for member in tar}  # tarfile itself would look through all for each name
            for name in names:
                if (found := tar.extractfile(members[name])) is not None:
                    yield found.read()


class ParquetContainer(Container):
    """Rows of `image` {bytes, path} and perhaps `label`: a member `KEY.png` with a member `KEY.cls` behind it, its class's number.

    Images are not compressed once more, so that each is a range of the file. With `labels` the column is there.

    Args:
        labels: whether images have classes.
    """

    kind = "parquet"

    def __init__(self, labels: bool = False) -> None:
        try:
            import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
            import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            raise UserError("Parquet needs a package that is missing; run: pip install pyarrow.") from None
        self._pa: Any = pyarrow
        self.broken = (pyarrow.ArrowException, ValueError, LookupError, OSError)
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        columns = [("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))]
        if labels:
            features["label"] = {"dtype": "int64", "_type": "Value"}
            columns.append(("label", pyarrow.int64()))
        said = json.dumps({"info": {"features": features}})
        self.schema = pyarrow.schema(columns, {"huggingface": said})

    def write(self, file: Path, members: Iterable[tuple[str, bytes]]) -> None:
        """See `Container.write`."""
        with self._pa.parquet.ParquetWriter(
            file, self.schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            rows: list[dict[str, Any]] = []
            for name, data in members:
                if name.endswith(".cls"):
                    rows[-1]["label"] = int(data)
                    continue
                if len(rows) == ROWS:
                    writer.write_table(self._pa.Table.from_pylist(rows, self.schema), ROWS)
                    rows = []
                rows.append({"image": {"bytes": data, "path": name}})
            if rows:
                writer.write_table(self._pa.Table.from_pylist(rows, self.schema), ROWS)

    def names(self, file: Path) -> list[str]:
        """See `Container.names`."""
        with self._pa.parquet.ParquetFile(file) as table:
            found = [row["path"] for row in table.read(columns=["image.path"]).column("image").to_pylist()]
        if "label" not in self.schema.names:
            return found
        return [name for path in found for name in (path, f"{path.rpartition('.')[0]}.cls")]

    def read(self, file: Path, names: Iterable[str]) -> Iterator[bytes]:
        """See `Container.read`."""
        wanted = list(names)
        asked, found = set(wanted), dict[str, bytes]()
        with self._pa.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(ROWS):
                for row in batch.to_pylist():
                    path = row["image"]["path"]
                    members = {path: row["image"]["bytes"]}
                    if "label" in row:
                        members[f"{path.rpartition('.')[0]}.cls"] = str(row["label"]).encode()
                    found |= {name: data for name, data in members.items() if name in asked}
                while wanted and wanted[0] in found:
                    yield found.pop(wanted.pop(0))
                if not wanted:
                    return
        if wanted:
            raise KeyError(f"{wanted[0]} is not in it")


def container_of(kind: ShardKind, labels: bool = False) -> Container:
    """The container of a kind; `labels`: whether its images have classes."""
    return TarContainer() if kind == "tar" else ParquetContainer(labels)
