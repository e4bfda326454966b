"""What a check says: figures, findings with their verdict, and one paragraph of plain advice made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rcg.core.errors import one_line

Verdict = Literal["good", "doubtful", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        verdict: what it means for a training.
        what: a main clause without capital and full stop.
        todo: what to do about it, an imperative clause; empty if nothing.
    """

    verdict: Verdict
    what: str
    todo: str = ""


@dataclass
class Part:
    """What was found of the data or of one model.

    Attributes:
        name: "data", "tokenizer", "encoder", "rdm" or "image generator".
        source: where it came from.
        figures: by name; JSON values.
        findings: in order of importance.
        notes: what a reader of the figures should know, in sentences.
    """

    name: str
    source: str
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, verdict: Verdict, what: str, todo: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(verdict, what, todo))


_BEGINNINGS: dict[Verdict, str] = {"good": "Good", "doubtful": "Doubtful", "bad": "Not good"}


def advice(parts: Sequence[Part]) -> str:
    """One paragraph: what is good, what is doubtful, what is not good, and what to do."""
    findings = [finding for part in parts for finding in part.findings]
    told = [
        f"{beginning}: {'; '.join(clauses)}."
        for verdict, beginning in _BEGINNINGS.items()
        if (clauses := [f.what for f in findings if f.verdict == verdict])
    ]
    todo = list(
        dict.fromkeys(f.todo for verdict in ("bad", "doubtful") for f in findings if f.verdict == verdict and f.todo)
    )
    if todo:
        told.append(f"What to do: {'; '.join(todo)}.")
    elif not any(f.verdict == "bad" for f in findings):
        told.append("Nothing that was looked at speaks against going on.")
    return " ".join(told)


def as_json(parts: Sequence[Part]) -> dict[str, Any]:
    """All of it as JSON holds it: a mapping for each part, and the advice."""
    return {
        "parts": [
            {
                "name": part.name,
                "source": part.source,
                "figures": part.figures,
                "findings": [vars(finding) for finding in part.findings],
                "notes": part.notes,
            }
            for part in parts
        ],
        "advice": advice(parts),
    }


def in_lines(parts: Sequence[Part]) -> list[str]:
    """Figures and notes of each part, for a terminal."""
    lines: list[str] = []
    for part in parts:
        lines.append(one_line(f"{part.name} ({part.source})"))
        width = max((len(name) for name in part.figures), default=0)
        lines += [one_line(f"  {name.ljust(width)}  {_value(value)}") for name, value in part.figures.items()]
        lines += [one_line(f"  {note}") for note in part.notes]
        lines.append("")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
