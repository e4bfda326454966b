"""Valid files, damaged on purpose: hypothesis strategies over bytes, JSON, PNG chunks, archives and pickles."""

from __future__ import annotations

import copy
import io
import json
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

HUGE = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**63))
WORDS = ("", " ", "\0", "none", "nan", "..", "/", "\ud800", "ä" * 300, "x" * 5000, "%s%n", "{}", "-1", "1e999")
"""Texts that are hard on whoever reads them."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from(HUGE),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=20),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
"""Any JSON value."""

Paths = tuple[Any, ...]


@st.composite
def damaged_bytes(draw: st.DrawFn, valid: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """`valid` after up to four accidents: bits flipped, cut off, parts lost, doubled or of another file, numbers huge."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 64))
        kind = draw(
            st.sampled_from(("bit", "byte", "cut", "lose", "double", "number", "noise", "splice", "zero", "add"))
        )
        if kind == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "lose":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "number":
            form = draw(st.sampled_from(("<H", ">H", "<I", ">I", "<Q", ">Q")))
            bits = struct.calcsize(form)
            data[at : at + bits] = struct.pack(form, draw(st.sampled_from(HUGE)) % (1 << 8 * bits))
        elif kind == "noise":
            data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
        elif kind == "splice":
            other = draw(st.sampled_from((valid, *others)))
            data[at:] = other[min(at, len(other)) :]
        elif kind == "zero":
            data[at : at + length] = bytes(min(length, len(data) - at))
        else:
            data += draw(st.binary(min_size=1, max_size=length))
    return bytes(data)


def paths_in(value: Any, path: Paths = ()) -> Iterator[Paths]:
    """Where something lies in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths_in(inner, (*path, key))


@st.composite
def damaged_value(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` (JSON) with up to three places that hold another value, nothing, or a key that nobody knows."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths_in(value))
        if not places:
            return draw(anything)
        path = draw(st.sampled_from(places))
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        kind = draw(st.sampled_from(("set", "set", "remove", "add", "nest", "swap")))
        if kind == "set":
            inner[path[-1]] = draw(anything)
        elif kind == "remove":
            del inner[path[-1]]
        elif kind == "add" and isinstance(inner, dict):
            inner[draw(st.text(max_size=8))] = draw(anything)
        elif kind == "nest":
            inner[path[-1]] = [inner[path[-1]]]
        else:
            other = value
            for key in draw(st.sampled_from(places)):
                try:
                    other = other[key]
                except (LookupError, TypeError):
                    break
            inner[path[-1]] = copy.deepcopy(other)
    return value


@st.composite
def damaged_json(draw: st.DrawFn, valid: Any) -> bytes:
    """The text of damaged JSON: of another value, or no JSON any more."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged_bytes(json.dumps(valid).encode()))
    return json.dumps(draw(damaged_value(valid))).encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------- images


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts.append(len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big"))
    return b"".join(parts)


@lru_cache(maxsize=8)
def _packed_zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


SIDES = (0, 1, 7, 16, 4096, 13_000, 65_535, 10**6, 2**31 - 1, 2**32 - 1)


@st.composite
def damaged_png(draw: st.DrawFn, valid: bytes) -> bytes:
    """A PNG with right checksums and wrong contents: another size or kind of pixels, text bombs, chunks anywhere."""
    chunks = _chunks(valid)
    bomb = _packed_zeros(50_000_000)
    for _ in range(draw(st.integers(1, 3))):
        if not chunks:
            break
        at = draw(st.integers(0, len(chunks) - 1))
        kind = draw(st.sampled_from(("header", "drop", "double", "add", "body", "pixels")))
        if kind == "header":
            sides = [draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))]
            rest = bytes(draw(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 16))) for _ in range(2)) + bytes(2)
            head = struct.pack(">II", *sides) + rest + bytes([draw(st.integers(0, 1))])
            chunks = [(b"IHDR", head[:13]), *chunks[1:]]
        elif kind == "drop":
            del chunks[at]
        elif kind == "double":
            chunks.insert(draw(st.integers(0, len(chunks))), chunks[at])
        elif kind == "add":
            name = draw(
                st.sampled_from((b"zTXt", b"iCCP", b"iTXt", b"tEXt", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL"))
            )
            body = draw(st.one_of(st.binary(max_size=40), st.just(b"a\0\0" + bomb), st.just(b"a\0\1\0\0\0" + bomb)))
            chunks.insert(draw(st.integers(0, len(chunks))), (name, body))
        elif kind == "body":
            name, body = chunks[at]
            chunks[at] = name, draw(damaged_bytes(body)) if body else b"x"
        else:
            size = draw(st.sampled_from((0, 10, 10_000, 50_000_000)))
            chunks[at] = b"IDAT", _packed_zeros(size)
    return _png(chunks)


# ---------------------------------------------------------------- archives

HOSTILE_NAMES = (
    "../out.png", "a/../../out.png", "/tmp/out.png", "//out.png", "C:\\out.png", "..\\out.png", "a\\b.png", "a/./b.png", ".", "..",
    "", "a.png", "a.png/", "a//b.png", "ä.png", "\udce4.png", "x" * 300 + ".png", "a\0b.png", "a\nb.png", ".hidden.png",
    "key.0.png", "key.1.png", "key.json", "key.cls", "key.txt", "a.json", "con.png", "~/out.png", "d/" * 120 + "a.png",
)  # fmt: skip
PLAIN_NAMES = (
    "a.png",
    "b.png",
    "d/c.png",
    "key.0.png",
    "key.1.png",
    "key.json",
    "key.cls",
    "key.txt",
    "k2.0.png",
    "k2.txt",
)
Names = st.one_of(st.sampled_from(PLAIN_NAMES), st.sampled_from(PLAIN_NAMES), st.sampled_from(HOSTILE_NAMES))
TYPES = (
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
    tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z",
)  # fmt: skip
TEXTS = (
    b"",
    b"{",
    b"null",
    b'{"caption": 3}',
    b'{"class": "a", "caption": "b"}',
    b"\xff\xfe",
    b"[" * 3000,
    b"dog",
    b"3",
)
Contents = st.one_of(st.none(), st.sampled_from(TEXTS), st.binary(max_size=40))
"""Of a member; None stands for a picture."""


@st.composite
def hostile_tar(draw: st.DrawFn, picture: bytes) -> bytes:
    """A well-formed tar file whose members are not: links, devices, names that lead out, sizes that lie."""
    out = io.BytesIO()
    form = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for _ in range(draw(st.integers(1, 4))):
            body = draw(Contents)
            body = picture if body is None else body
            info = tarfile.TarInfo(draw(Names))
            if draw(st.integers(0, 3)) == 0:
                info.type = draw(st.sampled_from(TYPES))
            info.linkname = draw(st.sampled_from(("", "a.png", "/etc/passwd", "../x")))
            info.mode = draw(st.sampled_from((0, 0o644, 0o7777)))
            info.size = len(body) if draw(st.integers(0, 4)) else draw(st.sampled_from((0, 1, 511, 10**6, 8**11 - 1)))
            if form == tarfile.PAX_FORMAT and draw(st.integers(0, 2)) == 0:
                key = draw(
                    st.sampled_from(
                        (
                            "size",
                            "path",
                            "mtime",
                            "GNU.sparse.major",
                            "GNU.sparse.size",
                            "hdrcharset",
                            "linkpath",
                            "GNU.sparse.map",
                        )
                    )
                )
                info.pax_headers = {
                    key: draw(st.sampled_from(("1", "-1", "1e9", "x", "../../out.png", "9" * 30, "nan")))
                }
            try:
                tar.addfile(info, io.BytesIO(body + bytes(max(0, min(info.size, 2048) - len(body)))))
            except (ValueError, OSError, UnicodeError, struct.error):  # nothing that a tar file of this form can say
                continue
    data = out.getvalue()
    return draw(damaged_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def hostile_zip(draw: st.DrawFn, picture: bytes) -> bytes:
    """A well-formed zip archive whose members are not."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for _ in range(draw(st.integers(1, 4))):
            body = draw(st.one_of(Contents, st.just(bytes(200_000))))
            info = zipfile.ZipInfo(draw(Names) or "a")
            kind = draw(
                st.sampled_from(
                    (0, 0, 0, stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR)
                )
            )
            info.external_attr = (kind | 0o644) << 16
            info.create_system = draw(st.sampled_from((0, 3)))
            info.compress_type = draw(st.sampled_from((0, 0, 8, 8, 8, 12, 14)))
            info.extra = draw(
                st.sampled_from((b"", b"\1\0\x08\0" + b"\xff" * 8, b"\x75\x70\x09\0\1\0\0\0\0../x", b"\0"))
            )
            try:
                archive.writestr(info, picture if body is None else body)
            except (ValueError, UnicodeError, struct.error, NotImplementedError, RuntimeError, zlib.error):
                continue
        archive.comment = draw(st.sampled_from((b"", b"x", b"PK\5\6" + bytes(18))))
    data = out.getvalue()
    return draw(damaged_bytes(data)) if draw(st.integers(0, 2)) == 0 else data


# ---------------------------------------------------------------- weights


@st.composite
def damaged_safetensors(draw: st.DrawFn, valid: bytes) -> bytes:
    """A safetensors file whose header says other things than it holds."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(valid))
    length = int.from_bytes(valid[:8], "little")
    header = draw(damaged_json(json.loads(valid[8 : 8 + length])))
    said = draw(st.sampled_from((len(header), len(header), len(header), 0, length, 2**63, 100_000_001)))
    body = valid[8 + length :]
    return said.to_bytes(8, "little") + header + (draw(damaged_bytes(body)) if draw(st.booleans()) and body else body)


class _Calls:
    """An object whose pickle calls `function(*arguments)` when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def hostile_objects(marker: str) -> list[Any]:
    """What leaves the file `marker` behind if a pickle of it is ever executed."""
    import os
    import pathlib
    import subprocess

    text = f"open({marker!r}, 'w').close()"
    return [
        _Calls(os.system, f"touch {marker}"),
        _Calls(eval, text),
        _Calls(exec, text),
        _Calls(open, marker, "w"),
        _Calls(subprocess.call, ["touch", marker]),
        _Calls(pathlib.Path.touch, pathlib.Path(marker)),
        _Calls(getattr, _Calls(__import__, "os"), "getcwd"),
        _Calls(pickle.loads, pickle.dumps(_Calls(eval, text))),
    ]


@st.composite
def hostile_pickle(draw: st.DrawFn, marker: str, valid: Callable[[Any], bytes]) -> bytes:
    """A checkpoint with an object in it that must not come to life: bare, or where `torch.save` (`valid`) puts it."""
    evil = draw(st.sampled_from(hostile_objects(marker)))
    content = draw(
        st.sampled_from(
            (evil, {"model": evil}, {"state_dict": {"a": evil}}, [evil], {evil.call[0].__name__: 1, "x": evil})
        )
    )
    if draw(st.booleans()):
        return pickle.dumps(content, protocol=draw(st.integers(0, 5)))
    data = valid(content)
    return draw(damaged_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def damaged_members(draw: st.DrawFn, valid: bytes) -> bytes:
    """A zip archive (`.pth`, `.npz`) with right checksums, one member of which is damaged, lost or of another name."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(valid))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(valid)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(("damage", "damage", "damage", "lose", "rename", "double", "pack")))
        for name in names:
            data = source.read(name)
            if name == chosen and kind == "lose":
                continue
            if name == chosen and kind == "damage" and data:
                data = draw(damaged_bytes(data))
            called = draw(st.sampled_from(HOSTILE_NAMES)) or "a" if name == chosen and kind == "rename" else name
            try:
                target.writestr(called, data, zipfile.ZIP_DEFLATED if kind == "pack" else zipfile.ZIP_STORED)
                if name == chosen and kind == "double":
                    target.writestr(called, data[: len(data) // 2])
            except UnicodeError:
                continue
    return out.getvalue()
