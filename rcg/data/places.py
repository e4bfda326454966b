"""What a specification names, if it is images in few files: which files, and of which format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rcg.core.errors import UserError
from rcg.core.schema import read_json
from rcg.data.blobs import Blob, LocalBlob, is_remote, list_local, list_remote
from rcg.data.embedded.sets import WAYS
from rcg.data.image_source import is_image
from rcg.data.packed import Format
from rcg.data.shards import ShardFormat
from rcg.data.tables import Columns, TableFormat
from rcg.data.zips import ZipFormat

ENDINGS = (".tar", ".zip", ".parquet", ".arrow")
OPTIONS = re.compile(r"(.+?):((?:image|label)=[^,=/]+(?:,(?:image|label)=[^,=/]+)*)")
SPLIT = re.compile(r"(\w+)-\d+-of-\d+.*\.(?:parquet|arrow)")
SAVED = "state.json"
"""Of a folder that `datasets.Dataset.save_to_disk` wrote."""
SPLITS = "dataset_dict.json"
"""Of one that `datasets.DatasetDict.save_to_disk` wrote."""


@dataclass(frozen=True)
class Packed:
    """Images in few files.

    Attributes:
        name: shown to people.
        blobs: the files, in the order of their names.
        format: what they are.
    """

    name: str
    blobs: list[Blob]
    format: Format


def _ending(name: str) -> str:
    return "" if name.startswith(".") else Path(name).suffix.lower()


def find(spec: str) -> Packed | None:
    """What `spec` names; None of a folder of single images.

    Raises:
        UserError: there is no such place, or what is there is none of the formats.
    """
    place, columns = spec, Columns()
    if (match := OPTIONS.fullmatch(spec)) and not Path(spec).expanduser().exists():
        place, columns = match[1], Columns(**dict(part.split("=") for part in match[2].split(",")))
    found = list_remote(place) if is_remote(place) else list_local(place)
    if found == []:
        raise UserError(
            f"nothing lies at {spec!r}; look at its spelling."
            if is_remote(place)
            else f"there is no folder {place!r}; {WAYS}."
        )
    if found is None:
        found = _in_folder(Path(place).expanduser())
    if not found:
        if place != spec:
            raise UserError(f"{spec!r}: columns are those of a table, but {place} holds no .parquet or .arrow files.")
        return None
    kinds = {ending for blob in found if (ending := _ending(blob.name)) in ENDINGS}
    kind = next((ending for ending in ENDINGS if ending in kinds), None)
    if kind is None:
        many = f"the files at {place} are" if len(found) > 1 else f"{place} is a file, but it is"
        raise UserError(f"{many} none of {', '.join(ENDINGS)}; {WAYS}.")
    blobs = [blob for blob in found if _ending(blob.name) == kind]
    _one_split(place, blobs)
    if kind not in (".parquet", ".arrow") and place != spec:
        raise UserError(f"{spec!r}: columns are those of a table, but {place} holds {kind} files.")
    format: Format
    if kind == ".tar":
        format = ShardFormat()
    elif kind == ".zip":
        format = ZipFormat(many=len(blobs) > 1)
    else:
        format = TableFormat(columns, parquet=kind == ".parquet")
    return Packed(place.rstrip("/").rpartition("/")[2] or place, blobs, format)


def _in_folder(folder: Path) -> list[Blob]:
    """The files that a folder is about; none where it holds single images or other folders beside archives or tables."""
    if (folder / SPLITS).is_file():
        names = sorted(p.name for p in folder.iterdir() if (p / SAVED).is_file())
        raise UserError(f"{folder} holds several sets ({', '.join(names)}); give one of them, such as {folder}/{names[0]}."
                        if names else f"{folder} holds no set that is whole; save it again.")  # fmt: skip
    if (folder / SAVED).is_file() and list(folder.glob("*.arrow")):
        return _saved(folder)
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    if tars := [p for p in entries if p.suffix == ".tar"]:
        entries = tars
    elif any((p.is_dir() and p.name != "__MACOSX") or is_image(p.name) for p in entries):
        return []
    return [LocalBlob(p) for p in sorted(entries) if _ending(p.name) in ENDINGS]


def _saved(folder: Path) -> list[Blob]:
    """The files of a `save_to_disk`; others beside them are left-overs of computations."""
    state = read_json(folder / SAVED, way_out="save the data set again")
    files = state.get("_data_files") if isinstance(state, dict) else None
    names = [one.get("filename") if isinstance(one, dict) else None for one in files or []]
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[^/\\]+\.arrow", name) for name in names):
        raise UserError(f"{folder / SAVED} does not name the set's .arrow files; save the data set again.")
    return [LocalBlob(folder / str(name)) for name in names]


def _one_split(place: str, blobs: list[Blob]) -> None:
    """Files such as train-00000-of-00002.parquet are of one split."""
    splits = sorted({match[1] for blob in blobs if (match := SPLIT.fullmatch(blob.name))} - {"data"})
    if len(splits) > 1:
        raise UserError(
            f"{place} holds several sets ({', '.join(splits)}); give one of them, such as "
            f"'{place.rstrip('/')}/{splits[0]}-*'."
        )
