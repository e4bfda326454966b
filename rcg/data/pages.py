"""Parquet read in place: which page of a file holds which image, and images by pages, without copying the file.

Parquet stores a column in row groups and these in pages, of a mebibyte or so, each compressed on its own; an image is found
by its page and its place in it. Pages that are not compressed are not read at all: an image is a range of the file. The layout
is that of the format's specification (parquet.thrift, Encodings.md, version 2.11).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcg.core.errors import UserError
from rcg.data.blobs import Blob
from rcg.data.decode import DecodeError
from rcg.data.packed import NO_BYTES, NO_PAGE, PLACE, bounded

CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
"""Of a column, by their numbers in the format, 0 being none, and what pyarrow calls them."""
MEMORY = 128 << 20
"""Bytes of unpacked pages that a process keeps."""
WINDOW = 4 << 20
"""Bytes read at a time while pages are looked for."""
MOST_HEADER = 16 << 20
"""Bytes of a page's header, at most: there may be two values of the column in it."""
MOST_PAGE = 1 << 30
MOST_ROWS = 1 << 28
"""Of a row group."""
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
READABLE = {PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY, 3, 4}
"""Encodings of a column chunk whose images can be read in place; 3 and 4 (RLE, BIT_PACKED) are those of its levels."""
MOST_DEPTH = 16
"""Structures and lists in each other; the format's own are less deep."""
MAGIC = b"PAR1"
MOST_FOOTER = 1 << 30


class Damaged(ValueError):
    """A page that is not as the format has it; the message says why, in a few words."""


@dataclass(frozen=True)
class Chunk:
    """The images of a row group.

    Attributes:
        start: where its first page begins, in the file.
        end: where its last page ends.
        rows: how many there are.
        codec: number of its compression, see `CODECS`.
        depth: the definition level of a value that is there; lower ones are of rows without.
    """

    start: int
    end: int
    rows: int
    codec: int
    depth: int


class _Thrift:
    """Structures in Thrift's compact protocol, as dictionaries by field number. `IndexError`: they go on behind the data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise Damaged("its header is damaged")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise IndexError

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MOST_DEPTH:
            raise Damaged("its header is damaged")
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._skip(1)
        if kind in (4, 5, 6):
            return self._number()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind == 9:
            return self._list(depth + 1)
        if kind == 12:
            return self.struct(depth + 1)
        raise Damaged("its header is damaged")  # sets and maps do not occur in one

    def _list(self, depth: int) -> list[Any]:
        head = self.data[self.at]
        self.at += 1
        count, kind = head >> 4 if head >> 4 < 15 else self._varint(), head & 15
        if count > len(self.data) - self.at:
            raise IndexError
        return [self._value(3 if kind in (1, 2) else kind, depth) for _ in range(count)]

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The structure that begins here."""
        found: dict[int, Any] = {}
        number = 0
        while (byte := self.data[self.at]) != 0:
            self.at += 1
            number = number + (byte >> 4) if byte >> 4 else self._number()
            found[number] = self._value(byte & 15, depth)
        self.at += 1
        return found


def find_chunks(blob: Blob, leaf: int, depth: int) -> list[Chunk | None]:
    """The chunks of column `leaf`, one a row group; None for those that cannot be read in place.

    The footer is read here and not asked of pyarrow, some versions of which end the whole program where one is damaged.

    Args:
        blob: a Parquet file.
        leaf: number of the column among those without parts.
        depth: see `Chunk`.

    Raises:
        Damaged: the footer is.
        OSError: the file cannot be read.
    """
    tail = blob.read(max(0, blob.size - 8), min(8, blob.size))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > min(blob.size - 8, MOST_FOOTER):
        raise Damaged("its footer is damaged")
    try:
        footer = _Thrift(blob.read(blob.size - 8 - length, length)).struct()
        return [_chunk(group[1][leaf][3], group[3], depth) for group in footer.get(4, [])]
    except (IndexError, KeyError, TypeError, ValueError):
        raise Damaged("its footer is damaged") from None


def _chunk(column: dict[int, Any], rows: Any, depth: int) -> Chunk | None:
    codec, values, size, start, first = (column.get(key, 0) for key in (4, 5, 7, 9, 11))
    if not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in (codec, values, size, start, first, rows)):
        raise Damaged("its footer is damaged")
    if (codec and codec not in CODECS) or not set(column[2]) <= READABLE or values != rows:
        return None
    start = min(start, first) if first else start
    return Chunk(start, start + size, rows, codec, depth)


class _Window:
    """A file that is read mostly onwards, some mebibytes at a time."""

    def __init__(self, blob: Blob, end: int) -> None:
        self.blob, self.end = blob, min(end, blob.size)
        self.start, self.data = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer at the end."""
        length = max(0, min(length, self.end - offset))
        if not (self.start <= offset and offset + length <= self.start + len(self.data)):
            self.data = self.blob.read(offset, max(0, min(max(length, WINDOW), self.end - offset)))
            self.start = offset
        return self.data[offset - self.start : offset - self.start + length]


@dataclass(frozen=True)
class _Header:
    kind: int
    unpacked: int
    stored: int
    values: int
    encoding: int
    levels: int
    """Bytes of levels before the values, never compressed; of a page of version 2."""
    packed: bool
    length: int
    """Bytes of the header itself."""


def _read_header(window: _Window, offset: int) -> _Header:
    size = 1 << 12
    while True:
        data = window.read(offset, size)
        parser = _Thrift(data)
        try:
            found = parser.struct()
            break
        except IndexError:
            if len(data) < size or size >= MOST_HEADER:
                raise Damaged("its header is damaged") from None
            size *= 16
    kind = found.get(1)
    said = found.get({DATA: 5, DICTIONARY: 7, DATA_V2: 8}.get(kind if isinstance(kind, int) else -1, -1), {})
    if not isinstance(said, dict):
        raise Damaged("its header is damaged")
    levels, packed = [0, 0], True
    if kind == DATA_V2:
        levels, packed = [said.get(5, 0), said.get(6, 0)], said.get(7, True) is not False
    values, encoding = said.get(1, 0), said.get(4 if kind == DATA_V2 else 2, PLAIN)
    numbers: list[Any] = [kind, found.get(2), found.get(3), values, encoding, *levels]
    if not all(isinstance(n, int) and 0 <= n <= MOST_PAGE for n in numbers) or sum(levels) > min(numbers[1:3]):
        raise Damaged("its header is damaged")
    kind, unpacked, stored = numbers[:3]
    return _Header(kind, unpacked, stored, values, encoding, sum(levels), packed, parser.at)


def require_arrow() -> Any:
    """pyarrow; `UserError` where it is not installed."""
    try:
        import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise UserError(".arrow and .parquet files need a package that is missing; run: pip install pyarrow.") from None
    return pyarrow


def unpack(data: bytes, codec: int, size: int) -> bytes:
    """The `size` bytes of a page. `Damaged`: they are not in it. `UserError`: pyarrow, which unpacks them, is missing."""
    if codec == 0:
        found = data
    else:
        pa = require_arrow()
        try:
            found = pa.decompress(data, size, CODECS[codec], asbytes=True)
        except (pa.ArrowException, OSError, ValueError):
            raise Damaged("its page is damaged") from None
    if len(found) != size:
        raise Damaged("its page is damaged")
    return found


def hybrid(data: bytes, width: int, count: int) -> np.ndarray:
    """`count` numbers of `width` bits in Parquet's mixture of runs and packed groups, int64."""
    found: list[np.ndarray] = []
    have = 0
    parser = _Thrift(data)
    if width > 32:
        raise Damaged("its page is damaged")
    try:
        while have < count:
            head = parser._varint()
            start = parser.at
            if head & 1:
                parser._skip((head >> 1) * width)
                bits = np.unpackbits(np.frombuffer(data[start : parser.at], np.uint8), bitorder="little")
                rows = bits.reshape(-1 if width else min(8 * (head >> 1), count - have), width).astype(np.int64)
                numbers = (rows @ (1 << np.arange(width, dtype=np.int64)))[: count - have]
            else:
                parser._skip((width + 7) // 8)
                value = int.from_bytes(data[start : parser.at], "little")
                numbers = np.full(min(head >> 1, count - have), value, np.int64)
            found.append(numbers)
            have += len(numbers)
    except IndexError:
        raise Damaged("its page is damaged") from None
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _texts(data: bytes, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where `count` values lie that come one after the other, each behind its length: offsets and sizes, int64."""
    offsets, sizes = np.empty(count, np.int64), np.empty(count, np.int64)
    at = start
    for i in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        offsets[i], sizes[i] = at + 4, size
        at += 4 + size
    if at > len(data):
        raise Damaged("its page is damaged")
    return offsets, sizes


@dataclass
class _Values:
    """Where the values of a page, or of a dictionary, are: of its unpacked bytes, and these in the file."""

    offsets: np.ndarray
    sizes: np.ndarray
    body: int
    stored: int
    unpacked: int
    codec: int

    def places(self, which: np.ndarray, into: np.ndarray) -> None:
        sizes = bounded(self.sizes[which])
        into["size"] = sizes
        if self.codec:
            into["offset"], into["stored"], into["unpacked"] = self.body, self.stored, self.unpacked
            into["extra"], into["packed"] = self.offsets[which], self.codec
        else:
            into["offset"], into["stored"] = self.body + self.offsets[which], sizes


def find_places(blob: Blob, chunk: Chunk, number: int) -> np.ndarray:
    """Where the images of a row group lie.

    Args:
        blob: the file.
        chunk: of it.
        number: of the file, for `PLACE`.

    Returns:
        `PLACE` [rows]; rows whose page is damaged have the size `NO_PAGE`.

    Raises:
        Damaged: the row group is far too large.
        OSError: the file cannot be read.
    """
    if chunk.rows > MOST_ROWS:
        raise Damaged("its row group is damaged")
    places = np.zeros(chunk.rows, PLACE)
    places["file"], places["size"] = number, NO_PAGE
    window = _Window(blob, chunk.end)
    dictionary: _Values | None = None
    row, at = 0, chunk.start
    while row < chunk.rows:
        try:
            header = _read_header(window, at)
        except Damaged:
            break
        body = at + header.length
        at = body + header.stored
        if at > window.end or (header.kind != DICTIONARY and row + header.values > chunk.rows):
            break
        if header.kind not in (DATA, DICTIONARY, DATA_V2):
            continue
        data = window.read(body, header.stored)
        with suppress(Damaged):
            if header.kind == DICTIONARY:
                whole = unpack(data, chunk.codec, header.unpacked)
                offsets, sizes = _texts(whole, 0, min(header.values, len(whole) // 4))
                dictionary = _Values(offsets, sizes, body, header.stored, header.unpacked, chunk.codec)
                continue
            _fill(data, header, chunk, body, dictionary, places[row : row + header.values])
        row += header.values if header.kind != DICTIONARY else 0
    return places


def _fill(data: bytes, header: _Header, chunk: Chunk, body: int, dictionary: _Values | None, into: np.ndarray) -> None:
    """Put down the places of one page; nothing where it is `Damaged`."""
    packed = chunk.codec if header.packed else 0
    whole = unpack(data[header.levels :], packed, header.unpacked - header.levels)
    width, start = chunk.depth.bit_length(), 0
    levels = data[: header.levels]
    if header.kind == DATA and chunk.depth:
        start = 4 + int.from_bytes(whole[:4], "little")
        levels = whole[4:start]
    there = np.ones(header.values, bool)
    if chunk.depth:
        there = hybrid(levels, width, header.values) == chunk.depth
    count = int(there.sum())
    if header.encoding == PLAIN:
        offsets, sizes = _texts(whole, start, count)
        values = _Values(offsets, sizes, body + header.levels, header.stored - header.levels, len(whole), packed)
        which = np.arange(count)
    elif header.encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY) and dictionary is not None:
        values = dictionary
        which = hybrid(whole[start + 1 :], whole[start] if start < len(whole) else 0, count)
        if len(which) and which.max() >= len(dictionary.offsets):
            raise Damaged("its page is damaged")
    else:
        raise Damaged("its page is damaged")
    into["size"] = NO_BYTES
    filled = into[there]  # a copy
    values.places(which, filled)
    into[there] = filled


class _Page:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytes | None = None


class PageMemory:
    """The pages that were unpacked last, at most `memory` bytes of them; threads may share it."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory, self._held = memory, 0
        self._lock = threading.Lock()
        self._pages: OrderedDict[tuple[Any, ...], _Page] = OrderedDict()

    def get(self, blob: Blob, offset: int, stored: int, size: int, codec: int) -> bytes:
        """The unpacked bytes of a page.

        Raises:
            OSError: the file cannot be read.
            DecodeError: the page is damaged.
        """
        key = (blob.where, blob.stamp, blob.size, offset)
        with self._lock:
            page = self._pages.get(key)
            if page is None:
                page = self._pages[key] = _Page()
            self._pages.move_to_end(key)
        with page.lock:  # one thread unpacks it, the others wait
            if page.data is None:
                try:
                    data = unpack(blob.read(offset, stored), codec, size)
                except Damaged as e:
                    raise DecodeError(str(e)) from None
                with self._lock:
                    page.data = data  # here, so that what is let go has been counted
                    if self._pages.get(key) is page:
                        self._held += size
                    while self._held > self.memory and len(self._pages) > 1:
                        _, oldest = self._pages.popitem(last=False)
                        self._held -= len(oldest.data) if oldest.data is not None else 0
            return page.data

    def __getstate__(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def together(chunks: Iterable[Chunk], most_rows: int, most_bytes: int) -> Iterator[list[Chunk]]:
    """Row groups in a row, together at most so many rows and bytes, or one."""
    some: list[Chunk] = []
    rows = size = 0
    for chunk in chunks:
        length = chunk.end - chunk.start
        if some and (rows + chunk.rows > most_rows or size + length > most_bytes):
            yield some
            some, rows, size = [], 0, 0
        some.append(chunk)
        rows, size = rows + chunk.rows, size + length
    if some:
        yield some
