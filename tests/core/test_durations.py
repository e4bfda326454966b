"""Lengths of time, read and written."""

from __future__ import annotations

import pytest

from rcg.core.durations import as_flag, in_words, parse_duration
from rcg.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h", 7200), ("1d12h", 129600), ("0.5h", 1800), (" 10M ", 600)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "30m1h", "10 minutes", "-5m", "0s", "1e3s", "nan", "inf", "400d"])
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="--budget"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (45, "45 s"), (119, "119 s"), (720, "12 min"), (3599, "1 h"), (11400, "3 h 10 min"),
     (7200, "2 h"), (86400, "1 d"), (187200, "2 d 4 h")],
)  # fmt: skip
def test_durations_are_written(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "flag"), [(0.1, "1s"), (89.2, "90s"), (600, "10m"), (601, "11m"), (5400, "1h30m"), (7200, "2h")]
)
def test_what_is_proposed_can_be_typed(seconds: float, flag: str) -> None:
    assert as_flag(seconds) == flag
    assert parse_duration(flag) >= seconds
