"""Folders belong to one process at a time, and what killed processes left goes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rcg.core import files
from rcg.core.errors import UserError
from rcg.core.files import alone, atomic_file, atomic_folder, claimed, remove_folder, sweep

HOLD = """
import sys, time
from pathlib import Path
from rcg.core.files import atomic_folder, claimed
with claimed(Path(sys.argv[1])) if sys.argv[2] == "claim" else atomic_folder(Path(sys.argv[1])) as place:
    if place:
        (place / "half").write_text("x")
    print("here", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, how: str) -> subprocess.Popen[bytes]:
    """A process that has claimed a folder, or is making one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_two_take_turns_at_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with alone(file):  # there is none to wait for
        file.write_text("0")
    both = threading.Barrier(2)

    def add() -> None:
        both.wait()
        with alone(file):
            number = int(file.read_text())
            time.sleep(0.2)
            with atomic_file(file) as new:
                new.write_text(str(number + 1))

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() == "2"


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    process = hold(tmp_path / "out", "claim")
    try:
        for _ in range(2):
            with (
                pytest.raises(UserError, match=r"another process is writing into .*out; wait"),
                claimed(tmp_path / "out"),
            ):
                pass
            os.kill(process.pid, signal.SIGSTOP)  # it stands still and keeps the folder
    finally:
        process.kill()
        process.wait()
    with claimed(tmp_path / "out"):  # the system let go of it
        pass


def test_processes_of_one_run_share_a_folder(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, shared=True),
        claimed(tmp_path, shared=True),
        pytest.raises(UserError),
        claimed(tmp_path),
    ):
        pass
    with claimed(tmp_path), pytest.raises(UserError), claimed(tmp_path, shared=True):
        pass


def test_runs_of_several_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, shared=True, run={"seed": 0}), claimed(out, shared=True, run={"seed": 0}):
        assert (out / ".run").exists()
        with pytest.raises(UserError, match="another run is writing"), claimed(out, shared=True, run={"seed": 1}):
            pass
        with claimed(out, shared=True):  # whoever it is
            assert (out / ".run").exists()
        with claimed(out, shared=True, run={"seed": 0}):
            pass
    assert not out.exists()
    out.mkdir()
    (out / ".run").write_text("of a killed process")
    with claimed(out, shared=True, run={"seed": 1}):
        pass
    assert not any(out.iterdir())
    (out / ".run").write_text("of a killed process")
    with claimed(out):
        assert not any(out.iterdir())


def test_never_two_runs_at_once(tmp_path: Path) -> None:
    out, inside, seen = tmp_path / "out", [0, 0], [0, 0]
    wrong: list[str] = []
    guard = threading.Lock()

    def work(run: int) -> None:
        end = time.monotonic() + 60
        try:
            while min(seen) < 40 and time.monotonic() < end:
                time.sleep(random.uniform(0, 0.02))  # longer than it is in there, so that the others get in, too
                try:
                    with claimed(out, shared=True, run=run):
                        with guard:
                            inside[run] += 1
                            seen[run] += 1
                            if inside[1 - run]:
                                wrong.append("both")
                        (out / f"{threading.get_ident()}").touch()
                        (out / f"{threading.get_ident()}").unlink()
                        with guard:
                            inside[run] -= 1
                except UserError:
                    continue
        except BaseException as e:
            wrong.append(repr(e))
            raise

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(seen) >= 40
    assert not out.exists() or not any(out.iterdir())


def test_where_there_are_no_locks_all_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with claimed(tmp_path, shared=True, run=0), claimed(tmp_path, shared=True, run=1):
        assert not any(tmp_path.iterdir())


def test_a_claim_leaves_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with claimed(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"), claimed(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a" / "x.json") as left:
        left.write_text("{}")
        (tmp_path / "a" / left.name).with_name(".y.json.0123abcd.json").write_text("half")
    (tmp_path / ".step-00000004.0123abcd").mkdir()
    (tmp_path / ".step-00000004.0123abcd" / "state").write_text("half")
    (tmp_path / ".model.0123abcd.old").mkdir()
    kept = [".hidden", ".config.json", ".000000.work/x.png", "a.0123abcd", ".lock"]
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    sweep(tmp_path)
    held = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert held == sorted(["a/x.json", *kept])


def test_of_folders_with_a_dot_in_their_name_too(tmp_path: Path) -> None:
    left = []
    for name in ("lr0.1", "v2.1-small"):
        with atomic_folder(tmp_path / name) as place:
            left.append(place)
    for place in left:  # as by killed processes
        place.mkdir()
    with atomic_folder(tmp_path / "lr0.1"):
        pass
    assert [place.exists() for place in left] == [False, True]
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lr0.1", "v2.1-small"]


def test_a_dead_process_s_half_folder_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    living, dead = hold(tmp_path / "model", "make"), hold(tmp_path / "model", "make")
    dead.kill()
    dead.wait()
    try:
        assert len(list(tmp_path.glob(".model.*"))) == 2
        with atomic_folder(tmp_path / "model") as place:
            (place / "whole").write_text("x")
        assert len(list(tmp_path.glob(".model.*"))) == 1
    finally:
        living.kill()
        living.wait()
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["whole"]


def test_without_locks_nobody_can_tell_the_dead_from_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on cluster file systems that are mounted without them."""

    def none(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with atomic_folder(tmp_path / "model") as living:
        (living / "half").write_text("x")
        with atomic_folder(tmp_path / "model") as place, claimed(place):
            (place / "whole").write_text("y")
        assert (living / "half").read_text() == "x"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "model") as place:
            (place / text).write_text(text)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as place:
        raise RuntimeError
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
@pytest.mark.parametrize("exchange", [True, False])
def test_several_put_a_folder_in_one_place(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for round in range(20):
        place, wrong = tmp_path / str(round), list[str]()
        all_here = threading.Barrier(4, timeout=60)

        def put(name: str, place: Path = place, wrong: list[str] = wrong, here: threading.Barrier = all_here) -> None:
            try:
                with atomic_folder(place) as new:
                    (new / "name").write_text(name)
                    here.wait()
            except BaseException as e:
                wrong.append(repr(e))
                raise

        threads = [threading.Thread(target=put, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert (place / "name").read_text() in "abcd"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


LIMITED = """
import errno, resource, sys
from pathlib import Path
import numpy as np
from rcg.core.files import reserve
from rcg.data.layout import save_array
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
file = Path(sys.argv[1])
for write in (
    lambda: save_array(file, np.ones(1 << 20)),
    lambda: (file.write_bytes(b""), np.lib.format.open_memmap(file, "w+", np.dtype("u1"), (1 << 15,)), reserve(file)),
):
    try:
        write()
        print("written")
    except OSError as e:
        print(errno.errorcode.get(e.errno))
"""


def test_who_may_not_write_is_told_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "x.npy"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["EFBIG", "written"], done.stderr


def test_room_is_kept_for_a_file_with_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "holes"
    with file.open("wb") as f:
        f.truncate(1 << 20)
    before = file.stat().st_blocks
    files.reserve(file)
    assert file.stat().st_blocks * 512 >= 1 << 20 or file.stat().st_blocks == before  # a disk that cannot
    assert file.read_bytes() == bytes(1 << 20)
    for number, raised in ((errno.EOPNOTSUPP, False), (errno.ENOSPC, True)):

        def refuse(*_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(OSError) if raised else contextlib.nullcontext():
            files.reserve(file)
    (tmp_path / "empty").touch()
    monkeypatch.undo()
    files.reserve(tmp_path / "empty")


def test_a_reader_always_finds_a_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as place:
        (place / "x").write_text("0")
    code = "import sys, os\nn = 0\nwhile True:\n    os.stat(sys.argv[1])\n    n += 1\n    if n == 100: print('here', flush=True)"
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "model" / "x")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    for i in range(50):
        with atomic_folder(tmp_path / "model") as place:
            (place / "x").write_text(str(i))
    time.sleep(0.05)
    assert reader.poll() is None
    reader.kill()
    reader.wait()


def test_removing_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "x").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *_: None)  # killed before it
        remove_folder(tmp_path / "step")
    assert not (tmp_path / "step").exists()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    inside, long = tmp_path / "file" / "x", tmp_path / "new" / ("x" * 300)

    def refused(write: Callable[[Path], AbstractContextManager[object]], place: Path) -> str:
        with pytest.raises(UserError) as e, write(place):
            pytest.fail("it was begun")
        assert [p.name for p in tmp_path.rglob("*") if p != long.parent] == ["file", "link"]
        return str(e.value).removeprefix(f"{place} ")

    for write in (claimed, atomic_file, atomic_folder):
        assert refused(write, inside) == "cannot be used (Not a directory); give another path."
        assert refused(write, long) == "cannot be used (File name too long); give another path."
    assert refused(atomic_file, long.with_name("x" * 250)) == "cannot be used (File name too long); give another path."
    assert refused(claimed, tmp_path / "link") == "cannot be used (File exists); give another path."
    for write in (claimed, atomic_folder):
        assert refused(write, tmp_path / "file") == "is a file; give the name of a folder."
    assert refused(atomic_file, tmp_path) == "is a folder; give the name of a file to write."
