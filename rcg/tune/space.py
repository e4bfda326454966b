"""What can be tuned of a pipeline, and in which range: from words such as `guidance_scale=1:4` to axes of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcg.core.errors import UserError

DECIMALS = 2
"""Of the numbers that are tried: more say nothing."""
SCHEDULES = ("constant", "linear", "cosine")
WHOLE = ("num_inference_steps", "rdm_num_inference_steps")
FROM, TO = "guidance_from", "guidance_to"
"""The two axes of `guidance_interval`."""
TUNABLE = (
    "guidance_scale",
    "guidance_interval",
    "guidance_schedule",
    "temperature",
    "num_inference_steps",
    "rdm_guidance_scale",
    "rdm_num_inference_steps",
)
RDM_STEPS = (4, 50)
"""Of the RDM, where the model says no number."""


Settings = Callable[..., Mapping[str, Any]]
"""What a pipeline is asked here, see `RCGPipeline.settings`: those in force, with the given ones in the place of its own."""


@dataclass(frozen=True)
class Axis:
    """One direction of the search.

    Attributes:
        name: a setting, or an end of the interval.
        low, high: both included.
        whole: whether it is a whole number.
        choices: words, in the place of numbers.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: tuple[str, ...] = ()

    def text(self) -> str:
        """As a person writes it."""
        return f"{self.name} {', '.join(self.choices) or f'{self.low:g} to {self.high:g}'}"


Point = dict[str, Any]
"""A value for each axis, by its name."""


def open_space(words: Sequence[str], settings: Settings) -> list[Axis]:
    """The axes that `words` name; without words guidance and temperature, as far as the model has them.

    Args:
        words: names of `TUNABLE`, or `name=low:high`.
        settings: the pipeline's.

    Raises:
        UserError: an unknown name, a range that is none, a setting that this model cannot use, one without an effect, or
            nothing to tune.
    """
    if not words:
        words = [name for name in ("guidance_scale", "temperature", "rdm_guidance_scale") if _usable(name, settings)]
        if not words:
            raise UserError(
                "this model has neither guidance nor a temperature to tune; name something else with --tune, such as "
                "num_inference_steps."
            )
    axes: list[Axis] = []
    for word in words:
        for axis in _axes(word, settings):
            if any(axis.name == other.name for other in axes):
                raise UserError(f"--tune names {word.partition('=')[0]} twice; name it once.")
            axes.append(axis)
    names = {axis.name for axis in axes}
    if names & {FROM, "guidance_schedule"} and "guidance_scale" not in names and settings()["guidance_scale"] == 1.0:
        name = "guidance_interval" if FROM in names else "guidance_schedule"
        raise UserError(
            f"--tune {name} changes nothing, as guidance is off in this model (guidance_scale 1.0); name guidance_scale, too."
        )
    return axes


def _usable(name: str, settings: Settings) -> bool:
    if name == "temperature":
        return settings()["temperature"] is not None
    try:
        settings(**{name: 2.0})
    except UserError:
        return False
    return True


def _axes(word: str, settings: Settings) -> list[Axis]:
    name, _, given = word.partition("=")
    name = name.strip().replace("-", "_")
    if name not in TUNABLE:
        raise UserError(f"--tune: there is no setting {name!r} to tune; choose among {', '.join(TUNABLE)}.")
    current = settings()
    if name in ("guidance_schedule", "guidance_interval"):
        by_schedule = name == "guidance_schedule"
        if given:
            what = "tries all schedules" if by_schedule else "moves both ends over the whole way"
            raise UserError(f"--tune {name} {what} and takes no range; leave it out.")
        _check(name, [2.0], lambda value: settings(guidance_scale=value))
        return [Axis(name, choices=SCHEDULES)] if by_schedule else [Axis(FROM, 0.0, 1.0), Axis(TO, 0.0, 1.0)]
    if name == "temperature" and current["temperature"] is None:
        raise UserError("--tune temperature: this model has no temperature; leave it out.")
    low, high = _range(name, given) if given else _default_range(name, current, settings)
    whole = name in WHOLE
    ends = [int(low), int(high)] if whole else [low, high]
    _check(name, ends, lambda value: settings(**{name: value}))
    return [Axis(name, low, high, whole)]


def _check(name: str, values: Sequence[float], ask: Any) -> None:
    for value in values:
        try:
            ask(value)
        except UserError as e:
            raise UserError(f"--tune {name}: {e}") from None


def _range(name: str, given: str) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in given.split(":"))
    except ValueError:
        raise UserError(f"--tune {name}={given} is no range; write it like {name}=1:4.") from None
    if not 0 <= low < high < 1e6:
        raise UserError(f"--tune {name}={given}: the lower end must come first, and neither be negative.")
    if name in WHOLE and (low != int(low) or high != int(high) or low < 1):
        raise UserError(f"--tune {name}={given}: steps are whole numbers from 1.")
    return low, high


def _default_range(name: str, current: Mapping[str, Any], settings: Settings) -> tuple[float, float]:
    value = current[name]
    if name == "temperature":
        return 0.0, round(max(2.5 * value, 1.0), DECIMALS)
    if name in ("guidance_scale", "rdm_guidance_scale"):
        return min(1.0, value), max(4.0, round(1.5 * value, DECIMALS))
    if value is None:
        return RDM_STEPS
    low, high = max(1, value // 3), 2 * value
    try:
        settings(**{name: high})
    except UserError:  # MAGE has no more steps than tokens
        high = value
    return (low, high) if low < high else (max(1, high - 1), high + (high == 1))


def settings_at(point: Point) -> dict[str, Any]:
    """The settings that a point of the search means; numbers are rounded, and an interval's ends brought in order."""
    found: dict[str, Any] = {}
    for name, value in point.items():
        if name in (FROM, TO):
            ends = sorted(round(float(point[end]), DECIMALS) for end in (FROM, TO))
            found["guidance_interval"] = ends
        else:
            found[name] = value if isinstance(value, str | int) else round(float(value), DECIMALS)
    return found


def point_of(axes: Sequence[Axis], settings: Mapping[str, Any]) -> Point | None:
    """Where settings lie in the search; None if they lie outside, or the model has no number for one."""
    point: Point = {}
    for axis in axes:
        interval = axis.name in (FROM, TO)
        value = settings["guidance_interval"][axis.name == TO] if interval else settings[axis.name]
        if value is None or (value not in axis.choices if axis.choices else not axis.low <= value <= axis.high):
            return None
        point[axis.name] = value if axis.choices else int(value) if axis.whole else float(value)
    return point
