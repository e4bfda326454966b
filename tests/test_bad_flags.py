"""Every numeric flag of every command, generated from the commands' own dataclasses, with values that cannot be."""

from __future__ import annotations

import dataclasses
import types
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from torch.distributed.run import get_args_parser

from rcg.core.schema import Range
from tests.test_readme import COMMANDS

NEVER = ("nan", "inf", "-inf", "1e400", "text", str(10**30))
"""No flag takes these, whatever its range."""
CHOSEN_BY = {"rcg-train-generator": "arch", "rcg-train-rdm": "method", "rcg-train-encoder": "method"}
"""The flag that says which of a command's `CONFIGS` is meant."""
FREE: set[str] = set()
"""Numeric flags without a declared range."""


def numeric(hint: Any) -> tuple[type, list[Range]] | None:
    """(int or float, ranges) of a flag that is a number, or several; else None."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = numeric(args[0])
        return inner and (inner[0], inner[1] + [a for a in args[1:] if isinstance(a, Range)])
    if origin in (Union, types.UnionType, tuple):
        return next((found for arg in args if (found := numeric(arg))), None)
    return (hint, []) if hint in (int, float) else None


def fields(config: type[Any]) -> list[tuple[str, Any]]:
    """(flag, type) of a dataclass and of those it holds."""
    found: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(config, include_extras=True).items():
        found += fields(hint) if dataclasses.is_dataclass(hint) else [("--" + name.replace("_", "-"), hint)]
    return found


def config_of(command: str) -> type[Any]:
    module = import_module(COMMANDS[command].split(":")[0])
    made = [v for v in vars(module).values() if dataclasses.is_dataclass(v) and v.__module__ == module.__name__]
    return next(v for v in made if isinstance(v, type) and v.__name__.endswith("Config"))


def configs_of(command: str) -> dict[str, type[Any]]:
    """The classes of a command's flags, by the family or method that they are for, if there are such."""
    module = import_module(COMMANDS[command].split(":")[0])
    return getattr(module, "CONFIGS", {"": config_of(command)})


CASES = [
    (command, arch, flag, *found)
    for command in COMMANDS
    for arch, config in configs_of(command).items()
    for flag, hint in fields(config)
    if (found := numeric(hint))
]


def test_they_are_found() -> None:
    flags = {(command, flag) for command, _, flag, *_ in CASES}
    assert len(flags) > 100
    assert {
        ("rcg-train-rdm", "--lr"),
        ("rcg-train-tokenizer", "--channel-multipliers"),
        ("rcg-sample", "--seed"),
    } <= flags


@pytest.mark.parametrize(
    ("command", "arch", "flag", "kind", "ranges"), CASES, ids=[f"{c}{a and ' ' + a}{f}" for c, a, f, *_ in CASES]
)
def test_impossible_numbers_are_refused_before_anything_runs(
    command: str, arch: str, flag: str, kind: type, ranges: list[Range], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert ranges or flag in FREE, f"{flag} has no range"
    module = import_module(COMMANDS[command].split(":")[0])
    ran: list[str] = []
    monkeypatch.setattr(module, "run", lambda *_: ran.append("run"))
    monkeypatch.setenv("COLUMNS", "400")
    preset = tmp_path / "bad.yaml"
    possible = [v for v in ("-1", "0") if not any(r.problem(float(v)) for r in ranges)]
    number = CASES.index((command, arch, flag, kind, ranges))
    never = NEVER[number % 2 :: 2]  # of so many flags each gets every other value, in turn
    for value in [*never, *(v for v in ("-1", "0") if v not in possible)]:
        preset.write_text(
            yaml.safe_dump(
                required(command, tmp_path) | ({CHOSEN_BY[command]: arch} if arch else {}) | {flag.strip("-"): value}
            )
        )
        with pytest.raises(SystemExit) as e:
            module.main(["--config", str(preset)])
        said = capsys.readouterr().err
        assert e.value.code == 2
        assert not ran
        assert flag in said, (value, said)
        assert "Traceback" not in said


def required(command: str, folder: Path) -> dict[str, Any]:
    """Flags that the command does not start without; nothing is read before the numbers are checked."""
    given: dict[str, Any] = {} if command == "rcg-check" else {"out": str(folder / "out")}
    if command.startswith("rcg-train-"):
        given |= {"data": "x", "steps": 1, "lr": 0.1}
    return given | {
        "rcg-train-generator": {"condition": "none"},
        "rcg-train": {"data": "x"},
        "rcg-sample": {"model": "x"},
        "rcg-synthesize": {"model": "x", "captions": "x.txt"},
        "rcg-cache": {"data": "x", "image-size": 8, "encoder": "x"},
        "rcg-eval": {"generated": "x"},
        "rcg-check": {"data": "x"},
        "rcg-tune": {"model": "x", "reference": "x"},
        "rcg-invert": {"data": "x", "model": "x"},
        "rcg-assemble": {"generator": "x", "tokenizer": "x"},
    }.get(command, {})


@pytest.mark.parametrize("command", COMMANDS)
def test_torchrun_leaves_every_flag_alone(command: str) -> None:
    """`torchrun -m MODULE --flag` fails where the flag is the beginning of several of torchrun's own."""
    module = COMMANDS[command].split(":")[0]
    for config in configs_of(command).values():
        for flag, _ in fields(config):
            for words in ([flag, "1"], ["--no-" + flag.removeprefix("--")]):
                parsed = get_args_parser().parse_args(["--standalone", "--nproc-per-node", "2", "-m", module, *words])
                assert (parsed.training_script, parsed.training_script_args) == (module, words)


def test_every_out_is_looked_at_before_the_work() -> None:
    hints = [
        hint for c in COMMANDS for made in configs_of(c).values() for flag, hint in fields(made) if flag == "--out"
    ]
    assert len(hints) > 10
    assert all("Target(" in str(hint) for hint in hints)
