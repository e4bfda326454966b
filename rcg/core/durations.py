"""Lengths of time as people write them: "1h30m" and "3 h 10 min". A leaf: anyone may import it."""

from __future__ import annotations

import math
import re

from rcg.core.errors import UserError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PATTERN = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
LONGEST = 365 * 86400.0
"""Seconds that a duration may last."""


def parse_duration(text: str, flag: str = "--budget") -> float:
    """Seconds in `90s`, `10m`, `1h30m`, `2h` or `1d12h`; large units first.

    Args:
        text: what was given.
        flag: what messages call it.

    Raises:
        UserError: it is written in another way, is nothing at all, or longer than a year.
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise UserError(f"{flag} {text!r} is no length of time; write it like 90s, 10m, 1h30m or 2h.")
    seconds = sum(float(n) * unit for n, unit in zip(match.groups(), _UNITS.values(), strict=True) if n)
    if not 0 < seconds <= LONGEST:
        raise UserError(f"{flag} {text!r} must be longer than nothing and at most a year.")
    return seconds


def in_words(seconds: float) -> str:
    """A length of time to two units, such as "45 s", "12 min", "3 h 10 min" or "2 d 4 h"; never below a second."""
    seconds = max(1, round(seconds))
    if seconds < 120:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def as_flag(seconds: float) -> str:
    """A length of time as `parse_duration` reads it, rounded up to whole minutes (below two minutes: seconds)."""
    if seconds < 120:
        return f"{max(1, math.ceil(seconds))}s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours}h" * (hours > 0) + f"{minutes}m" * (minutes > 0 or hours == 0)
