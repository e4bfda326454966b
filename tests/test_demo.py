"""The demo's script, with commands that only note how they were called; and its picture."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
COMMANDS = ("cache", "train-rdm", "train-generator", "assemble", "sample", "eval")
ALL = [f"rcg-{name}" for name in COMMANDS] + ["python"]


def environment(room: Path, **bodies: str) -> dict[str, str]:
    """With stubs of all commands before others, of which some do more."""
    (room / "bin").mkdir()
    for name in ALL:
        body = bodies.get(name.removeprefix("rcg-").replace("-", "_"), "")
        (room / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{room}/calls"\n{body}\n')
        (room / "bin" / name).chmod(0o755)
    own = ("DATA", "TEST", "BOX", "N", "GUIDANCE", "RDM_GUIDANCE", "CLUSTERS", "EXTRACTOR")
    kept = {k: v for k, v in os.environ.items() if k not in own}
    return {**kept, "PATH": f"{room / 'bin'}{os.pathsep}{os.environ['PATH']}", "OUT": str(room / "out")}


def calls(room: Path, name: str) -> list[str]:
    return [line for line in (room / "calls").read_text().splitlines() if line.startswith(name)]


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_only_what_was_begun_is_resumed_and_the_judge_stays(tmp_path: Path) -> None:
    env = environment(tmp_path)
    (tmp_path / "out/images-baseline").mkdir(parents=True)  # killed before its manifest
    (tmp_path / "out/images-rcg").mkdir()
    (tmp_path / "out/images-rcg/sampling.json").write_text("{}")
    subprocess.run(["sh", "demo/run.sh"], cwd=ROOT, env=env, check=True, capture_output=True)
    resumed = [call for call in calls(tmp_path, "rcg-sample") if "--resume" in call]
    assert len(resumed) == 1
    assert f"--out {tmp_path}/out/images-rcg --resume" in resumed[0]
    assert len(calls(tmp_path, "rcg-sample")) == 3
    assert all("--extractor inception" in call for call in calls(tmp_path, "rcg-eval"))


def test_a_failing_evaluation_is_no_lack_of_inception(tmp_path: Path) -> None:
    env = environment(tmp_path, eval="exit 2")
    ran = subprocess.run(["sh", "demo/run.sh"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "not at hand" not in ran.stdout
    assert "No further: score_guided and score_unguided failed." in ran.stderr
    assert len(calls(tmp_path, "rcg-eval")) == 2  # of the first that fails in a branch nothing follows


def test_a_failure_in_the_background_ends_the_script_with_its_words(tmp_path: Path) -> None:
    train = 'case "$*" in *unconditional*) echo "UserError: the disk is full." >&2; exit 2;; esac'
    env = environment(tmp_path, train_generator=train)
    ran = subprocess.run(["sh", "demo/run.sh"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "UserError: the disk is full." in ran.stdout
    assert ran.stderr == "No further: baseline failed.\n"
    assert len(calls(tmp_path, "rcg-sample")) == 1  # the other branch's
    assert not calls(tmp_path, "rcg-eval")


def test_each_branch_takes_half_of_the_cores_that_may_be_used(tmp_path: Path) -> None:
    env = environment(tmp_path, train_generator=f'echo "$OMP_NUM_THREADS" >>"{tmp_path}/threads"')
    (tmp_path / "bin/nproc").write_text("#!/bin/sh\necho 13\n")
    (tmp_path / "bin/nproc").chmod(0o755)
    subprocess.run(["sh", "demo/run.sh"], cwd=ROOT, env=env, check=True, capture_output=True)
    assert (tmp_path / "threads").read_text().split() == ["7", "7"]


def test_without_inception_the_encoder_judges(tmp_path: Path) -> None:
    env = environment(tmp_path, python='[ "$1" != -c ] || { echo "UserError: no network." >&2; exit 1; }')
    ran = subprocess.run(["sh", "demo/run.sh"], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert "UserError: no network.\n== Inception is not at hand" in ran.stdout
    assert all("--extractor encoder:rcg/cifar10" in call for call in calls(tmp_path, "rcg-eval"))


def test_an_interruption_ends_the_training_in_the_background_too(tmp_path: Path) -> None:
    number = tmp_path / "number"
    train = (
        f'case "$*" in *unconditional*) echo $$ >"{number}.new"; mv "{number}.new" "{number}";; esac; exec sleep 100'
    )
    env = environment(tmp_path, train_generator=train)
    ran = subprocess.Popen(
        ["sh", "demo/run.sh"],
        cwd=ROOT,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(2000):
        if number.exists() and len(calls(tmp_path, "rcg-train-generator")) == 2:
            break
        time.sleep(0.01)
    behind = int(number.read_text())
    try:
        os.killpg(ran.pid, signal.SIGINT)
        assert ran.wait(timeout=60) == 130
        for _ in range(2000):
            if not alive(behind):
                break
            time.sleep(0.01)
        assert not alive(behind)
    finally:
        if alive(behind):
            os.kill(behind, signal.SIGKILL)


@pytest.mark.parametrize("count", [3, 60])
def test_the_picture_takes_as_many_as_there_are(count: int, tmp_path: Path) -> None:
    (tmp_path / "images-rcg").mkdir()
    for i in range(count):
        Image.new("RGB", (4, 4)).save(tmp_path / "images-rcg" / f"{i:06d}.png")
    pictures = runpy.run_path(str(ROOT / "demo/report.py"))["pictures"]
    assert len(pictures("rcg", tmp_path, "")) == min(count, 48)
