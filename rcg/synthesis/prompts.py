"""What images are made of: captions from a file, classes in sentences, or representations. Knows no torch."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcg.core.errors import UserError

TEMPLATES = ("a photo of a {}", "a {} in its surroundings", "a close view of a {}", "a {} seen from afar")
"""Sentences about a class, by default."""
KINDS = "captions as .txt, .csv, .jsonl, .parquet or .arrow, or a data set of Hugging Face (hf:NAME:SPLIT:COLUMN)"


@dataclass(frozen=True)
class Prompt:
    """What several images have in common.

    Attributes:
        text: the caption; None for a representation that a pipeline draws.
        name: unique among all prompts; what the images' random numbers follow from.
        class_name: of a class list.
    """

    text: str | None
    name: str
    class_name: str | None = None

    @property
    def number(self) -> int:
        """A 63-bit number that follows from the name alone."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big") >> 1


def read_captions(place: str | Path, column: str = "caption") -> list[str]:
    """The captions of a file or a data set, in its order, without surrounding space; empty ones are left out.

    Args:
        place: `.txt` (one a line), `.csv` and `.tsv` (with a header), `.jsonl` (an object or a text a line), or tables (see
            `rcg.data.texts.read_texts`; needs pyarrow).
        column: which column or key holds them.

    Raises:
        UserError: no such file, another kind of file, damaged, without the column, or without captions.
    """
    readers = {".txt": _lines, ".csv": _table, ".tsv": _table, ".jsonl": _objects}
    file = Path(place)
    reader = readers.get(file.suffix.lower())
    if reader is not None and not file.is_file():
        raise UserError(f"there is no file {file}; give {KINDS}.")
    if reader is None and file.is_file() and file.suffix.lower() not in (".parquet", ".arrow"):
        raise UserError(f"{file} has an ending that says nothing; give {KINDS}.")
    try:
        read = _rows(str(place), column) if reader is None else reader(file, column)
        found = [text for value in read if (text := value.strip())]
    except UnicodeDecodeError:
        raise UserError(f"{file} is no UTF-8 text; convert it.") from None
    if not found:
        raise UserError(f"{file} holds no captions; add some, or name another --column.")
    return found


def _rows(place: str, column: str) -> Iterable[str]:
    from rcg.data.texts import read_texts  # knows torch

    return read_texts(place, column)


def _lines(file: Path, column: str) -> Iterable[str]:
    with file.open(encoding="utf-8-sig") as lines:
        return list(lines)


def _table(file: Path, column: str) -> Iterable[str]:
    with file.open(newline="", encoding="utf-8-sig") as text:
        rows = csv.DictReader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        try:
            _check_column(file, column, rows.fieldnames or [])
            return [row[column] or "" for row in rows]
        except csv.Error as e:
            raise UserError(f"{file} cannot be read as a table ({e}); mend it.") from None


def _objects(file: Path, column: str) -> Iterable[str]:
    made: list[str] = []
    for number, line in enumerate(_lines(file, column), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"line {number} of {file} is no JSON; mend it.") from None
        text = value.get(column) if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise UserError(f"line {number} of {file} has no text under {column!r}; mend it, or name another --column.")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can write one, UTF-8 cannot
            raise UserError(f"line {number} of {file} holds half a character (a lone surrogate); mend it.") from None
        made.append(text)
    return made


def _check_column(file: Path, column: str, columns: Sequence[str]) -> None:
    if column not in columns:
        raise UserError(f"{file} has no column {column!r}; name one with --column ({', '.join(columns) or 'none'}).")


def caption_prompts(captions: Iterable[str]) -> list[Prompt]:
    """A prompt for each caption; one that occurs again is the same prompt."""
    return [Prompt(text, f"caption {text}") for text in dict.fromkeys(captions)]


def class_prompts(classes: Iterable[str], templates: Sequence[str] = TEMPLATES) -> list[Prompt]:
    """A prompt for each class and template.

    Raises:
        UserError: a template without a place for the class.
    """
    if bad := [t for t in templates if t.count("{}") != 1]:
        raise UserError(f"the template {bad[0]!r} must hold {{}} once, where the name of the class goes.")
    named = {template.replace("{}", name): name for name in dict.fromkeys(classes) for template in templates}
    return [Prompt(text, f"caption {text}", name) for text, name in named.items()]


def representation_prompts(count: int) -> list[Prompt]:
    """So many representations, to be drawn by a pipeline."""
    return [Prompt(None, f"representation {i}") for i in range(count)]
