"""Every command that writes, disturbed at random moments: nothing is lost, and the end is that of an undisturbed run.

    OMP_NUM_THREADS=1 python -m benchmarks.chaos --cases 120 --seconds 240 --work WORK --out benchmarks/results/chaos.json

From the repository's root, on Linux; as root a full disk is a real one (a small tmpfs), otherwise writing fails as if it were
full. Tiny models; each command runs in a forked process of its own. Disturbances (`FAULTS`):

- `kill`: SIGKILL at a random moment; `kill at a write`: SIGKILL just before or after a random rename or fsync;
- `torn`: the file that is being written is cut in half, and the process killed, before it could be renamed; or the log, the
  newest checkpoint or an image is cut after the kill, as a power failure leaves them;
- `term`: SIGTERM; `stop`: SIGSTOP, a second run into the same folder meanwhile, SIGCONT;
- `two`: two runs into one folder at once; `full`: the disk is full at a random moment;
- `clock`: SIGKILL, then the resumed process's clock is a day late, and all files in the folder are of 1980 or of 2100.

Then the command is given again as a user would give it. What is asserted: that the run went on from its last checkpoint (steps
lost: 0; images and shards that were whole are not made again), that all its files equal those of the undisturbed run bit for
bit (times in logs aside), and that no unfinished file is left. A run of this script goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_name

TRAIN = ["--save-every", "3", "--log-every", "1", "--eval-every", "7", "--precision", "fp32", "--lr", "1e-3", "--steps", "14",
         "--batch-size", "8", "--device", "cpu"]  # fmt: skip
MODEL = ["--num-inference-steps", "3", "--rdm-num-inference-steps", "2"]
FAULTS = ("kill", "kill at a write", "torn", "term", "stop", "two", "full", "clock")
LONGEST = 120.0
"""Seconds that a run may take before it is said to hang."""


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        module: of `rcg.scripts`.
        arguments: with `{name}` for places; `--out` comes on top.
        again: what is added to go on.
        kept: pattern of files that are never made again once they are there.
    """

    module: str
    arguments: list[str]
    again: tuple[str, ...] = ()
    kept: str = ""


COMMANDS = {
    "train-encoder": Command("train_encoder", ["--data", "{images}", "--image-size", "16", "--width", "32", "--depth", "1", "--heads", "2",
        "--patch-size", "4", "--representation-dim", "16", "--head-hidden-dim", "32", "--eval-samples", "40", *TRAIN], ("--resume",)),
    "train-tokenizer": Command("train_tokenizer", ["--data", "{images}", "--image-size", "16", "--base-channels", "8", "--num-codes", "32",
        "--code-dim", "8", "--adversarial-weight", "0.1", "--discriminator-channels", "8", "--held-out", "8", *TRAIN], ("--resume",)),
    "cache": Command("cache", ["--data", "{images}", "--image-size", "16", "--encoder", "{train-encoder}", "--tokenizer", "{train-tokenizer}",
        "--shard-size", "6", "--batch-size", "4", "--device", "cpu"], (), "shard-*/*.npy"),
    "train-rdm": Command("train_rdm", ["--data", "{cache}", "--encoder", "{train-encoder}", "--width", "32", "--depth", "2", "--eval-samples",
        "40", "--held-out-share", "0.3", *TRAIN], ("--resume",)),
    "train-generator": Command("train_generator", ["--data", "{cache}", "--tokenizer", "{train-tokenizer}", "--condition", "representation",
        "--width", "32", "--depth", "1", "--num-heads", "2", "--decoder-depth", "1", "--decoder-num-heads", "2", "--held-out", "8", "--ema",
        *TRAIN], ("--resume",)),
    "assemble": Command("assemble", ["--encoder", "{train-encoder}", "--rdm", "{train-rdm}", "--generator", "{train-generator}",
        "--tokenizer", "{train-tokenizer}"], ("--overwrite",)),
    "convert": Command("convert", ["{published}", "--encoder-num-heads", "4"], ("--overwrite",)),
    "sample": Command("sample", ["--model", "{assemble}", "--num-images", "24", "--batch-size", "3", "--device", "cpu", "--precision", "fp32",
        *MODEL], ("--resume",), "0*.png"),
    "sample --shards": Command("sample", ["--model", "{assemble}", "--num-images", "24", "--batch-size", "3", "--shards", "--images-per-shard",
        "5", "--device", "cpu", "--precision", "fp32", *MODEL], ("--resume",), "*.tar"),
    "synthesize": Command("synthesize", ["--model", "{assemble}", "--representations", "8", "--images-per-caption", "3", "--captions-per-shard",
        "2", "--batch-size", "3", "--format", "png", "--device", "cpu", "--precision", "fp32", "--num-inference-steps", "3"], ("--resume",), "*.tar"),
    "invert": Command("invert", ["--data", "{few}", "--model", "{assemble}", "--steps", "12", "--turn-steps", "3", "--batch-size", "4", "--device",
        "cpu", "--precision", "fp32"]),
    "synthesize --from-inversion": Command("synthesize", ["--model", "{assemble}", "--from-inversion", "{invert}", "--num-images", "15",
        "--batch-size", "3", "--device", "cpu", "--precision", "fp32", "--num-inference-steps", "3"], ("--resume",), "*/*.png"),
    "synthesize --from-images": Command("synthesize", ["--model", "{assemble}", "--from-images", "{images}", "--filter-data", "{images}",
        "--attempts", "2", "--shards", "--images-per-shard", "4", "--num-images", "15", "--batch-size", "3", "--device", "cpu",
        "--precision", "fp32", "--num-inference-steps", "3"], ("--resume",), "*.tar"),
}  # fmt: skip


# ---------------------------------------------------------------- one command in a process of its own


def start(
    command: Command, places: dict[str, str], out: Path, more: tuple[str, ...], said: Path, prepare: Callable[[], None]
) -> int:
    """Fork, and give a command in the child; returns its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        prepare()
        module = import_module(f"rcg.scripts.{command.module}")
        arguments = [a.format(**places) for a in command.arguments]
        module.main([*arguments, "--out", str(out), *more])
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float = LONGEST) -> int | None:
    """The exit status of a child (minus the signal that ended it), or None if it is not done after so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    return None


def finish(pid: int) -> int:
    """The exit status of a child that must end by itself."""
    status = wait(pid)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        raise AssertionError(f"it hangs: not done after {LONGEST:.0f} s")
    return status


def at_call(number: int, action: Callable[[str, Any], None]) -> Callable[[], None]:
    """Prepares a child: `action(name, argument)` is called before the `number`-th rename or fsync."""

    def prepare() -> None:
        calls = 0

        def watched(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    action(name, arguments[0])
                return inner(*arguments, **options)

            return call

        os.fsync = watched("fsync", os.fsync)  # type: ignore[assignment]
        os.rename = watched("rename", os.rename)  # type: ignore[assignment]
        os.replace = watched("rename", os.replace)  # type: ignore[assignment]
        os.unlink = watched("unlink", os.unlink)  # type: ignore[assignment]

    return prepare


def die(name: str, argument: Any) -> None:
    """End this process as SIGKILL does."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear(name: str, argument: Any) -> None:
    """Cut the file in half that is about to be forced onto the disk, and end this process."""
    if name == "fsync" and not os.path.isdir(f"/proc/self/fd/{argument}"):  # noqa: PTH112
        path = os.readlink(f"/proc/self/fd/{argument}")  # noqa: PTH115
        os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202
    die(name, argument)


def no_space(after: int) -> Callable[[], None]:
    """Prepares a child: where no small disk can be had, the `after`-th fsync and all that follow find the disk full."""

    def fail(name: str, argument: Any) -> None:
        raise OSError(28, "No space left on device")

    def prepare() -> None:
        calls = 0
        inner = os.fsync

        def fsync(number: int) -> None:
            nonlocal calls
            calls += 1
            if calls >= after:
                fail("fsync", number)
            inner(number)

        os.fsync = fsync  # type: ignore[assignment]

    return prepare


def late_clock() -> None:
    """Prepares a child: its clock is a day late."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - 86400
    time.time_ns = lambda: now_ns() - 86400 * 10**9


def remember_start(file: Path) -> Callable[[], None]:
    """Prepares a child: a training writes down the step that it goes on from."""

    def prepare() -> None:
        from rcg.training import loop

        inner = loop._Run._set_up

        def set_up(run: Any) -> int:
            first: int = inner(run)
            file.write_text(str(first))
            return first

        loop._Run._set_up = set_up  # type: ignore[method-assign]

    return prepare


# ---------------------------------------------------------------- what is there


UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}(\.\w+)*")
TIMES = re.compile(r'"(samples_per_second|gpu_gib|seconds|time/\w+|run/\w+|rate|took)": [^,}]+,? ?')
NOT_COMPARED = ("config.yaml", ".lock")


def contents(out: Path) -> dict[str, bytes]:
    """All files of a run that are to be the same every time, by path.

    Of checkpoints the last: SIGTERM leaves one more, so that others are kept before it.
    """
    found: dict[str, bytes] = {}
    last = f"step-{last_checkpoint(out):08d}"
    for path in sorted(out.rglob("*")):
        if (
            not path.is_file()
            or path.name in NOT_COMPARED
            or (path.parent.name.startswith("step-") and path.parent.name != last)
        ):
            continue
        data = path.read_bytes()
        if path.name.endswith(".jsonl"):
            lines = [TIMES.sub("", line) for line in data.decode().splitlines() if '"run/seconds"' not in line]
            data = "\n".join(sorted(lines) if path.name.startswith("log-") else lines).encode()
        if path.suffix == ".json":
            value = json.loads(data)
            for key in ("commands", "model", "_name_or_path", "files") if isinstance(value, dict) else ():
                value.pop(key, None)
            data = json.dumps(value, sort_keys=True).replace(str(out), "OUT").encode()
        found[str(path.relative_to(out))] = data
    return found


def unfinished(out: Path) -> list[str]:
    """Files that a killed process left half-written and nobody removed."""
    beside = [p for p in out.parent.glob(f".{out.name}.*") if UNFINISHED.fullmatch(p.name)]
    return [str(p) for p in [*beside, *out.rglob(".*")] if UNFINISHED.fullmatch(p.name) or p.name in (".export",)]


def last_checkpoint(out: Path) -> int:
    """Step of the newest complete checkpoint of a training; 0 without one."""
    from rcg.training.checkpoints import CheckpointFolder

    return max(CheckpointFolder(out / "training" / "checkpoints", 2).steps(), default=0)


def whole_files(command: Command, out: Path) -> dict[str, int]:
    """Inode of each file that is not to be made again."""
    return {str(p.relative_to(out)): p.stat().st_ino for p in sorted(out.glob(command.kept))} if command.kept else {}


# ---------------------------------------------------------------- cases


class Chaos:
    """The house that is disturbed.

    Args:
        work: folder for everything.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.places = {name: str(work / "whole" / name.replace(" ", "")) for name in COMMANDS}
        self.places |= {
            "images": str(work / "images"),
            "few": str(work / "few"),
            "published": str(work / "published.pth"),
        }
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def build(self) -> None:
        """Data, and an undisturbed run of every command."""
        import torch

        from rcg.data.sources import open_source
        from tests.published.official_files import deit_file

        self.work.mkdir(parents=True, exist_ok=True)
        os.environ["RCG_CACHE_DIR"] = str(self.work / "memory")
        if not (self.work / "published.pth").exists():
            source = open_source("shapes:n=48,size=16,seed=0")
            for name, count in (("images", 48), ("few", 10)):
                for i in range(count):
                    folder = self.work / name / str(i % 3)
                    folder.mkdir(parents=True, exist_ok=True)
                    source.image(i).save(folder / f"{i}.png")
            torch.save(deit_file(), self.work / "published.pth")
        notes = self.work / "whole.json"
        known = json.loads(notes.read_text()) if notes.exists() else {}
        for name, command in COMMANDS.items():
            out = Path(self.places[name])
            if name not in known:
                shutil.rmtree(out, ignore_errors=True)
                counter = self.work / "calls"
                counter.write_text("")
                begun = time.monotonic()
                pid = start(command, self.places, out, (), self.work / "whole.log", counting(counter))
                if (status := finish(pid)) != 0:
                    raise RuntimeError(
                        f"{name} alone ends with {status}: {(self.work / 'whole.log').read_text()[-2000:]}"
                    )
                size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
                known[name] = [time.monotonic() - begun, len(counter.read_text()), size]
                notes.write_text(json.dumps(known))
            self.seconds[name], self.calls[name], self.bytes[name] = known[name]

    def run(self, number: int) -> dict[str, Any]:
        """Case `number`."""
        rng = random.Random(f"chaos {number}")
        name = list(COMMANDS)[number % len(COMMANDS)]
        fault = FAULTS[(number // len(COMMANDS) + number % len(COMMANDS)) % len(FAULTS)]
        command, out = COMMANDS[name], self.work / "cases" / f"case-{number}" / "run"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        said = out.parent / "said.txt"
        result: dict[str, Any] = {"case": number, "command": name, "fault": fault}
        begun = time.monotonic()
        mounted = False
        try:
            if fault == "full" and not os.geteuid():
                mounted = self._mount(out.parent / "disk", rng, name)
                out = out.parent / "disk" / "run" if mounted else out
            status = self._disturb(fault, command, name, out, said, rng, result)
            result["status"] = status
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=256m", str(out.parent)], check=True)
            self._go_on(fault, command, name, out, said, rng, result)
        except AssertionError as e:
            result["problem"] = str(e)[:400] or "assertion"
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(out.parent)], check=False)
        result["seconds"] = round(time.monotonic() - begun, 2)
        if "problem" not in result:
            shutil.rmtree(self.work / "cases" / f"case-{number}", ignore_errors=True)
        return result

    def _mount(self, place: Path, rng: random.Random, name: str) -> bool:
        place.mkdir()
        size = max(8192, int(self.bytes[name] * rng.uniform(0.05, 0.9)))
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False, capture_output=True
        )
        return done.returncode == 0

    def _disturb(
        self, fault: str, command: Command, name: str, out: Path, said: Path, rng: random.Random, result: dict[str, Any]
    ) -> int:
        """Give the command and disturb it; returns how it ended."""

        def begin(prepare: Callable[[], None] = lambda: None) -> int:
            return start(command, self.places, out, (), said, prepare)

        moment = self.seconds[name] * rng.uniform(0.02, 0.95)
        if fault in ("kill at a write", "torn"):
            call = rng.randrange(1, max(2, self.calls[name] + 1))
            result["call"] = call
            return finish(begin(at_call(call, tear if fault == "torn" else die)))
        if fault == "full":
            result["disk"] = "tmpfs" if out.parent.name == "disk" else "faked"
            prepare = (
                (lambda: None)
                if out.parent.name == "disk"
                else no_space(rng.randrange(1, max(2, self.calls[name] // 2)))
            )
            return finish(begin(prepare))
        pid = begin()
        if fault == "two":
            second = begin()
            status, other = finish(pid), finish(second)
            result["other"] = other
            if not {status, other} <= {0, 2}:
                raise AssertionError(f"two runs at once end with {status} and {other}")
            return max(status, other) if 0 not in (status, other) else 0
        status = wait(pid, moment)
        result["after"] = round(moment, 3)
        if status is not None:
            return status
        if fault == "stop":
            os.kill(pid, signal.SIGSTOP)
            second = begin()
            other = finish(second)
            result["other"] = other
            os.kill(pid, signal.SIGCONT)
            status = finish(pid)
            if other not in (0, 2) or status not in (0, 2):
                raise AssertionError(f"the run that stood still ends with {status}, the other with {other}")
            return status
        os.kill(pid, signal.SIGTERM if fault == "term" else signal.SIGKILL)
        return finish(pid)

    def _go_on(
        self, fault: str, command: Command, name: str, out: Path, said: Path, rng: random.Random, result: dict[str, Any]
    ) -> None:
        """Give the command again, as often as a user would, and look at what came of it."""
        training = command.module.startswith("train")
        if result["status"] == 1:
            raise AssertionError(f"it ends with a traceback: {said.read_text()[-300:]}")
        if fault == "torn" and rng.random() < 0.5:
            self._cut(command, out, rng, result)
        if fault == "clock":
            when = rng.choice((315532800, 4102444800))  # 1980, 2100
            for path in [*out.rglob("*"), *out.parent.glob("*")]:
                if path.exists():
                    os.utime(path, (when, when))
        whole = whole_files(command, out)
        checkpoint = last_checkpoint(out) if training else 0
        marker = out.parent / "start.txt"

        def prepare() -> None:
            remember_start(marker)()
            if fault == "clock":
                late_clock()

        deleted = False
        for attempt in range(4):
            more = command.again if attempt != 1 else ()
            status = finish(start(command, self.places, out, more, said, prepare))
            if status == 0:
                break
            text = said.read_text()
            if status != 2 or attempt == 3:
                raise AssertionError(f"the resumed run ends with {status}: {text[-300:]}")
            if found := re.search(r"delete (\S+) to go on from the checkpoint before it", text):
                shutil.rmtree(found[1], ignore_errors=True)  # as it says
                deleted, checkpoint = True, last_checkpoint(out)
        result["attempts"] = attempt + 1
        if training:
            first = int(marker.read_text())
            result["lost"] = checkpoint - first
            if checkpoint != first:
                raise AssertionError(f"it went on from step {first}, but the last checkpoint is of step {checkpoint}")
        result["told to delete a damaged checkpoint"] = deleted
        made_again = [k for k, inode in whole_files(command, out).items() if k in whole and whole[k] != inode]
        if made_again and "cut" not in result:
            raise AssertionError(f"{len(made_again)} files were made again, such as {made_again[0]}")
        if left := unfinished(out):
            raise AssertionError(f"{left[0]} is left")
        wanted, held = contents(Path(self.places[name])), contents(out)
        if differing := sorted(wanted.keys() ^ held.keys()):
            raise AssertionError(f"{differing[0]} is in one of the two runs only")
        if differing := [k for k in wanted if wanted[k] != held[k]]:
            raise AssertionError(f"{len(differing)} of {len(wanted)} files differ, such as {differing[0]}")
        result["files"] = len(wanted)

    def _cut(self, command: Command, out: Path, rng: random.Random, result: dict[str, Any]) -> None:
        """Cut a file that is there, as a power failure may."""
        training = ("training/log.jsonl", "training/checkpoints/step-*/state.safetensors")
        patterns = {"sample": ("0*.png",), "cache": ("shard-*/*.npy",)}.get(command.module, training)
        files = sorted(p for pattern in patterns for p in out.glob(pattern))
        if patterns == training:  # the log or the newest checkpoint: nothing reads an older one
            checkpoints = [p for p in files if p.suffix == ".safetensors"]
            files = checkpoints[-1:] if rng.random() < 0.6 else [p for p in files if p.name == "log.jsonl"]
        if files and "--shards" not in command.arguments:
            chosen = files[-1] if rng.random() < 0.7 else files[0]
            forced = 0  # bytes of a log that were forced onto the disk with the checkpoint
            if chosen.name == "log.jsonl":
                saved = last_checkpoint(out)
                lines = chosen.read_bytes().splitlines(keepends=True)
                forced = sum(len(x) for x in lines if x.endswith(b"\n") and json.loads(x)["step"] <= saved)
            os.truncate(chosen, forced + int((chosen.stat().st_size - forced) * rng.random()))
            result["cut"] = str(chosen.relative_to(out))


def counting(file: Path) -> Callable[[], None]:
    """Prepares a child: a byte for each rename or fsync is added to a file."""

    def prepare() -> None:
        number = os.open(file, os.O_WRONLY | os.O_APPEND)

        def note(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                os.write(number, b".")
                return inner(*arguments, **options)

            return call

        os.fsync, os.rename = note(os.fsync), note(os.rename)  # type: ignore[assignment]
        os.replace, os.unlink = note(os.replace), note(os.unlink)  # type: ignore[assignment]

    return prepare


def warm_up() -> None:
    """Import what the commands need once, before any process is forked."""
    import diffusers  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for command in COMMANDS.values():
        import_module(f"rcg.scripts.{command.module}")
    for name in ("pipeline", "training.loop", "encoders.train", "rdm.train", "image_gen.train", "image_gen.tokenizers.train",
                 "data.build", "data.groups", "data.clusters", "published.convert", "inversion.invert", "inversion.engine",
                 "inversion.representations", "synthesis.run", "sampling.bulk", "eval.frechet"):  # fmt: skip
        import_module(f"rcg.{name}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=120, help="number of the last case, plus one")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long; the next run goes on")
    parser.add_argument("--again", action="store_true", help="repeat the cases that had a problem")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), help="these commands")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begun = time.monotonic()
    from rcg import __version__
    from rcg.core.files import write_json

    warm_up()
    chaos = Chaos(args.work.resolve())
    chaos.build()
    cases: dict[int, dict[str, Any]] = {}
    if args.out.exists():
        cases = {c["case"]: c for c in json.loads(args.out.read_text())["cases"]}
    if args.again:
        cases = {k: c for k, c in cases.items() if "problem" not in c}
    for number in range(args.first, args.cases):
        if number in cases or list(COMMANDS)[number % len(COMMANDS)] not in args.only:
            continue
        if time.monotonic() - begun > args.seconds:
            break
        cases[number] = chaos.run(number)
        print(json.dumps(cases[number]), flush=True)
        done = [cases[k] for k in sorted(cases)]
        write_json(args.out, {
            "rcg": __version__,
            "machine": {"cpu": cpu_name(), "python": platform.python_version()},
            "disturbed": sum(c.get("status") != 0 or "other" in c for c in done),
            "problems": sum("problem" in c for c in done),
            "steps_lost": sum(c.get("lost", 0) for c in done),
            "by_fault": dict(Counter(c["fault"] for c in done)),
            "by_command": dict(Counter(c["command"] for c in done)),
            "cases": done,
        })  # fmt: skip


if __name__ == "__main__":
    main()
