"""A run goes on with another number of processes and computes the same."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rcg.core import draws
from rcg.core.dropout import Dropout
from rcg.core.errors import UserError
from rcg.core.rng import sample_seeds
from rcg.scripts._command import run_command
from rcg.training.checkpoints import CheckpointFolder
from rcg.training.loop import train
from rcg.training.stream import cut_rows
from tests.training.elastic import ROOT, compute, compute_one
from tests.training.stages import MadeOfAll, RegressionStage
from tests.training.test_loop import config, curve


def state(out: Path) -> dict[str, torch.Tensor]:
    """Everything of the last checkpoint: weights, optimiser, averages."""
    found = CheckpointFolder(out / "training/checkpoints", 2).load_newest()
    assert found is not None
    return found[1]


def assert_alike(a: Path, b: Path) -> None:
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    for key, value in one.items():
        x, y = value, other[key]
        if key.endswith(
            "attn.qkv.bias"
        ):  # a key's bias does nothing: its gradient is rounding, which AdamW makes large
            x, y = (torch.cat([b[: len(b) // 3], b[2 * len(b) // 3 :]]) for b in (x, y))
        torch.testing.assert_close(x, y, rtol=1e-3, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")
    losses = [[line["loss"] for line in curve(out) if "loss" in line] for out in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3, abs=1e-4)  # of the whole batch, whoever computed it


STAGES = ("regression", "ddpm", "flow", "mage", "synclr")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs that one process begins and two go on with, and runs that two begin; what the two said. (They start once.)"""
    folder = tmp_path_factory.mktemp("two")
    for stage in STAGES:
        compute_one(folder / stage, stage, 4, steps=12)
    on: list[dict[str, object]] = [
        {"out": folder / stage, "stage": stage, "stop": 8, "steps": 12, "resume": True} for stage in STAGES
    ]
    job: dict[str, object] = {"stage": "mage", "steps": 6, "batch_size": 7}
    begin = [job | {"out": folder / "whole", "stop": 0}, job | {"out": folder / "part", "stop": 3}]
    return folder, compute(2, on + begin)


@pytest.mark.timeout(900)  # busy machines take long
def test_one_two_one_processes_compute_what_one_does(
    two: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = two
    sentence = "The run was computed by 1 process until now and goes on with 2: the same batches, views and noise"
    assert said.count(sentence) == len(STAGES)
    for stage in STAGES:
        compute_one(tmp_path / stage, stage, 0, steps=12)
        compute_one(folder / stage, stage, 0, steps=12, resume=True)
        assert_alike(tmp_path / stage, folder / stage)
    assert "computed by 2 processes until now and goes on with 1:" in capsys.readouterr().out


@pytest.mark.timeout(900)
def test_what_two_processes_began_one_finishes(two: tuple[Path, str]) -> None:
    """The parts of a batch that shared a mask ratio stay together; a batch of 7 does not divide by 2."""
    folder, _ = two
    compute_one(folder / "part", "mage", 0, steps=6, batch_size=7, resume=True)
    assert_alike(folder / "whole", folder / "part")


def test_micro_batches_change_no_noise(tmp_path: Path) -> None:
    for name, micro in (("one", None), ("parts", 3)):
        train(MadeOfAll.made("flow"), config(tmp_path / name, micro_batch_size=micro))
    assert_alike(tmp_path / "one", tmp_path / "parts")


def test_too_many_processes_and_uneven_comparisons_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 3)
    stage = RegressionStage()
    stage.compares = True
    with pytest.raises(UserError, match="batch-size 8 does not split over 3 processes"):
        train(stage, config(tmp_path / "run"))
    with pytest.raises(UserError, match="batch-size 2 does not split"):
        train(RegressionStage(), config(tmp_path / "run", batch_size=2))


def test_a_second_run_of_connected_processes_trains_and_the_command_ends_the_group(tmp_path: Path) -> None:
    @dataclass
    class Config:
        pass

    def runs(_: Config) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        for name in ("a", "b"):
            train(RegressionStage(), config(tmp_path / name, steps=1))
            assert torch.distributed.is_initialized()

    run_command("test", Config, runs, "", [])
    assert not torch.distributed.is_initialized()


def test_a_run_that_goes_on_with_other_micro_batches_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for micro, stop in ((None, 1), (4, 2), (4, 3), (None, 4)):
        stage = RegressionStage()
        stage.compares = True
        changes = {"steps": 4, "micro_batch_size": micro, "resume": stop > 1}
        train(stage, config(tmp_path / "run", **changes), watch=lambda step, stop=stop: step == stop)  # type: ignore[misc]
        expected = {2: "compares 4 at a time, not 8", 4: "compares 8 at a time, not 4"}.get(stop)
        printed = capsys.readouterr().out
        assert ("Other micro-batches" in printed) is (expected is not None)
        assert expected is None or expected in printed


def test_rows_are_cut_at_borders() -> None:
    assert cut_rows(2, 10, 4) == [range(2, 6), range(6, 10)]
    assert cut_rows(2, 10, 4, [0, 4, 8]) == [range(2, 4), range(4, 8), range(8, 10)]
    assert cut_rows(0, 8, 8, [0]) == [range(0, 8)]


def _drawn(seeds: np.ndarray, start: int, whole: int) -> list[torch.Tensor]:
    torch.manual_seed(start)  # must not matter
    with draws.drawing_for(seeds, start, whole, group=7):
        return [
            draws.uniform((len(seeds), 3)),
            draws.normal_like(torch.empty(len(seeds), 2, 5)),
            draws.integers(1000, len(seeds)),
            draws.stratified(len(seeds)),
            draws.uniform((2 * len(seeds), 3)),  # two rows a sample
            Dropout(0.4)(torch.ones(len(seeds), 5, 7)),
            Dropout(0.4)(torch.ones(4 * len(seeds), 3)),
            torch.full((len(seeds),), draws.shared(), dtype=torch.float64),
        ]


def test_draws_do_not_depend_on_neighbours() -> None:
    seeds = sample_seeds(3, np.zeros(8, np.int64), np.arange(8))
    whole = _drawn(seeds, 0, 8)
    for a, b in itertools.pairwise([0, 3, 4, 8]):
        for x, y in zip(whole, _drawn(seeds[a:b], a, 8), strict=True):
            assert torch.equal(x[a * len(x) // 8 : b * len(x) // 8], y)


def test_draws_are_spread_as_they_should_be() -> None:
    seeds = sample_seeds(3, np.zeros(4000, np.int64), np.arange(4000))
    uniform, normal, integers, places, pairs, kept, _, _ = _drawn(seeds, 0, 4000)
    for x in (uniform, pairs):
        assert abs(float(x.mean()) - 0.5) < 0.01
        assert float(x.min()) >= 0
        assert float(x.max()) < 1
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert int(integers.max()) == 999
    assert integers.unique().numel() > 950
    assert torch.equal((places * 4000).long(), torch.arange(4000))
    assert abs(float((kept == 0).float().mean()) - 0.4) < 0.01
    rows = (kept.flatten(1) == 0).float()
    assert abs(float(torch.corrcoef(rows[:, :2].T)[0, 1])) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0]]))[0, 1])) < 0.05


def test_places_stay_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _, device: torch.full((4096,), 1 - 2**-24))
    assert float(draws.stratified(4096).max()) < 1


def test_without_a_loop_draws_are_torchs_own() -> None:
    torch.manual_seed(0)
    drawn = [draws.uniform((4, 3)), draws.normal_like(torch.empty(2, 2)), draws.integers(9, 5), draws.stratified(2)]
    torch.manual_seed(0)
    for x, y in zip(drawn, [torch.rand(4, 3), torch.randn(2, 2), torch.randint(9, (5,)), (torch.arange(2) + torch.rand(2)) / 2], strict=True):  # fmt: skip
        assert torch.equal(x, y)


def test_an_uninterrupted_run_of_one_process_is_unchanged_by_a_stop(tmp_path: Path) -> None:
    train(MadeOfAll.made("mage"), config(tmp_path / "whole", steps=9))
    train(MadeOfAll.made("mage"), config(tmp_path / "cut", steps=9), watch=lambda step: step == 4)
    train(MadeOfAll.made("mage"), config(tmp_path / "cut", steps=9, resume=True))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    for key, value in state(tmp_path / "whole").items():
        assert torch.equal(value, state(tmp_path / "cut")[key]), key


def test_models_that_are_cut_up_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator, DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(
        UserError, match="does not split a model by DEEPSPEED; let accelerate's configuration use plain"
    ):
        train(RegressionStage(), config(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_torchrun_starts_a_killed_worker_again(tmp_path: Path) -> None:
    """Rank 1 kills itself once at step 7; the group goes on from the checkpoint of step 5 and ends as an unbroken run does."""
    job = {"out": tmp_path / "run", "stage": "flow", "stop": 0, "steps": 12, "kill_at": 7}
    more = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--max-restarts", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "tests.training.elastic",
            json.dumps([job], default=str),
        ],
        cwd=ROOT, env=os.environ | more, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").read_text() == "at step 7"
    assert "Started again: going on from step 5." in done.stdout
    train(MadeOfAll.made("flow"), config(tmp_path / "one", steps=12))
    assert_alike(tmp_path / "one", tmp_path / "run")
