"""One condition for each image, in files that are mapped into memory: a table of any length needs no memory of its own.

A table is a folder:

    table.json            what was inverted, by which model and how
    ids.json              a name for each image
    labels.npy            int64 [N] (only with labels)
    steps.npy             int64 [N], how many steps a row has been trained; rows at 0 hold nothing yet
    conditions.npy        float32 [N, *shape]
    first.npy, second.npy float32 [N, *shape], Adam's moments

Rows are committed together or not at all: they are written to a file of their own first (`pending-START-STOP.npz`), which
appears whole, and then into the table; a process that was killed in between finds that file and writes them again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap

from rcg.core.arrays import load_array, load_arrays, readable
from rcg.core.errors import UserError
from rcg.core.files import RUN, atomic_file, final_name, reserve, write_json
from rcg.core.schema import Count, Size, read_json
from rcg.data.image_source import ImageSource
from rcg.data.layout import save_array

FORMAT: Literal["rcg-inversion"] = "rcg-inversion"
BEFORE_MANIFEST = (
    RUN, ".lock", "codes", "conditions.npy", "first.npy", "second.npy", "steps.npy", "labels.npy", "ids.json", "table.json"
)  # fmt: skip
"""What a process may have written that was killed before it had made the whole table; it is made anew."""
AGAIN = "delete the folder and run rcg-invert again"
"""The way out of a damaged table."""
AT_ONCE = 1024
"""Rows that are read together where all are looked at."""


class _Always(TypedDict):
    format: Literal["rcg-inversion"]
    version: Literal[1]
    kind: Literal["stable-diffusion", "rcg"]
    model: str
    model_hash: str
    shape: list[Size]
    count: Count
    image_size: Size
    source: dict[str, str]
    class_names: list[str]
    settings: dict[str, Any]


class Manifest(_Always, total=False):
    """`table.json`.

    Attributes:
        format, version: of the table.
        kind: of the frozen generator, see `rcg.inversion.frozen`.
        model, model_hash: as it was named, and what it computes.
        shape: of a condition.
        count: of images.
        image_size: side in pixels at which they were inverted.
        source: name, fingerprint.
        class_names: sorted; empty without labels.
        settings: all else that the conditions depend on, but for the number of steps.
        steps: wanted of each row; not in tables of older versions.
    """

    steps: Count


def image_ids(source: ImageSource) -> list[str]:
    """A name for each image: its path in its folder, or its number."""
    files = getattr(source, "files", None)
    return list(files) if files is not None else [str(i) for i in range(len(source))]


def is_table(folder: Path) -> bool:
    """Whether `folder` holds a table."""
    return (folder / "table.json").is_file()


class ConditionTable:
    """A table that is there; rows can be read and, by those who own them, committed.

    Args:
        folder: of the table.
        writable: rows are to be committed; otherwise the files need be readable only.

    Raises:
        UserError: no table, or a damaged one.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder = folder
        self._mode: Literal["r", "r+"] = "r+" if writable else "r"
        if not is_table(folder):
            raise UserError(f"{folder} holds no learned conditions (it has no table.json); make them with rcg-invert.")
        self.manifest: Manifest = read_json(folder / "table.json", Manifest, AGAIN)
        self.ids: list[str] = read_json(folder / "ids.json", list[str], AGAIN)
        shape = (self.manifest["count"], *self.manifest["shape"])
        self.labels = self._map("labels", shape[:1], "int64") if self.manifest["class_names"] else None
        self.steps = self._map("steps", shape[:1], "int64")
        self.conditions = self._map("conditions", shape, "float32")
        self.first, self.second = self._map("first", shape, "float32"), self._map("second", shape, "float32")
        if len(self.ids) != len(self):
            raise UserError(f"{folder / 'ids.json'} names {len(self.ids)} images of {len(self)}; {AGAIN}.")

    def _map(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return load_array(self.folder / f"{name}.npy", AGAIN, shape=shape, dtype=dtype, mode=self._mode)

    @classmethod
    def create(cls, folder: Path, manifest: Manifest, ids: list[str], labels: np.ndarray | None) -> ConditionTable:
        """The table in `folder`, made if there is none; several processes may ask at once.

        Until a row has been trained, another `batch_size` takes the place of the one it was made with, which may be too large;
        another number of wanted `steps` always does.

        Raises:
            UserError: the folder holds something else, or a table of other images or labels, of another model or other
                settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_others(folder)
        with FileLock(folder / ".lock"):
            if not is_table(folder):
                _make_room(folder, (manifest["count"], *manifest["shape"]))
                if labels is not None:
                    save_array(folder / "labels.npy", labels.astype(np.int64))
                write_json(folder / "ids.json", ids)
                write_json(folder / "table.json", manifest)
            elif manifest["settings"] != (begun := cls(folder)).manifest["settings"] and not begun.steps.any():
                for pending in folder.glob("pending-*.npz"):  # of other rows, by a process that was killed
                    pending.unlink()
                settings = {**begun.manifest["settings"], "batch_size": manifest["settings"]["batch_size"]}
                write_json(folder / "table.json", {**begun.manifest, "settings": settings})
        table = cls(folder, writable=True)
        wanted, held = _flat(manifest), _flat(table.manifest)
        for key, value in wanted.items():
            if held.get(key) != value and key != "model":
                raise UserError(
                    f"--out {folder} holds an inversion with {key} {held.get(key)!r}, not {value!r}; choose another folder "
                    "for this one."
                )
        if labels is not None and table.labels is not None and not np.array_equal(labels, table.labels):
            raise UserError(
                f"--out {folder} holds an inversion of the same images with other labels; choose another folder for this one."
            )
        if "steps" in manifest and table.manifest.get("steps") != manifest["steps"]:
            table.manifest["steps"] = manifest["steps"]
            write_json(folder / "table.json", table.manifest)
        return table

    def __len__(self) -> int:
        return self.manifest["count"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a condition."""
        return tuple(self.manifest["shape"])

    def commit(self, rows: slice, steps: int, conditions: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
        """Put rows down, with Adam's moments, all at once as far as any later reader of the table can tell."""
        pending = self.folder / f"pending-{rows.start}-{rows.stop}.npz"
        with atomic_file(pending) as temporary:
            np.savez(temporary, steps=np.int64(steps), conditions=conditions, first=first, second=second)
        self._apply(rows, pending)

    def recover(self, rows: slice) -> None:
        """Finish a commit of these rows that a killed process began. Only their owner may call this."""
        pending = self.folder / f"pending-{rows.start}-{rows.stop}.npz"
        if pending.is_file():
            self._apply(rows, pending)

    def _apply(self, rows: slice, pending: Path) -> None:
        again = "delete it and run rcg-invert again"
        held = load_arrays(pending, again)
        with readable(pending, again):
            shape = (rows.stop - rows.start, *self.shape)
            for name in ("conditions", "first", "second"):
                getattr(self, name)[rows] = held[name].reshape(shape)
            self.steps[rows] = held["steps"].reshape(())
        for array in (self.conditions, self.first, self.second, self.steps):
            array.flush()  # type: ignore[attr-defined]
        pending.unlink()

    # ------------------------------------------------------------------ for those who draw from it

    def require_trained(self) -> None:
        """Raise `UserError` unless every row has been trained as long as was wanted."""
        done, wanted = int(self.steps.min()), self.manifest.get("steps", max(1, int(self.steps.max())))
        if lacking := int((self.steps < wanted).sum()):
            instead = f", or with --steps {done} to take them as they are" if done else ""
            raise UserError(
                f"{lacking} of {len(self)} images in {self.folder} have not been inverted for all {wanted} steps; run the same "
                f"rcg-invert again to finish them{instead}."
            )

    def mean(self) -> np.ndarray:
        """The mean of all conditions, float32 [*shape], summed in float64."""
        total = np.zeros(self.shape, np.float64)
        for start in range(0, len(self), AT_ONCE):
            total += self.conditions[start : start + AT_ONCE].sum(axis=0, dtype=np.float64)
        return (total / len(self)).astype(np.float32)

    def fingerprint(self) -> str:
        """Changes whenever a condition, a label or the name of a class does."""
        digest = hashlib.sha256(self.manifest["model_hash"].encode())
        if self.labels is not None:
            digest.update(os.fsencode("\0".join(self.manifest["class_names"])))
            digest.update(np.ascontiguousarray(self.labels).tobytes())
        for start in range(0, len(self), AT_ONCE):
            digest.update(np.ascontiguousarray(self.conditions[start : start + AT_ONCE]).tobytes())
        return digest.hexdigest()[:16]


def _refuse_others(folder: Path) -> None:
    """Raise `UserError` for a folder in which something else lies."""
    files = sorted(p.name for p in folder.iterdir() if (final_name(p.name) or p.name) not in BEFORE_MANIFEST)
    if files and not is_table(folder):
        raise UserError(f"--out {folder} is not empty and holds no inversion ({files[0]}); choose another folder.")


def _make_room(folder: Path, shape: tuple[int, ...]) -> None:
    """Files of zeros for a table's numbers, all or none."""
    files = {folder / f"{name}.npy": ("float32", shape) for name in ("conditions", "first", "second")}
    files[folder / "steps.npy"] = ("int64", shape[:1])
    try:
        for file, (dtype, whole) in files.items():
            open_memmap(file, "w+", np.dtype(dtype), whole).flush()
            reserve(file)
    except OSError:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _flat(manifest: Manifest) -> dict[str, Any]:
    """A manifest without nesting, for comparison."""
    plain: dict[str, Any] = dict(manifest)
    settings, source, _ = plain.pop("settings"), plain.pop("source"), plain.pop("steps", None)
    return {**plain, **settings, "images": source["fingerprint"]}
