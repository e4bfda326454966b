"""What a search has tried, in one file, `tune.json`: written anew, whole, after every trial, so that it can go on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.schema import CountOrZero, NonNegative, Seed, read_json

JOURNAL = "tune.json"


class Trial(TypedDict):
    """One setting with the common seed.

    Attributes:
        point: where it lies in the search; None for defaults outside.
        settings: all of the pipeline's.
        value, groups, seconds: see `rcg.tune.judge.Score`.
    """

    point: dict[str, Any] | None
    settings: dict[str, Any]
    value: float
    groups: list[float]
    seconds: NonNegative


class Final(TypedDict):
    """One finalist with one fresh seed."""

    settings: dict[str, Any]
    seed: Seed
    value: float
    groups: list[float]
    seconds: NonNegative


class Comparison(TypedDict):
    """What the fresh seeds say of one finalist.

    Attributes:
        trial: its number; 0 are the defaults.
        settings: all of them.
        mean, deviation: of the figure over the fresh seeds (n - 1).
        difference: mean of the differences from the defaults, seed by seed.
        interval: its confidence interval, widened for the number of finalists.
        seconds: a trial takes.
        better: whether the whole interval lies on the better side.
    """

    trial: CountOrZero
    settings: dict[str, Any]
    mean: float
    deviation: NonNegative
    difference: float
    interval: tuple[float, float]
    seconds: NonNegative
    better: bool


class Record(TypedDict):
    """The contents of `tune.json`.

    Attributes:
        format: 1.
        identity: all that a value depends on beside settings and seed; a resumed search must share it.
        metric: the figure's name.
        more_is_better: of the figure.
        trials: the first is the model's own settings.
        finals: on fresh seeds.
        comparison: of the finalists; empty until all are evaluated.
        winner: the settings that are best, the defaults where none is clearly better; None until it is known.
        written: whether the winner stands in the model's `model_index.json`.
        extra: for readers, such as flags and versions.
    """

    format: Literal[1]
    identity: dict[str, Any]
    metric: str
    more_is_better: bool
    trials: list[Trial]
    finals: list[Final]
    comparison: list[Comparison]
    winner: dict[str, Any] | None
    written: bool
    extra: dict[str, Any]


class Journal:
    """The record of a search in a folder; `begin` comes first.

    Args:
        folder: `--out`.
        resume: go on with what the folder holds.

    Attributes:
        own: the model's own settings when the search began; None in a new one. (A winner that was written since then has
            changed those of the model.)

    Raises:
        UserError: the folder holds a search and there is no `resume`, or the other way round, or a damaged one.
    """

    record: Record

    def __init__(self, folder: Path, resume: bool) -> None:
        check_folder(folder, resume)
        self.folder, self.path = folder, folder / JOURNAL
        self._held: Record | None = None
        self.own: dict[str, Any] | None = None
        if resume:
            held: Record = read_json(self.path, Record, "choose another folder, or delete it")
            if not held["trials"]:
                raise UserError(f"{self.path} holds no trial; delete it and leave --resume out.")
            self._held, self.own = held, held["trials"][0]["settings"]

    def begin(self, identity: dict[str, Any], metric: str, more_is_better: bool) -> None:
        """Say what is searched.

        Args:
            identity: see `Record`.
            metric, more_is_better: of the figure.

        Raises:
            UserError: the folder holds another search.
        """
        if self._held is None:
            self.record = {
                "format": 1,
                "identity": identity,
                "metric": metric,
                "more_is_better": more_is_better,
                "trials": [],
                "finals": [],
                "comparison": [],
                "winner": None,
                "written": False,
                "extra": {},
            }
            return
        held = self._held["identity"]
        if differing := [name for name in identity if held.get(name, identity[name]) != identity[name]]:
            name = differing[0]
            raise UserError(
                f"--out {self.folder} holds another search ({name} {held.get(name)}, not {identity[name]}); choose another "
                "folder."
            )
        self.record = self._held
        self.record["identity"] = held | identity  # of an earlier version it may say less

    def save(self) -> None:
        """Write the record, whole or not at all."""
        write_json(self.path, self.record)


def check_folder(folder: Path, resume: bool) -> None:
    """Raise `UserError` for an `--out` that cannot be, before anything is loaded."""
    there = (folder / JOURNAL).is_file()
    if resume and not there:
        raise UserError(f"there is no search to resume in {folder}; leave --resume out.")
    if there and not resume:
        raise UserError(f"--out {folder} already holds a search; add --resume to go on, or choose another folder.")
