"""What a specification names: images in few files, which and of which format, or single ones."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from glob import has_magic
from pathlib import Path

from rcg.core.errors import UserError
from rcg.core.schema import read_json
from rcg.data import repositories
from rcg.data.blobs import Blob, LocalBlob, RemoteBlob, is_remote, list_local, list_remote, tree_remote
from rcg.data.embedded.sets import WAYS
from rcg.data.image_source import count_unread, image_files, is_image, is_named_grid
from rcg.data.packed import Format
from rcg.data.shards import ShardFormat
from rcg.data.tables import Columns, TableFormat
from rcg.data.zips import ZipFormat

ENDINGS = (".tar", ".zip", ".parquet", ".arrow")
OPTIONS = re.compile(r"(.+?):((?:image|label)=[^,=/]+(?:,(?:image|label)=[^,=/]+)*)")
SAVED = "state.json"
"""Of a folder that `datasets.Dataset.save_to_disk` wrote."""
METADATA = "metadata.parquet"
"""Texts about single images, no images."""
SPLITS = "dataset_dict.json"
"""Of one that `datasets.DatasetDict.save_to_disk` wrote."""


@dataclass(frozen=True)
class Packed:
    """Images in few files.

    Attributes:
        name: shown to people.
        blobs: the files, in the order of their names.
        format: what they are.
        ignored: names of other images, archives and tables beside them.
    """

    name: str
    blobs: list[Blob]
    format: Format
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loose:
    """Single images, one a file.

    Attributes:
        name: shown to people.
        place: the folder, or its address.
        files: what lies at the address, by the paths from there; None of a folder on this machine.
        only: the paths of the images that are meant; None if all are.
        ignored: names of archives and tables beside them.
        unread: others beside them, see `count_unread`, where the place was looked through.
    """

    name: str
    place: str
    files: dict[str, RemoteBlob] | None = None
    only: list[str] | None = None
    ignored: list[str] = field(default_factory=list)
    unread: Mapping[str, int] = field(default_factory=dict)


def _ending(name: str) -> str:
    return "" if name.startswith(".") else Path(name).suffix.lower()


def find(spec: str) -> Packed | Loose:
    """What `spec` names.

    Raises:
        UserError: there is no such place, or what is there is none of the formats.
    """
    spec = os.path.expanduser(spec)  # noqa: PTH111 (which leaves what is nobody's home as it is)
    place, columns = spec, Columns()
    if (match := OPTIONS.fullmatch(spec)) and not Path(spec).exists():
        place, columns = match[1], Columns(**dict(part.split("=") for part in match[2].split(",")))
    if (asked := repositories.parse(place)) is not None:
        if asked.column is not None and columns.image is not None:
            raise UserError(f"{spec!r} names the column of images twice; leave one out.")
        return _in_repository(asked, replace(columns, image=asked.column or columns.image), columns != Columns())
    found, ignored = list_remote(place) if is_remote(place) else list_local(place), list[str]()
    if found == []:
        if is_remote(place):
            if has_magic(place):
                raise UserError(f"nothing lies at {place!r}; look at its spelling.")
            return _in_repository(_whole(place), columns, place != spec)
        raise UserError(f"there is no folder {place!r}; {WAYS}.")
    if found is None:
        folder = Path(place)
        found, ignored = _in_folder(folder, place != spec)
        if not found and _is_repository(folder):
            return _in_repository(_whole(place), columns, place != spec)
    elif is_remote(place) and not has_magic(place):
        found = [blob for blob in found if blob.name != METADATA or _last(place) == METADATA]
        if not any(_ending(blob.name) in ENDINGS for blob in found):
            return _in_repository(_whole(place), columns, place != spec)
    if not found:
        if place != spec:
            raise UserError(f"{spec!r}: columns are those of a table, but {place} holds no .parquet or .arrow files.")
        return Loose(Path(place).name or place, place, ignored=ignored)
    kinds = {ending for blob in found if (ending := _ending(blob.name)) in ENDINGS}
    kind = next((ending for ending in ENDINGS if ending in kinds), None)
    if kind is None:
        many = f"the files at {place} are" if len(found) > 1 else f"{place} is a file, but it is"
        raise UserError(f"{many} none of {', '.join(ENDINGS)}; {WAYS}.")
    blobs = [blob for blob in found if _ending(blob.name) == kind]
    _one_split(place, blobs)
    ignored += [blob.name for blob in found if _ending(blob.name) != kind and _is_data(blob.name)]
    return Packed(_last(place), blobs, _format(spec, place, kind, blobs, columns, place != spec), ignored)


def _is_data(name: str) -> bool:
    """Whether a file's name is that of images."""
    return (_ending(name) in ENDINGS and name != METADATA) or (is_image(name) and not is_named_grid(name))


def _last(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2] or place


def _format(spec: str, place: str, kind: str, blobs: list[Blob], columns: Columns, given: bool) -> Format:
    if kind not in (".parquet", ".arrow") and given:
        raise UserError(f"{spec!r}: columns are those of a table, but {place} holds {kind} files.")
    if kind == ".tar":
        return ShardFormat()
    return ZipFormat(many=len(blobs) > 1) if kind == ".zip" else TableFormat(columns, parquet=kind == ".parquet")


def _whole(place: str) -> repositories.Asked:
    """A place that is not said to be a repository, but looks like one: what is advised is of the form `hf:…`, if there is one."""
    place = place.rstrip("/")
    spec = place.removeprefix(repositories.HUB_ADDRESS)
    return repositories.Asked(place, None, None, None, place if is_remote(spec) else repositories.PREFIX + spec)


def _is_repository(folder: Path) -> bool:
    """Whether one of the first folders below holds tables or shards and no image; of one with images not much is looked at."""
    with os.scandir(folder) as entries:
        folders = [e.path for e in entries if not e.name.startswith(".") and e.is_dir()]
    for one in folders:
        with suppress(PermissionError), os.scandir(one) as entries:
            found = False
            for entry in entries:
                if is_image(entry.name):
                    break
                found |= (
                    _ending(entry.name) in (".parquet", ".arrow", ".tar") and entry.name != METADATA and entry.is_file()
                )
            else:
                if found:
                    return True
    return False


def _in_repository(asked: repositories.Asked, columns: Columns, given: bool) -> Packed | Loose:
    """The files of a split."""
    remote = is_remote(asked.place)
    tree: Mapping[str, RemoteBlob | None] = tree_remote(asked.place) if remote else _tree_local(Path(asked.place))
    chosen = repositories.choose(asked, list(tree), _readme(asked, tree))
    name = ":".join(filter(None, [_last(asked.spec).removeprefix("hf:"), asked.split]))
    if chosen.kind == "":
        if given or asked.column:
            raise UserError(f"{asked.spec!r}: columns are those of a table, but single images are there.")
        start = len(chosen.folder)
        below = {path[start:]: blob for path, blob in tree.items() if path.startswith(chosen.folder)}
        images = sum(repositories.kind_of(path) == "" for path in below)
        only = [path[start:] for path in chosen.paths] if images > len(chosen.paths) else None
        unread = count_unread(below) if remote or only else {}  # a folder is looked at by who opens it
        if not remote:
            return Loose(name, str(Path(asked.place) / chosen.folder), only=only, unread=unread)
        files = {path: blob for path, blob in below.items() if blob}
        return Loose(name, f"{asked.place.rstrip('/')}/{chosen.folder}", files, only, unread=unread)
    blobs: list[Blob] = [tree[path] or LocalBlob(Path(asked.place) / path, path) for path in chosen.paths]
    for blob, path in zip(blobs, chosen.paths, strict=True):
        blob.name = path  # files of several folders may share a name
    if chosen.kind in (".parquet", ".arrow"):
        return Packed(name, blobs, TableFormat(columns, chosen.kind == ".parquet", chosen.class_names))
    return Packed(
        name, blobs, _format(asked.spec, asked.place, chosen.kind, blobs, columns, bool(given or asked.column))
    )


def _tree_local(folder: Path) -> dict[str, None]:
    found: dict[str, None] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = os.path.relpath(root, folder).replace(os.sep, "/")
        found |= dict.fromkeys(name if start == "." else f"{start}/{name}" for name in files)
    return found


def _readme(asked: repositories.Asked, tree: Mapping[str, RemoteBlob | None]) -> bytes | None:
    if repositories.README not in tree:
        return None
    blob = tree[repositories.README] or LocalBlob(Path(asked.place) / repositories.README)
    try:
        return blob.read(0, min(blob.size, repositories.MOST_README))
    except OSError as e:
        raise UserError(f"{blob.where} cannot be read ({e.strerror or e}); look at your rights.") from None


def _in_folder(folder: Path, columns: bool) -> tuple[list[Blob], list[str]]:
    """The files that a folder is about, and the names of others in it that could be meant.

    No files where single images, in it or below, have more bytes than its shards or tables and no columns of these are given;
    nor where images or other folders lie beside zip archives.
    """
    if (folder / SPLITS).is_file():
        names = sorted(p.name for p in folder.iterdir() if (p / SAVED).is_file())
        raise UserError(f"{folder} holds several sets ({', '.join(names)}); give one of them, such as {folder}/{names[0]}."
                        if names else f"{folder} holds no set that is whole; save it again.")  # fmt: skip
    if (folder / SAVED).is_file() and list(folder.glob("*.arrow")):
        return _saved(folder), []
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    packed = [p for p in entries if _ending(p.name) in ENDINGS and p.name != METADATA and p.is_file()]
    for ending in (".tar", ".parquet"):
        if some := [LocalBlob(p) for p in packed if p.suffix == ending]:
            images, roots = _images_in(folder, size := sum(blob.size for blob in some))
            if columns or images <= size:
                return list(some), [p.name for p in packed if p.suffix != ending] + roots
    if any((p.is_dir() and p.name != "__MACOSX") or is_image(p.name) for p in entries):
        return [], [p.name for p in packed]
    return [LocalBlob(p) for p in packed], []


def _images_in(folder: Path, most: int) -> tuple[int, list[str]]:
    """Bytes of the single images in a folder and below, no further than to more than `most`, and what in it they are in."""
    size, roots = 0, dict[str, None]()
    with suppress(PermissionError):
        for name in image_files(folder):
            if is_named_grid(name):  # as rcg-sample leaves beside its shards
                continue
            roots[name.split("/")[0]] = None
            with suppress(OSError):
                size += (folder / name).stat().st_size
            if size > most:
                break
    return size, list(roots)


def _saved(folder: Path) -> list[Blob]:
    """The files of a `save_to_disk`; others beside them are left-overs of computations."""
    state = read_json(folder / SAVED, way_out="save the data set again")
    files = state.get("_data_files") if isinstance(state, dict) else None
    names = [one.get("filename") if isinstance(one, dict) else None for one in files or []]
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[^/\\]+\.arrow", name) for name in names):
        raise UserError(f"{folder / SAVED} does not name the set's .arrow files; save the data set again.")
    return [LocalBlob(folder / str(name)) for name in names]


def _one_split(place: str, blobs: list[Blob]) -> None:
    """Refuse files of several splits, such as train-000.tar beside val-000.tar: nobody trains on both and means it."""
    files: dict[str, list[str]] = {}
    for blob in blobs:
        kind = _ending(blob.name)
        split = repositories.split_of(blob.name, kind)
        # shards and archives such as cats-00000-of-00002.tar may be of a class
        other = kind in (".parquet", ".arrow") and split not in (None, "data")
        if other or split in repositories.SPLITS:
            files.setdefault(str(split), []).append(blob.name)
    if len(files) > 1:
        folder = place.rstrip("/") if Path(place).is_dir() or not has_magic(place) else place.rpartition("/")[0] or "."
        first = files.get("train") or files[min(files)]
        beginnings = (first[0][:end] for end in range(len(first[0]), 0, -1))
        start = next((b for b in beginnings if [blob.name for blob in blobs if blob.name.startswith(b)] == first), None)
        one = first[0] if len(first) == 1 else f"{start}*"
        way_out = f"give one of them, such as '{folder}/{one}'" if start else "keep each in a folder of its own"
        raise UserError(f"{place} holds several sets ({', '.join(sorted(files))}); {way_out}.")
