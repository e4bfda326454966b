"""`OUT/plan.json`: the plan and how far it is carried out, so that a killed run goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.schema import NonNegative, Positive, read_json
from rcg.recipe.look import Look
from rcg.recipe.plan import Plan
from rcg.recipe.rates import Rates

FILE = "plan.json"


class Journal(TypedDict):
    """What `plan.json` holds.

    Attributes:
        format: of the file.
        wishes: see `Wishes.recorded`.
        look, rates: what was seen and measured.
        extractor: whose features judge.
        first_plan: as it was announced.
        plan: as it stands.
        seconds: the announced length of the whole, looking and measuring included.
        spent: seconds so far, interruptions left out.
        took: seconds of the finished stages, and of `preparation`.
        distances: what each scale of guidance was judged by, as text → figure.
        guidance_scale: the best of them, once it is known.
    """

    format: Literal[1]
    wishes: dict[str, Any]
    look: Look
    rates: Rates
    extractor: str
    first_plan: Plan
    plan: Plan
    seconds: Positive
    spent: NonNegative
    took: dict[str, NonNegative]
    distances: dict[str, float]
    guidance_scale: NonNegative | None


def write_journal(out: Path, journal: Journal) -> None:
    """Write it, atomically."""
    write_json(out / FILE, journal)


def read_journal(out: Path, wishes: dict[str, Any]) -> Journal:
    """Read it back.

    Args:
        out: folder of the run.
        wishes: of the resumed run, which must be those that it was started with.

    Raises:
        UserError: other wishes, or a damaged file.
    """
    journal: Journal = read_json(out / FILE, Journal, "start again in another folder")
    for name, value in wishes.items():
        if (held := journal["wishes"].get(name)) != value:
            raise UserError(
                f"--resume: the run in {out} was started with {name.replace('_', ' ')} {held}, not {value}; give what it "
                "was started with, or another --out."
            )
    return journal
