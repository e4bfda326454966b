"""Work in parts: the same bytes as of one process, in any order."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.parts import Share, cannot_restart, job, restarted
from rcg.engines.ray_engine import run_on_ray
from rcg.inversion.stores import ClassFolders
from rcg.sampling.folder import SamplingFolder
from rcg.sampling.shard_folder import ShardFolder
from rcg.scripts import sample, synthesize, train_encoder, train_generator, train_rdm, train_tokenizer
from rcg.scripts._command import Spreading
from rcg.training.config import JOB, TrainingConfig
from tests.components import get_dummy_pipeline
from tests.engines.commands import WORKS, contents, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    get_dummy_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("work", WORKS)
def test_parts_leave_what_one_process_does(model: Path, tmp_path: Path, work: str) -> None:
    run(work, model, tmp_path / "one")
    for part in ("2/3", "3/3", "1/3"):
        run(work, model, tmp_path / "parts", "--part", part)
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) > 3


def test_shares() -> None:
    assert Share.parse("3/16") == Share(2, 16)
    assert list(Share(1, 3).of(8)) == [1, 4, 7]
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/3", "1/2/3", "", "١/٢"):
        with pytest.raises(UserError, match="is no part; give K/N"):
            Share.parse(text)


def test_runs_cover_all() -> None:
    assert [list(Share(rank, 3).run_of(10)) for rank in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert [len(Share(rank, 3).run_of(2)) for rank in range(3)] == [0, 1, 1]


def test_flags_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, says in (
        (Spreading(part="1/2", engine="ray"), "leave --part out"),
        (Spreading(ray_cpus=2), "--ray-cpus is for --engine ray"),
        (Spreading(part="3"), "is no part"),
    ):
        with pytest.raises(UserError, match=says):
            wrong.validate()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="leave it out under torchrun"):
        Spreading(part="1/2").validate()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="without torchrun"):
        run_on_ray(lambda: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        run_on_ray(lambda: None)  # type: ignore[arg-type, return-value]


def test_ray_without_what_ray_data_needs_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "ray" else None)
    with pytest.raises(UserError, match=r"pandas is missing; run: pip install 'ray\[data\]'"):
        run_on_ray(lambda: None)  # type: ignore[arg-type, return-value]


def test_a_cluster_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")  # as Ray does with RAY_ADDRESS=auto

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(
        UserError, match=r"cannot be reached \(Could not find .*\); start the cluster .* or unset RAY_ADD"
    ):
        run_on_ray(lambda: None)  # type: ignore[arg-type, return-value]


def test_clusters_want_the_whole_cache(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("cache", model, tmp_path / "c", "--clusters", "2", "--part", "1/2")
    assert "without --part when all are done" in capsys.readouterr().err


def test_restarts_that_would_hang_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cannot_restart() is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert cannot_restart() is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun" in str(cannot_restart())


RESTARTS = [("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"), ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")]


@pytest.mark.parametrize(("name", "count"), RESTARTS)
def test_a_restarted_command_goes_on_with_its_own_run(
    name: str, count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not restarted()
    monkeypatch.setenv(name, "5")
    monkeypatch.setenv(count, "0")
    assert not restarted()
    monkeypatch.setenv(count, "2")
    assert restarted()

    def config(**changes: Any) -> TrainingConfig:
        made = TrainingConfig(tmp_path, steps=1, lr=1.0, **changes)
        made.validate()
        return made

    assert not config().resume  # nothing is there yet
    (tmp_path / "training").mkdir()
    began = tmp_path / "training" / JOB
    for other in ({}, {name: "4"}, None):  # whose run is there: nobody's, another job's, one's of an older version
        write_json(began, other) if other is not None else began.unlink()
        with pytest.raises(UserError, match="already holds a run"):
            config()
        assert config(overwrite=True).overwrite
    write_json(began, job())
    own = config(overwrite=True)
    assert own.resume
    assert not own.overwrite


def begin(kind: str, out: Path, share: Share) -> None:
    """Begin a run into a folder, or go on with it."""
    if kind == "images":
        SamplingFolder(out, share).claim({}, model="m", resume=False, overwrite=False)
    elif kind == "shards":
        ShardFolder(out, share, "rcg-sample", "sampling.json").claim("m", {})
    else:
        ClassFolders(out, ["a"], share).claim({}, [], resume=False, overwrite=False)


@pytest.mark.parametrize("kind", ["images", "shards", "set"])
def test_restarted_drawing_goes_on_with_what_its_own_job_began(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configs(**changes: Any) -> list[Any]:
        drawn = synthesize.Config("m", tmp_path, captions="c.txt", **changes)
        made = [sample.Config(tmp_path, **changes), drawn]
        for config in made:
            config.validate()
        return made

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    begin(kind, tmp_path, Share.from_environment())  # by hand
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    begin(kind, tmp_path, Share.from_environment())
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    begin(kind, tmp_path, Share(1, 2))  # by an engine, whose worker knows of other jobs
    assert not any(config.resume for config in configs())  # it died before it began anything
    assert all(config.overwrite for config in configs(overwrite=True))
    begin(kind, tmp_path, Share.from_environment())
    assert all(config.resume and not config.overwrite for config in configs(overwrite=True))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert not any(config.resume for config in configs())
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("RANK", "0")  # it died before it threw away what an older run had left of its share
    assert all(config.overwrite for config in configs(overwrite=True))


def test_without_an_id_torchrun_is_known_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    several = job()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert restarted(job())
    assert not restarted(several)
    assert not restarted({"TORCHELASTIC_RUN_ID": f"none, process {os.getppid() + 1}"})


@pytest.mark.parametrize("command", [train_rdm, train_generator, train_encoder, train_tokenizer])
def test_training_commands_can_be_started_again(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / "out" / "training").mkdir(parents=True)
    write_json(tmp_path / "out" / "training" / JOB, job())
    more = ["--condition", "none"] if command is train_generator else []
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *more])
    assert str(tmp_path / "none") in capsys.readouterr().err  # --out is right, the data are not there
