"""Work in parts: the same bytes as of one process, in any order."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcg.core.errors import UserError
from rcg.core.parts import Share, cannot_restart, restarted
from rcg.engines.ray_engine import run_on_ray
from rcg.scripts._command import Spreading
from rcg.training.config import TrainingConfig
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


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_command_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not restarted()
    monkeypatch.setenv(name, "0")
    assert not restarted()
    monkeypatch.setenv(name, "2")
    assert restarted()
    assert not TrainingConfig(tmp_path).resume  # nothing is there yet
    (tmp_path / "training").mkdir()
    config = TrainingConfig(tmp_path, overwrite=True)
    assert config.resume
    assert not config.overwrite
