"""What is written is true: every documented command parses, every preset belongs to a command, every help text prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from rcg.scripts._command import preset_arguments

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *map(ROOT.joinpath, ("CONTRIBUTING.md", "CHANGELOG.md")),
]
PRESETS = sorted(p.stem for p in (ROOT / "rcg/configs").glob("*.yaml"))
OWNER = {
    "decoder": "rcg-train-tokenizer",
    "encoder": "rcg-train-encoder",
    "tokenizer": "rcg-train-tokenizer",
    "rdm": "rcg-train-rdm",
    "generator": "rcg-train-generator",
    "rcg": "rcg-convert",
}
LAUNCHED = re.compile(r"^(?:torchrun|accelerate launch|srun torchrun) .*-m (rcg\.scripts\.\w+)")
NEEDED = {"rcg-train-generator": ["--condition", "none"]}


def module_of(command: str) -> ModuleType:
    return import_module(COMMANDS[command].split(":")[0])


def parse_only(command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The config that a command line gives; nothing runs."""
    module = module_of(command)
    seen: list[object] = []
    monkeypatch.setattr(module, "run", lambda config, *_: seen.append(config))
    monkeypatch.setattr("rcg.scripts._command.check_config", lambda config: None)  # some look for files
    module.main(arguments)
    assert len(seen) == 1
    return seen[0]


def documented() -> list[str]:
    """Command lines of the pages' shell blocks, also where launchers start their modules."""
    blocks = [b for page in PAGES for b in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = {f"rcg.scripts.{name.removeprefix('rcg-').replace('-', '_')}": name for name in COMMANDS}
    launched = [line for line in lines if (found := LAUNCHED.search(line)) and found[1] in commands]
    lines += [LAUNCHED.sub(lambda found: commands[found[1]], line) for line in launched]
    return sorted({re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("rcg-")})


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_a_line_under_their_head(page: Path) -> None:
    """Without it they are shown as text."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for table in re.findall(r"(?:^ *\|.*\n)+", prose, flags=re.M):
        head, line = table.splitlines()[:2]
        assert re.fullmatch(r" *\|(\s*:?-+:?\s*\|)+", line), head


def test_the_pages_document_the_main_commands() -> None:
    assert {line.split()[0] for line in documented()} == set(COMMANDS)


@pytest.mark.parametrize("line", documented())
def test_documented_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *arguments = shlex.split(line)
    parse_only(command, arguments, monkeypatch)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_parse(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = next(OWNER[kind] for kind in preset.split("-") if kind in OWNER)
    source = ["file.pth"] if command == "rcg-convert" else ["--data", "x"]
    arguments = ["--config", preset, *source, "--out", "y", *NEEDED.get(command, [])]
    parse_only(command, arguments, monkeypatch)
    assert preset_arguments(preset)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_light(command: str) -> None:
    module = COMMANDS[command].split(":")[0]
    code = f"import sys, {module} as m\ntry: m.main(['--help'])\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert any(flag in done.stdout for flag in ("--out", "--repo", "--json"))


def test_presets_and_flags_are_the_same_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("width: 8\ncondition: class\nbatch_size: 4\n")
    base = ["--data", "x", "--out", "y"]
    by_file = parse_only("rcg-train-rdm", [*base, "--config", str(file)], monkeypatch)
    by_flag = parse_only(
        "rcg-train-rdm", [*base, "--width", "8", "--condition", "class", "--batch-size", "4"], monkeypatch
    )
    assert by_file == by_flag
    overruled = parse_only("rcg-train-rdm", [*base, "--width", "9", "--config", str(file)], monkeypatch)
    assert overruled.recipe.width == 9  # type: ignore[attr-defined]


def test_numbers_of_presets_are_read_like_those_of_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML 1.1 has 010 for eight and 2024-01-02 for a date."""
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 010\nsteps: 1_000\nlr: 1e-3\nclip_grad: null\ncompile: yes\nresume: false\nout: 2024-1-2\n")
    by_file = parse_only("rcg-train-rdm", ["--data", "x", "--config", str(file)], monkeypatch)
    typed = "--data x --seed 010 --steps 1_000 --lr 1e-3 --clip-grad None --compile --no-resume --out 2024-1-2"
    assert by_file == parse_only("rcg-train-rdm", typed.split(), monkeypatch)
    assert by_file.training.seed == 10  # type: ignore[attr-defined]
    file.write_text("data: x\nout: y\nseed: 1:30\n")
    with pytest.raises(SystemExit):
        parse_only("rcg-train-rdm", ["--config", str(file)], monkeypatch)


@pytest.mark.parametrize("text", ["width: [", "- a", "widht: 3", "width: {a: 1}"])
def test_bad_presets_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        module_of("rcg-train-rdm").main(["--data", "x", "--out", "y", "--config", str(file)])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
