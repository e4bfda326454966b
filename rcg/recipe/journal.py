"""`OUT/plan.json`: the plan and how far it is carried out, so that a killed run goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from rcg.core.durations import in_words
from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.schema import NonNegative, Positive, read_json
from rcg.recipe.look import Look
from rcg.recipe.plan import Plan
from rcg.recipe.rates import Rates
from rcg.recipe.wishes import Wishes

FILE = "plan.json"


class Journal(TypedDict):
    """What `plan.json` holds.

    Attributes:
        format: of the file.
        wishes: see `Wishes.recorded`.
        budget: in seconds, as given or proposed.
        look, rates: what was seen and measured.
        encoder: the frozen one, as `rcg.recipe.stages.open_encoder` takes it; None if one is trained.
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
    budget: Positive
    look: Look
    rates: Rates
    encoder: str | None
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


def read_journal(wishes: Wishes) -> Journal:
    """Read back the journal of the run that is to be resumed.

    Args:
        wishes: must be those that it was started with.

    Raises:
        UserError: other wishes, or a damaged file.
    """
    out = wishes.out
    journal: Journal = read_json(out / FILE, Journal, "start again in another folder")
    if wishes.seconds not in (None, journal["budget"]):
        raise UserError(
            f"--resume: the run in {out} was planned for {in_words(journal['budget'])} and cannot get another --budget; "
            "leave it out, or start again in another folder."
        )
    for name, value in wishes.recorded().items():
        if (held := journal["wishes"].get(name)) != value:
            raise UserError(
                f"--resume: the run in {out} was started with {name.replace('_', ' ')} {held}, not {value}; give what it "
                "was started with, or another --out."
            )
    return journal
