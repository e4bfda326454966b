"""What the page reads, and what it proposes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rcg.core.durations import parse_duration
from rcg.core.files import temporary_path
from rcg.data.sources import open_source
from rcg.recipe.journal import Journal
from rcg.recipe.judging import write_pictures
from rcg.recipe.page import _guidance, _real_grid, _reasons, _scores, _times, next_steps, read_curves
from rcg.recipe.plan import amount_of, make_plan
from rcg.recipe.settings import default_settings
from rcg.recipe.wishes import Wishes
from tests.recipe.tiny import look, rates

SETTINGS = default_settings()


def test_curves_are_read_from_a_log(tmp_path: Path) -> None:
    entries = [{"step": 5, "loss": 2.0}, {"step": 5, "eval/x": None}, {"step": 10, "loss": 1.0, "eval/x": 3.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert read_curves(tmp_path / "log.jsonl") == {"loss": [(5, 2.0), (10, 1.0)], "eval/x": [(10, 3.0)]}
    assert read_curves(tmp_path / "none.jsonl") == {}


def journal(seconds: float, scale: float = 1.5, seen: dict[str, Any] | None = None, **changes: object) -> Journal:
    plan = make_plan(look(**(seen or {})), rates(**changes), SETTINGS, seconds)
    return {
        "format": 1, "budget": seconds, "wishes": {"data": "my photos"}, "look": look(**(seen or {})), "rates": rates(**changes),
        "encoder": None, "extractor": "encoder", "first_plan": plan, "plan": plan, "seconds": seconds, "spent": seconds, "took": {},
        "distances": {"1": 2.0, "1.5": 1.0, "2": 1.5}, "guidance_scale": scale,
    }  # fmt: skip


def hints(state: Journal) -> str:
    return " ".join(next_steps(Path("runs/mine"), SETTINGS, state))


def test_a_short_run_is_told_to_take_longer() -> None:
    text = hints(journal(900.0))
    (flag,) = re.findall(r"--budget (\w+)</code>", text)
    assert parse_duration(flag) > 1800
    assert "rcg-sample --model runs/mine/model" in text


def test_commands_can_be_typed_as_they_are() -> None:
    text = hints(journal(900.0))
    assert "--data &#x27;my photos&#x27; --out" in text
    other = " ".join(next_steps(Path("my runs"), SETTINGS, journal(900.0)))
    assert "--model &#x27;my runs/model&#x27; --num-images" in other
    assert "--metrics &#x27;my runs/metrics.json&#x27;" in other


def test_more_time_is_for_the_same_wishes() -> None:
    state = journal(900.0)
    asked = Wishes("my photos", Path("x"), "15m", encoder="timm:a b", image_size=64, new_generator=True, seed=0)
    state["wishes"] = asked.recorded()
    flags = "--image-size 64 --encoder &#x27;timm:a b&#x27; --new-generator --out … --budget"
    assert f"--data &#x27;my photos&#x27; {flags}" in hints(state)


def test_a_long_run_is_not() -> None:
    assert "--budget" not in hints(journal(10 * 3600.0))


def test_a_small_set_is_told_to_grow() -> None:
    assert "teach it little" in hints(journal(3600.0, seen={"count": 1000}))


def test_hints_follow_what_was_found() -> None:
    assert "better encoder" in hints(journal(3600.0))
    assert "better encoder" not in hints(journal(3600.0, encoder=None))
    assert "Stronger guidance" in hints(journal(3600.0, scale=3.0))
    assert "Stronger guidance" not in hints(journal(3600.0))
    assert "repeated images" in hints(journal(3600.0, seen={"repeated": 500}))


def test_tables_of_scores_guidance_and_times() -> None:
    report = {
        "metrics": {"fid": 3.0, "isc_std": 0.1},
        "counts": {"generated": 1000, "reference": 500},
        "notes": ["a < b"],
        "extractor": {"name": "encoder"},
    }
    scores = _scores(report)
    assert "<td>fid</td><td>3</td>" in scores
    assert "isc_std" not in scores
    assert "a &lt; b" in scores
    state = journal(900.0)
    state["took"] = {"rdm": 60.0}
    assert "guidance 1.5 (chosen)" in _guidance(state)
    assert "<th>expected</th>" in _times(state)


def test_what_the_generator_saw_in_the_end_is_that_of_the_last_plan() -> None:
    state = journal(900.0)
    steps = 2 * amount_of(state["plan"], "generator")
    longer = [stage | {"amount": steps} if stage["name"] == "generator" else stage for stage in state["plan"]["stages"]]
    state["plan"] = state["plan"] | {"stages": longer}  # type: ignore[typeddict-item]
    text = _reasons(state, SETTINGS)
    planned, real = (f"{seen:,} images" for seen in (steps * SETTINGS.batch_size // 2, steps * SETTINGS.batch_size))
    assert f"which sees {planned}" in text
    assert f"In the end the generator saw {real}" in text
    assert text.index("when it was made") < text.index(planned) < text.index(real)


def test_what_a_killed_process_left_half_written_is_not_shown(tmp_path: Path) -> None:
    write_pictures(open_source("shapes:n=3,size=16"), tmp_path, 16)
    grid = _real_grid(tmp_path)
    temporary_path(tmp_path / "000001.png").write_bytes((tmp_path / "000001.png").read_bytes()[:20])
    assert _real_grid(tmp_path).tobytes() == grid.tobytes()
