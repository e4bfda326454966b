"""The loop: exact resume, accumulation, averages, guards, and refusals."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import shutil
import signal
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from torch import nn

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.training.checkpoints import restore_state
from rcg.training.config import TrainingConfig
from rcg.training.loop import MAX_BAD_STEPS, train
from rcg.training.schedules import EMA, decay_factor, ema_decay, lr_factor
from rcg.training.stage import Batch
from rcg.training.stream import SampleStream, StepBatches, _leave_signals, load_batches
from tests.forked import Forked
from tests.training.stages import Points, Regression, RegressionStage


def config(out: Path, **changes: object) -> TrainingConfig:
    base = {
        "steps": 23,
        "batch_size": 8,
        "lr": 1e-2,
        "save_every": 5,
        "log_every": 4,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainingConfig(out=out, **{**base, **changes})


def curve(out: Path) -> list[dict[str, float]]:
    """A run's log without what is of the clock or the memory, and so another in every run."""
    lines = [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]
    timings = ("samples_per_second", "gpu_gib", "time/", "run/")
    kept = [{k: v for k, v in line.items() if not k.startswith(timings)} for line in lines]
    return [line for line in kept if line.keys() > {"step"}]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_equal_runs(a: Path, b: Path) -> None:
    assert curve(a) == curve(b)
    for key, value in weights(a).items():
        assert torch.equal(value, weights(b)[key]), key


class StopAt(RegressionStage):
    """Sends this process a signal after some step."""

    def __init__(self, step: int, number: signal.Signals, **options: int) -> None:
        super().__init__(**options)
        self.stop = step, number

    def on_step_end(self, step: int, total_steps: int) -> None:
        if step == self.stop[0]:
            os.kill(os.getpid(), self.stop[1])


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_and_resumed_equals_unbroken(tmp_path: Path, objectives: int, precision: str) -> None:
    train(RegressionStage(objectives), config(tmp_path / "whole", precision=precision))
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(11, signal.SIGTERM, objectives=objectives), config(tmp_path / "cut", precision=precision))
    train(RegressionStage(objectives), config(tmp_path / "cut", precision=precision, resume=True))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_model_that_was_thrown_away_is_not_taken_for_the_new_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    train(RegressionStage(), config(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(RegressionStage, "fit", full)
        with pytest.raises(MemoryError):
            train(RegressionStage(), config(tmp_path, overwrite=True))
    assert (tmp_path / "config.json").exists()  # nothing was begun
    assert (tmp_path / "training/checkpoints").exists()
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(3, signal.SIGTERM), config(tmp_path, overwrite=True))
    assert not (tmp_path / "config.json").exists()
    train(RegressionStage(), config(tmp_path, resume=True))
    assert (tmp_path / "config.json").exists()


SCRIPT = """
import signal, sys
from pathlib import Path
from rcg.training.loop import train
from tests.training.test_loop import StopAt, RegressionStage, config
out, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "kill":
    train(StopAt(int(sys.argv[3]), signal.SIGKILL), config(out))
else:
    train(RegressionStage(), config(out, resume=True))
"""


@pytest.mark.parametrize("step", [3, 14])  # before the first checkpoint, and between two
def test_killed_and_resumed_equals_unbroken(tmp_path: Path, step: int) -> None:
    train(RegressionStage(), config(tmp_path / "whole"))
    assert Forked("-c", SCRIPT, tmp_path / "cut", "kill", str(step)).wait() == -signal.SIGKILL
    train(RegressionStage(), config(tmp_path / "cut", resume=True))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_its_job_starts_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(RegressionStage(), config(tmp_path / "whole"))
    train(RegressionStage(), config(tmp_path / "cut", steps=3))  # somebody else's
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(11, signal.SIGTERM), config(tmp_path / "cut", overwrite=True))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(RegressionStage(), config(tmp_path / "cut", overwrite=True))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("step", "watched"), [(11, False), (23, False), (23, True)])  # an evaluation is due there
def test_what_a_quick_stop_left_out_is_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int, watched: bool
) -> None:
    watch = (lambda step: False) if watched else None
    figures = train(RegressionStage(), config(tmp_path / "whole", eval_every=11))
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(step, signal.SIGTERM), config(out, eval_every=11), watch=watch)
    sentence = f"Stopped at step {step}; a checkpoint is written, go on with --resume."
    assert (sentence in capsys.readouterr().out) != watched  # who watches says it in his own words
    assert not any("eval/error" in line for line in curve(out) if line["step"] == step)
    assert train(RegressionStage(), config(out, eval_every=11, resume=True), watch=watch) == figures
    assert_equal_runs(tmp_path / "whole", out)


def test_a_second_run_into_one_folder_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(UserError, match="another process is writing into"):
        train(RegressionStage(), config(tmp_path))
    assert list(tmp_path.iterdir()) == []
    train(RegressionStage(), config(tmp_path))


class Fitting(RegressionStage):
    """Counts how often it looks at its data first."""

    fits = 0

    def fit(self, device: torch.device) -> None:
        self.fits += 1


def test_what_a_checkpoint_holds_is_not_found_again(tmp_path: Path) -> None:
    for steps, resume, fits in ((3, False, 1), (5, True, 0)):
        stage = Fitting()
        train(stage, config(tmp_path / "run", steps=steps, resume=resume))
        assert stage.fits == fits
    shutil.rmtree(tmp_path / "run/training/checkpoints")
    train(again := Fitting(), config(tmp_path / "run", steps=3, resume=True))
    assert again.fits == 1


def test_processes_that_see_different_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(RegressionStage(), config(tmp_path / "run", steps=3))
    monkeypatch.setattr("accelerate.Accelerator.gather", lambda _, step: torch.cat([step, torch.tensor([-1])]))
    with pytest.raises(UserError, match=r"see different checkpoints in .* \(of steps 0, 3\); give an --out that all"):
        train(RegressionStage(), config(tmp_path / "run", steps=5, resume=True))


def test_a_torn_log_and_half_written_files_are_no_obstacle(tmp_path: Path) -> None:
    train(RegressionStage(), config(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(StopAt(11, signal.SIGTERM), config(tmp_path / "cut"))
    with (tmp_path / "cut/training/log.jsonl").open("ab") as log:
        log.write(b'{"step": 12, "lo\xff\xfe')
    half = tmp_path / "cut/training/checkpoints/.step-00000015.0123abcd"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    train(RegressionStage(), config(tmp_path / "cut", resume=True))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert not half.exists()


def test_accumulation_computes_the_same_gradient(tmp_path: Path) -> None:
    for name, micro in (("one", None), ("three", 3)):
        stage = RegressionStage(dropout=0.0, norm=False)
        stage.prepare = lambda batch: batch  # type: ignore[method-assign]
        train(stage, config(tmp_path / name, micro_batch_size=micro))
    a, b = weights(tmp_path / "one"), weights(tmp_path / "three")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


def test_accelerates_own_accumulation_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, steps in ((tmp_path / "one", "1"), (tmp_path / "four", "4")):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        train(RegressionStage(), config(out, steps=4, clip_grad=0.1))
    assert_equal_runs(tmp_path / "one", tmp_path / "four")


def test_paused_and_gone_on_with_equals_unbroken(tmp_path: Path) -> None:
    train(RegressionStage(), config(tmp_path / "whole"))
    seen: list[int] = []
    train(RegressionStage(), config(tmp_path / "cut"), watch=lambda step: seen.append(step) or step == 7)  # type: ignore[func-returns-value]
    assert seen == list(range(1, 8))
    assert not (tmp_path / "cut/model.safetensors").exists()
    train(
        RegressionStage(), config(tmp_path / "cut", resume=True), watch=lambda step: step == 23
    )  # its end is no pause
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_paused_run_may_get_another_length(tmp_path: Path) -> None:
    train(RegressionStage(), config(tmp_path / "run"), watch=lambda step: step == 7)
    train(RegressionStage(), config(tmp_path / "run", steps=12, resume=True), watch=lambda step: False)
    assert curve(tmp_path / "run")[-1]["step"] == 12
    assert (tmp_path / "run/model.safetensors").is_file()


@pytest.mark.parametrize("pause", [7, None])
def test_a_signal_in_the_last_evaluation_stops_what_follows(tmp_path: Path, pause: int | None) -> None:
    class Stop(RegressionStage):
        def evaluate(self, seed: int) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(seed)

    end = config(tmp_path / "run").steps
    with pytest.raises(KeyboardInterrupt):
        train(Stop(), config(tmp_path / "run", eval_every=pause or end), watch=lambda step: step == pause)
    train(RegressionStage(), config(tmp_path / "run", resume=True), watch=lambda step: False)
    assert curve(tmp_path / "run")[-1]["step"] == end
    train(Stop(), config(tmp_path / "alone", eval_every=end))  # nothing follows, and it is done


class StopGroupAt(StopAt):
    """Sends it and Ctrl-C to the workers, too, as a scheduler and a terminal do."""

    def on_step_end(self, step: int, total_steps: int) -> None:
        if step == self.stop[0]:
            for worker in active_children():
                for number in (signal.SIGINT, self.stop[1]):
                    os.kill(worker.pid or 0, number)
                    worker.join(0.1)
                assert worker.is_alive()
        super().on_step_end(step, total_steps)


def test_workers_change_nothing_and_outlive_signals(tmp_path: Path) -> None:
    train(RegressionStage(), config(tmp_path / "thread"))
    with pytest.raises(KeyboardInterrupt):
        train(StopGroupAt(11, signal.SIGTERM), config(tmp_path / "workers", num_workers=1))
    assert not active_children()
    train(RegressionStage(), config(tmp_path / "workers", resume=True))
    assert_equal_runs(tmp_path / "thread", tmp_path / "workers")


def test_a_worker_can_be_ended_once_the_training_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    closing = ctypes.c_bool()
    try:
        _leave_signals(closing, 0)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []
        closing.value = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [0]
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class Refused(Points):
    """Data that cannot be read."""

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        raise UserError("x.png cannot be read; mend it.")


def test_what_a_worker_cannot_read_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^x\.png cannot be read; mend it\.$"):
        next(load_batches(StepBatches(Refused(), 2, 0, 0, 1), 0, 3, num_workers=1, pin=False))


def test_no_worker_is_started_where_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.training.stream.DataLoader", lambda *_, **__: pytest.fail("a loader was made"))
    assert list(load_batches(StepBatches(Points(), 2, 0, 0, 1), 3, 3, num_workers=2, pin=False)) == []


def test_a_second_run_may_take_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState().device = torch.device("meta")  # as an earlier run left it
    try:
        train(RegressionStage(), config(tmp_path / "a", steps=1))
        PartialState().device = torch.device("meta")
        monkeypatch.setattr("rcg.training.loop.connected", lambda: True)
        with pytest.raises(UserError, match="--device cpu: accelerate has chosen meta"):
            train(RegressionStage(), config(tmp_path / "b", steps=1))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_what_fused_adamw_remembers_lies_where_the_weights_do() -> None:
    model = nn.Linear(2, 1, bias=False)
    state = {"model.o.weight": torch.ones(1, 2), "optimizer.o.weight.step": torch.tensor(3.0)}
    found: dict[str, torch.Tensor] = {}
    optimizer = SimpleNamespace(remember=lambda _, values: found.update(values))
    restore_state(state, {"o": model.to("meta")}, {"o": optimizer})  # type: ignore[dict-item]
    assert found["step"].device == model.weight.device


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import torch; from rcg.training.loop import train;"
        "from tests.training.test_loop import RegressionStage, config;"
        "torch._C._get_accelerator = lambda *_: torch.device('cuda');"  # a machine with a GPU, which is not used
        "s = RegressionStage(dropout=0.0, norm=False); s.prepare = lambda b: b;"
        "train(s, config(Path(sys.argv[1])))"
    )
    port = str(20000 + os.getpid() % 20000)
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "1",
    }
    processes = [
        Forked("-c", code, tmp_path / "two", env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
    stage = RegressionStage(dropout=0.0, norm=False)
    stage.prepare = lambda batch: batch  # type: ignore[method-assign]
    train(stage, config(tmp_path / "one"))
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


def test_exports_averaged_weights(tmp_path: Path) -> None:
    stage = RegressionStage()
    naive = {k: v.clone() for k, v in stage.objectives["o0"].net.named_parameters()}
    original = stage.on_step_end
    n = 0

    def follow(step: int, total: int) -> None:
        nonlocal n
        n += 1
        d = min(0.9, (1 + n) / (10 + n))
        for key, value in stage.objectives["o0"].net.named_parameters():
            naive[key] = d * naive[key] + (1 - d) * value.detach()
        original(step, total)

    stage.on_step_end = follow  # type: ignore[method-assign]
    train(stage, config(tmp_path / "run", ema_decay=0.9))
    for key, value in naive.items():
        torch.testing.assert_close(weights(tmp_path / "run")["net." + key], value, rtol=1e-5, atol=1e-6)


def test_a_decay_of_no_average_is_said_to_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(RegressionStage):
        def ema_modules(self) -> dict[str, nn.Module]:
            return {}

    for stage, changes, said in (
        (Plain(), {"ema_decay": 0.9}, True),
        (Plain(), {}, False),
        (RegressionStage(), {"ema_decay": 0.9}, False),
    ):
        train(stage, config(tmp_path, steps=1, overwrite=True, **changes))
        assert ("--ema-decay plays no part" in capsys.readouterr().out) == said


class Poisoned(RegressionStage):
    """Its loss is NaN in some steps."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def prepare(self, batch: Batch) -> Batch:
        self.calls += 1
        return batch | {"y": batch["y"] * float("nan")} if self.calls in self.bad else batch


def test_a_bad_batch_is_skipped(tmp_path: Path) -> None:
    train(Poisoned({4, 9}), config(tmp_path / "run"))
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run").values())
    assert all(line.get("loss", 0.0) is not None for line in curve(tmp_path / "run"))


def test_a_skipped_step_leaves_weights_and_optimiser_as_they_are(tmp_path: Path) -> None:
    states = []
    for steps in (6, 7):
        stage = Poisoned({7})
        torch.manual_seed(0)
        stage.objectives = {"o0": Regression(6, 0.1, norm=False)}
        out = tmp_path / str(steps)
        train(stage, config(out, steps=steps, lr_schedule="constant", clip_grad=1.0))
        newest = max((out / "training/checkpoints").iterdir())
        states.append(load_file(newest / "state.safetensors"))
    kept = [key for key in states[0] if key.startswith(("model.", "optimizer."))]
    assert len(kept) == 16  # 4 parameters, and for each: step, first and second moment
    assert all(torch.equal(states[0][key], states[1][key]) for key in kept)


def test_divergence_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not been finite"):
        train(Poisoned(set(range(7, 100))), config(tmp_path / "run"))
    kept = sorted((tmp_path / "run/training/checkpoints").iterdir())
    state = load_file(kept[-1] / "state.safetensors")
    assert all(torch.isfinite(v).all() for v in state.values())
    assert MAX_BAD_STEPS <= 16


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="holds no run to go on with"):
        train(RegressionStage(), config(out, resume=True))
    assert not out.exists()
    train(RegressionStage(), config(out))
    with pytest.raises(UserError, match="already holds a run"):
        train(RegressionStage(), config(out))
    with pytest.raises(UserError, match="width"):
        train(RegressionStage(width=3), config(out, resume=True))
    with pytest.raises(UserError, match=r"begun with other settings \(--batch-size 8 → 4\); give what"):
        train(RegressionStage(), config(out, resume=True, batch_size=4))
    before, lines = weights(out), curve(out)
    last = {k.removeprefix("eval/"): v for line in lines[-2:] for k, v in line.items() if k.startswith("eval/")}
    assert train(RegressionStage(), config(out, resume=True)) == last != {}  # finished: nothing to do
    assert curve(out) == lines
    assert all(torch.equal(v, weights(out)[k]) for k, v in before.items())
    train(RegressionStage(), config(out, overwrite=True, seed=1))
    assert not all(torch.equal(v, weights(out)[k]) for k, v in before.items())
    for name, value in (("batch_size", 0), ("lr", -1.0), ("steps", 0), ("ema_decay", 1.0)):
        with pytest.raises(UserError, match=name.replace("_", "-")):
            train(RegressionStage(), config(tmp_path / "other", **{name: value}))


def test_a_longer_run_does_not_warm_up_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rates(out: Path) -> dict[int, float]:
        return {line["step"]: line["lr"] for line in curve(out) if "lr" in line}

    flags: dict[str, Any] = {"warmup": 0.5, "lr_schedule": "constant", "log_every": 1, "lr": 1.0}
    out = tmp_path / "run"
    train(RegressionStage(), config(out, steps=8, **flags))
    train(RegressionStage(), config(out, steps=16, resume=True, **flags))
    train(RegressionStage(), config(out, steps=40, resume=True, **flags))
    found = rates(out)
    assert [found[step] for step in (1, 4)] == pytest.approx([0.2, 0.8])
    assert {found[step] for step in range(5, 41)} == {1.0}
    train(RegressionStage(), config(out, steps=60, resume=True, **{**flags, "warmup": 55}))  # asked for anew
    assert rates(out)[60] == 1.0
    assert rates(out)[41] == pytest.approx(41 / 56)
    older = json.loads((meta := sorted((out / "training/checkpoints").iterdir())[-1] / "meta.json").read_text())
    assert older.pop("warmup") == [55, 55]
    meta.write_text(json.dumps(older))
    train(RegressionStage(), config(out, steps=70, resume=True, **{**flags, "warmup": 55}))
    capsys.readouterr()
    train(RegressionStage(), config(tmp_path / "short", steps=4, lr=1.0, warmup=9))
    assert "rises over 9 steps, but the run has 4: it ends at 40% of the peak" in capsys.readouterr().out
    with pytest.raises(UserError, match="no effect with --lr-schedule constant"):
        config(tmp_path / "x", lr_schedule="constant", min_lr_ratio=0.1).validate()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rcg.training import checkpoints

    real = checkpoints.save_file
    calls = []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) > 2:
            Path(path).write_bytes(b"half")
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        train(RegressionStage(), config(tmp_path / "cut"))
    monkeypatch.setattr(checkpoints, "save_file", real)
    folder = tmp_path / "cut/training/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000005", "step-00000010"]
    train(RegressionStage(), config(tmp_path / "cut", resume=True))
    train(RegressionStage(), config(tmp_path / "whole"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_copy_of_a_checkpoint_beside_it_is_no_checkpoint(tmp_path: Path) -> None:
    train(RegressionStage(), config(tmp_path, steps=5))
    folder = tmp_path / "training/checkpoints"
    shutil.copytree(folder / "step-00000005", folder / "step-00000005-copy")
    train(RegressionStage(), config(tmp_path, steps=11, resume=True))
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000005-copy", "step-00000010", "step-00000011"]


def test_stream_is_a_permutation_per_epoch() -> None:
    stream = SampleStream(10, seed=3)
    indices, epochs = stream.take(0, 35)
    for epoch in range(3):
        assert sorted(indices[epochs == epoch]) == list(range(10))
    assert not np.array_equal(indices[:10], indices[10:20])
    pieces = [SampleStream(10, seed=3).take(s, 7)[0] for s in range(0, 35, 7)]
    assert np.array_equal(np.concatenate(pieces), indices)


def test_schedules() -> None:
    cosine = TrainingConfig(out=Path("x"), steps=100, lr=1.0, warmup=0.1)
    factors = [lr_factor(s, 100, cosine) for s in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == pytest.approx(1.0)
    assert factors[-1] < 1e-3
    assert factors[55] == pytest.approx(0.5, abs=1e-6)
    assert [ema_decay(n, 0.9999) for n in (1, 10**6)] == [2 / 11, 0.9999]
    assert {decay_factor(s, 100, cosine) for s in range(100)} == {1.0}
    growing = TrainingConfig(out=Path("x"), steps=101, lr=1.0, weight_decay=0.04, weight_decay_end=0.2)
    assert [0.04 * decay_factor(s, 101, growing) for s in (0, 50, 100)] == pytest.approx([0.04, 0.12, 0.2])
    growing.weight_decay = 0.0
    with pytest.raises(UserError, match=r"--weight-decay of 0 cannot grow to --weight-decay-end 0\.2"):
        growing.validate()


def test_ema_gives_the_weights_back() -> None:
    module = torch.nn.Linear(3, 3)
    ema = EMA({"m": module}, 0.5)
    with torch.no_grad():
        module.weight.add_(1)
    ema.update()
    own = copy.deepcopy(module.weight)
    with ema.applied():
        assert not torch.equal(module.weight, own)
    assert torch.equal(module.weight, own)


def test_images_in_the_output_folder_are_nobodys_to_replace(tmp_path: Path) -> None:
    """A folder of images that is called training, or images beside where the model would lie."""
    (tmp_path / "mine/training/cats").mkdir(parents=True)
    (tmp_path / "mine/training/cats/a.png").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.JPG").write_bytes(b"x")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/manifest.json").write_text("{}")
    for name, says in (("mine", "a folder training that no run made"), ("photos", "a.JPG"), ("cache", "manifest.json")):
        for flags in ({}, {"overwrite": True}):
            with pytest.raises(UserError, match=says):
                train(RegressionStage(), config(tmp_path / name, **flags))
    with pytest.raises(UserError, match="a folder training that no run made"):
        train(RegressionStage(), config(tmp_path / "mine", resume=True))
    assert (tmp_path / "mine/training/cats/a.png").is_file()
    train(RegressionStage(), config(tmp_path / "run"))
    (tmp_path / "run/curve.png").write_bytes(b"x")  # put beside a run, it is no reason not to go on with that
    train(RegressionStage(), config(tmp_path / "run", resume=True))
    train(RegressionStage(), config(tmp_path / "run", overwrite=True))
    assert (tmp_path / "run/curve.png").is_file()
