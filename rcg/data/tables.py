"""Tables with a column of images: Arrow files, as Hugging Face `datasets` saves them, and Parquet files.

Of an Arrow file only the places of the images are read; images are read by ranges, as from a shard. Parquet packs its rows;
an image is read with the page that it lies in (`pages.py`), from wherever the file is. Only a column in one of the rarer
encodings (DELTA_LENGTH_BYTE_ARRAY and the like, LZO) is copied once, with the labels, into an Arrow file in the user's cache folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from rcg.core.errors import UserError, first_line
from rcg.core.files import atomic_file
from rcg.data.blobs import Blob, LocalBlob, StoreError
from rcg.data.packed import NO_BYTES, PLACE, Content, Format, bounded
from rcg.data.pages import MEMORY, PageMemory, find_chunks, find_places, require_arrow, together
from rcg.data.verify import user_cache_dir

ROWS = 64
"""Copied at a time."""
ROWS_AT_ONCE = 16_384
"""Looked at together, at most, if a row group does not hold more."""
COPIED = 255
"""As `packed` in a `PLACE`: it is a place in the copy of the file."""
BROKEN = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, StopIteration)
"""What pyarrow, and who looks at what it has read, raise of broken files besides its own errors."""
IMAGES = ("image", "img")
LABELS = ("label", "labels", "class", "cls")
"""Names of columns that are taken where the table does not say what they hold, or says it of several."""


@dataclass(frozen=True)
class Columns:
    """Which columns are meant; None: the table tells."""

    image: str | None = None
    label: str | None = None


@contextmanager
def readable(pa: Any, blob: Blob, problem: str, way_out: str) -> Iterator[None]:
    """Turn what pyarrow raises of a broken file into a `UserError`: name, problem, reason, way out; a full disk stays one.

    Of a file that cannot be read nothing is known: that is another one.
    """
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, *BROKEN) as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if isinstance(e, StoreError | FileNotFoundError | PermissionError) or getattr(e, "errno", None):
            raise UserError(f"{blob.where} cannot be read ({first_line(e)}); run the command again.") from None
        raise UserError(f"{blob.where} {problem} ({first_line(e)}); {way_out}.") from None


def _parquet_file(pa: Any, blob: Blob) -> AbstractContextManager[None]:
    return readable(pa, blob, "is no Parquet file or is damaged", "fetch or make it again")


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote down of the columns; empty where it did not."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _holds_bytes(pa: Any, kind: Any) -> bool:
    """Whether a column may hold image files: bytes, or bytes and path."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(pa, field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def choose(schema: Any, columns: Columns, where: str) -> tuple[str, str | None]:
    """Names of the columns of images and of labels.

    Raises:
        UserError: there is none, or one of several must be chosen.
    """
    pa, features = require_arrow(), features_of(schema)
    for name in (columns.image, columns.label):
        if name is not None and name not in schema.names:
            raise UserError(f"{where} has no column {name!r}; it has {', '.join(schema.names)}.")
    possible = [field.name for field in schema if _holds_bytes(pa, field.type)]
    said = [name for name in possible if features.get(name, {}).get("_type") == "Image"] or possible
    image = columns.image or next((n for n in IMAGES if n in said), said[0] if len(said) == 1 else None)
    if image is None or image not in possible:
        what = f"several columns of images ({', '.join(said)})" if len(said) > 1 else "no column of image files"
        which = f" in {columns.image!r}" if columns.image else ""
        raise UserError(
            f"{where} has {what}{which}; name a column of bytes, or of bytes and path, by FILE:image=COLUMN."
        )
    classes = [
        name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names
    ]
    usual = classes or [name for name in LABELS if name in schema.names]
    label = columns.label or next((n for n in LABELS if n in usual), usual[0] if len(usual) == 1 else None)
    if label is not None:
        kind = schema.field(label).type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
                or pa.types.is_dictionary(kind)):  # fmt: skip
            if columns.label:
                raise UserError(f"{where}: the labels in {label!r} are {kind}, but must be whole numbers or text.")
            label = None
    return image, label


class TableFormat(Format):
    """Arrow files, or Parquet files. Labels exist when every image has one.

    Args:
        columns: which are meant.
        parquet: what the files are.
        class_names: by column, where the table itself does not name its classes.
    """

    kind = "table"

    def __init__(self, columns: Columns, parquet: bool, class_names: Mapping[str, list[str]] | None = None) -> None:
        self.columns, self.parquet, self._told = columns, parquet, dict(class_names or {})
        self._names: list[str] | None = None
        self._pages = PageMemory()

    def identity(self) -> dict[str, Any]:
        """See `Format.identity`."""
        return {"kind": self.kind, **asdict(self.columns), **({"classes": self._told} if self._told else {})}

    def class_names(self) -> list[str] | None:
        """See `Format.class_names`."""
        return self._names

    def contents(self, blob: Blob, number: int) -> Iterator[Content]:
        """See `Format.contents`.

        Raises:
            UserError: also: an Arrow file that is not on this machine.
        """
        if self.parquet:
            yield from self._parquet(blob, number)
        elif isinstance(blob, LocalBlob):
            yield self._arrow(blob, blob.path, number)
        else:
            raise UserError(f"{blob.where}: Arrow files are read from a disk only; fetch it, or save it as Parquet.")

    def read(self, blob: Blob, place: Any) -> bytes:
        """See `Format.read`."""
        packed = int(place["packed"])
        if packed == COPIED:
            return self._copied(blob).read(int(place["offset"]), int(place["size"]))
        if not packed:
            return blob.read(int(place["offset"]), int(place["size"]))
        page = self._pages.get(blob, int(place["offset"]), int(place["stored"]), int(place["unpacked"]), packed)
        return page[int(place["extra"]) : int(place["extra"]) + int(place["size"])]

    def _parquet(self, blob: Blob, number: int) -> Iterator[Content]:
        pa = require_arrow()
        with _parquet_file(pa, blob), blob.open() as file:
            table = pa.parquet.ParquetFile(file)
            schema = table.schema_arrow
            image, label = choose(schema, self.columns, blob.where)
            leaf = next(i for i in range(len(table.schema)) if table.schema.column(i).path in (image, f"{image}.bytes"))
            depth = table.schema.column(leaf).max_definition_level
            found = find_chunks(blob, leaf, depth)
            chunks = [chunk for chunk in found if chunk is not None]
            if len(chunks) < len(found):
                content = self._arrow(blob, self._copied(blob).path, number)
                content.places["packed"] = COPIED
                yield content
                return
            group = row = 0
            for some in together(chunks, ROWS_AT_ONCE, MEMORY // 2):
                places = np.concatenate([find_places(blob, chunk, number) for chunk in some])
                classes = None
                if label is not None:
                    groups = list(range(group, group + len(some)))
                    classes = self._classes(schema, label, [table.read_row_groups(groups, columns=[label])])
                yield Content([f"{blob.name}/{row + i}" for i in range(len(places))], places, classes)
                group, row = group + len(some), row + len(places)

    def _copied(self, blob: Blob) -> LocalBlob:
        """An Arrow file with the columns of a Parquet file that cannot be read in place; it is made once."""
        key = hashlib.sha256(json.dumps([blob.where, asdict(self.columns)]).encode()).hexdigest()[:20]
        copy = user_cache_dir() / "tables" / f"{key}-{blob.size:x}-{blob.stamp:x}.arrow"
        if not copy.exists():
            self._copy(blob, copy)
            for other in copy.parent.glob(f"{key}-*.arrow"):  # of what the file held before
                if other != copy:
                    other.unlink(missing_ok=True)
        return LocalBlob(copy, blob.name)

    def _copy(self, blob: Blob, copy: Path) -> None:
        pa = require_arrow()
        with _parquet_file(pa, blob), blob.open() as file:
            table = pa.parquet.ParquetFile(file)
            image, label = choose(table.schema_arrow, self.columns, blob.where)
            chosen = [name for name in table.schema_arrow.names if name in (image, label)]
            schema = pa.schema([table.schema_arrow.field(name) for name in chosen], table.schema_arrow.metadata)
            with (
                atomic_file(copy) as temporary,
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_stream(sink, schema) as writer,
            ):
                for batch in table.iter_batches(ROWS, columns=chosen):
                    writer.write_batch(batch.select(chosen).cast(schema))

    def _arrow(self, blob: Blob, path: Path, number: int) -> Content:
        """What the Arrow file at `path` holds."""
        pa = require_arrow()
        with readable(pa, blob, "is no Arrow file or is damaged", "save it again"), pa.memory_map(str(path)) as file:
            base = file.read_buffer()
            batches = record_batches(pa, base)
            if not batches:
                return Content([], np.zeros(0, PLACE))
            schema = batches[0].schema
            image, label = choose(schema, self.columns, blob.where)
            places = np.concatenate([_places(pa, batch.column(image), base, blob.where) for batch in batches])
            classes = None if label is None else self._classes(schema, label, batches)
        places["file"] = number
        return Content([f"{blob.name}/{row}" for row in range(len(places))], places, classes)

    def _classes(self, schema: Any, label: str, batches: list[Any]) -> list[str | None]:
        values = [value for batch in batches for value in batch.column(label).to_pylist()]
        names = features_of(schema).get(label, {}).get("names") or self._told.get(label)
        if isinstance(names, list) and all(isinstance(v, int) or v is None for v in values):
            if len(set(names)) != len(names) or any(v is not None and v >= len(names) for v in values):
                raise UserError(
                    f"the labels in {label!r} do not fit the names of the classes; save the data set again."
                )
            if self._names not in (None, [str(name) for name in names]):
                raise UserError("the files name their classes differently; open each of them on its own.")
            self._names = [str(name) for name in names]
            return [self._names[v] if v is not None and v >= 0 else None for v in values]
        return [None if v is None or v == "" or v == -1 else str(v) for v in values]


def record_batches(pa: Any, data: Any) -> list[Any]:
    """The record batches of an Arrow stream or file, none of them copied."""
    try:
        return list(pa.ipc.open_stream(data))
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(data)
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _places(pa: Any, column: Any, data: Any, where: str) -> np.ndarray:
    """Where the images of a batch lie in the file."""
    valid = column.is_valid()
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
        valid = pa.compute.and_(valid, column.is_valid())
    places = np.zeros(len(column), PLACE)
    if not len(column):
        return places
    _, ends, body = column.buffers()
    wide = pa.types.is_large_binary(column.type)
    offsets = np.frombuffer(ends, np.int64 if wide else np.int32)[column.offset : column.offset + len(column) + 1]
    start = 0 if body is None else body.address - data.address
    if body is not None and not (start >= 0 and start + body.size <= data.size):
        raise UserError(
            f"{where}: its columns are compressed and cannot be read in place; save it without compression."
        )
    sizes = np.diff(offsets).astype(np.int64)
    if (sizes < 0).any() or (body is not None and int(offsets[-1]) > body.size):
        raise UserError(f"{where} is damaged (its images lie outside of it); save it again.")
    places["offset"] = start + offsets[:-1].astype(np.int64)
    there = cast(Any, valid).to_numpy(zero_copy_only=False)
    places["size"] = places["stored"] = np.where(there, bounded(sizes), NO_BYTES)
    return places
