"""What a number, a flag or a JSON file may be, declared beside the field and checked in one place. A leaf.

A type hint says it all: `Annotated[int, Range(1, 4096)]`, `Literal`, `list[…]`, `dict[str, …]`, a `TypedDict`. Every
number must be finite, whether it has a range or not; whole numbers fit 64 bits.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import stat
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from rcg.core.errors import UserError, first_line


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `ends` says with brackets which of the two are included."""

    low: float
    high: float
    ends: Literal["[]", "(]", "[)", "()"] = "[]"

    def problem(self, value: float) -> str | None:
        """What `value` must be and is not, or None."""
        below = value < self.low or (value == self.low and self.ends[0] == "(")
        above = value > self.high or (value == self.high and self.ends[1] == ")")
        if not below and not above:
            return None
        if self.high <= 1:
            return f"it must lie in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        if below:
            return f"it must be {'above' if self.ends[0] == '(' else 'at least'} {self.low:g}"
        return f"it must be {'below' if self.ends[1] == ')' else 'at most'} {self.high:.15g}"


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of image files."""
IMPOSSIBLE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of the system for a path that nothing can be written to, whoever asks."""


@dataclass(frozen=True)
class Target:
    """A path for results, whether anything is there yet or not; only looked at."""

    kind: Literal["folder", "file"]

    def problem(self, path: Path) -> str | None:
        """What is wrong with `path`, after its name, or None."""
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as e:
            return f"cannot be used ({e.strerror}); give another path" if e.errno in IMPOSSIBLE else None
        if self.kind == "folder":
            return None if is_folder else "is a file; give the name of a folder"
        return "is a folder; give the name of a file to write" if is_folder else None


OutFolder = Annotated[Path, Target("folder")]
OutFile = Annotated[Path, Target("file")]
Count = Annotated[int, Range(1, 10**12)]
"""Of images or steps."""
CountOrZero = Annotated[int, Range(0, 10**12)]
"""The same, or zero."""
Size = Annotated[int, Range(1, 65536)]
"""Of a layer, an image, a batch."""
Depth = Annotated[int, Range(1, 1024)]
"""Layers, heads, blocks."""
Codes = Annotated[int, Range(1, 2**24)]
"""Of a codebook or a vocabulary."""
Level = Annotated[int, Range(3, 256)]
"""Values of one number of a finite scalar code."""
Word = Annotated[int, Range(0, 2**24)]
"""One of a vocabulary, by its number."""
Classes = Annotated[int, Range(0, 10**7)]
GridSize = Annotated[int, Range(1, 1024)]
"""Tokens along the side of an image."""
MlpRatio = Annotated[float, Range(0, 256, "(]")]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, 1e12, "(]")]
NonNegative = Annotated[float, Range(0, 1e12)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, "(]")]
ShareBelowOne = Annotated[float, Range(0, 1, "[)")]

_KINDS: dict[Any, str] = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**24:  # str() refuses thousands of digits
        return "a number of more than 24 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def problem(value: Any, hint: Any, name: str) -> str | None:
    """What is wrong with `value`, as `NAME is VALUE, but it must be …`; None if nothing is.

    Args:
        value: as parsed from a flag or from JSON.
        hint: the type it must have; ranges stand in `Annotated`.
        name: of the field.
    """
    wrong = f"{name} is {_short(value)}, but "
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return None
    if origin is Annotated:
        if found := problem(value, args[0], name):
            return found
        if value is None:
            return None
        for limit in args[1:]:
            if isinstance(limit, Range) and (text := limit.problem(value)):
                return wrong + text
            if isinstance(limit, Target) and (text := limit.problem(value)):
                return f"{name} {value} {text}"
        return None
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        found_all = [problem(value, arg, name) for arg in args if arg is not type(None)]
        return None if None in found_all else found_all[0]
    if origin is Literal:
        known = any(type(value) is type(arg) and value == arg for arg in args)
        return None if known else wrong + f"it must be one of {', '.join(map(repr, args))}"
    if hint in (int, float, bool, str):
        right = isinstance(value, bool | str) and isinstance(value, hint)
        if hint is int:
            right = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        elif hint is float:
            right = is_number(value)
        return None if right else wrong + f"it must be {_KINDS[hint]}"
    if is_typeddict(hint):
        return problem_of(value, get_type_hints(hint, include_extras=True), hint.__required_keys__, name)
    if origin is dict or origin is Mapping:
        if not isinstance(value, Mapping):
            return wrong + "it must be a mapping"
        return next((text for k, v in value.items() if (text := problem(v, args[1], f"{name}.{k}"))), None)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return wrong + "it must be a list"
        fixed = origin is tuple and args[-1] is not ...
        if fixed and len(value) != len(args):
            return wrong + f"it must hold {len(args)} entries"
        hints = args if fixed else (args[0],) * len(value)
        each = zip(value, hints, strict=True)
        return next((text for i, (v, h) in enumerate(each) if (text := problem(v, h, f"{name}[{i}]"))), None)
    return None if isinstance(value, origin or hint) else wrong + f"it must be a {getattr(hint, '__name__', hint)}"


def problem_of(value: Any, hints: Mapping[str, Any], required: frozenset[str] | set[str], name: str = "") -> str | None:
    """What is wrong with a mapping whose keys and types are known: a key missing, unknown, or of a wrong value."""
    where = f" in {name}" if name else ""
    if not isinstance(value, Mapping):
        return f"{name or 'the whole'} is {_short(value)}, but it must be a mapping"
    if missing := sorted(required - value.keys()):
        return f"{missing[0]} is missing{where}"
    if unknown := sorted(map(str, value.keys() - hints.keys())):
        return f"{unknown[0]!r} is not known{where} (known: {', '.join(hints)})"
    prefix = f"{name}." if name else ""
    return next((text for k, v in value.items() if (text := problem(v, hints[k], prefix + k))), None)


def flag_of(name: str) -> str:
    """What a field is called on the command line: `num_images` → `--num-images`."""
    return "--" + name.replace("_", "-")


def check_config(config: Any) -> None:
    """Check a dataclass of flags and those it holds, innermost first: every field by its type, then its `validate()`.

    Raises:
        UserError: at the first value that cannot be used, under the name of its flag.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_config(value)
        elif found := problem(value, hints[field.name], flag_of(field.name)):
            raise UserError(f"{found}.")
    if hasattr(config, "validate"):
        config.validate()


def problem_of_arguments(cls: type[Any], arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with `arguments` for the constructor of `cls`; a value that is its default is always right."""
    parameters = {k: p for k, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD}
    hints = {**dict.fromkeys(parameters, Any), **get_type_hints(cls.__init__, include_extras=True)}
    hints = {name: hints[name] for name in parameters}
    for name, value in arguments.items():
        if name in parameters and type(value) is type(parameters[name].default) and value == parameters[name].default:
            hints[name] = Any
    return problem_of(arguments, hints, {k for k, p in parameters.items() if p.default is p.empty})


def check_arguments(made: Any) -> None:
    """Check what a model or scheduler is being made of; the first line of its constructor (under `register_to_config`).

    Raises:
        UserError: at the first argument of a wrong type or out of its range.
    """
    arguments = {k: v for k, v in made.config.items() if not k.startswith("_")}
    known = inspect.signature(type(made)).parameters
    if found := problem_of_arguments(type(made), {k: v for k, v in arguments.items() if k in known}):
        raise UserError(f"{type(made).__name__}: {found}.")


class _AsWritten(yaml.SafeLoader):
    """Leaves numbers and dates the texts that they are written as: YAML 1.1 has 010 for eight and 1:30 for ninety."""

    yaml_implicit_resolvers = {
        first: [(tag, like) for tag, like in found if tag.endswith((":bool", ":null", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(data: bytes, name: str, way_out: str = "mend it") -> Any:
    """The contents of a YAML file, from its bytes: texts, true and false, null, and lists and mappings of these.

    Numbers stay the texts that they are written as, to be read as those on a command line are.

    Raises:
        UserError: it is no UTF-8 text or no valid YAML, or is nested too deep; names `name`.
    """
    try:
        return yaml.load(data.decode("utf-8-sig"), _AsWritten)
    except UnicodeDecodeError:
        raise UserError(f"{name} is no UTF-8 text; {way_out}.") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, MemoryError, LookupError) as e:
        raise UserError(f"{name} is not valid YAML ({first_line(e)}); {way_out}.") from None


def read_json(file: Path, schema: Any = dict[str, Any], way_out: str = "fetch or make it again") -> Any:
    """The contents of a JSON file, as `schema` (a type hint) describes them.

    Raises:
        UserError: it cannot be read, is no JSON, or differs from the schema; names file, key, what is there and what
            is allowed.
    """
    try:
        value = json.loads(file.read_text())
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}); {way_out}.") from None
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"{file} is not valid JSON; {way_out}.") from None
    top = "the whole"
    if found := problem(value, schema, top):
        raise UserError(f"{file}: {found.replace(f'{top}.', '').replace(f' in {top}', '')}; {way_out}.")
    return value
