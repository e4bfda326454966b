"""What only a GPU can show: the same values as on a CPU, the same images for any batch, and that nobody waits for it.

`RCG_TEST_DEVICE=cpu python -m pytest -m gpu tests/test_gpu.py` rehearses all but the last on a CPU.
"""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcg.core import replay
from rcg.core.precision import in_precision
from rcg.core.rng import Noise, sample_generators
from rcg.rdm.methods import METHODS
from rcg.rdm.schedule import fast_scheduler, paper_scheduler
from rcg.rdm.solver import Solver
from rcg.training.checkpoints import CheckpointFolder
from rcg.training.config import TrainingConfig
from rcg.training.loop import _Run, train
from tests.components import get_dummy_pipeline
from tests.drawings import DRAWINGS, drawn
from tests.test_compile import given
from tests.training.objectives import GENERATORS, NAMES, made

DEVICE: Any = os.environ.get("RCG_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs CUDA"),
]


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm().clamp_min(1e-30))


def moved(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "mage"])
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_models_compute_what_they_do_on_a_cpu(name: str, compiled: bool) -> None:
    stage: Any = made(name)
    model = stage.model.eval()
    with torch.enable_grad():
        args, kwargs = given(stage, model)
    for parameter in model.parameters():  # outputs start at 0
        parameter.add_(torch.randn(parameter.shape) * 0.05)
    expected = model(*args, **kwargs)
    there = copy.deepcopy(model).to(DEVICE)
    args, kwargs = [moved(a) for a in args], {k: moved(v) for k, v in kwargs.items()}
    found = (torch.compile(there) if compiled else there)(*args, **kwargs)
    assert distance(found, expected) < 3e-3  # convolutions may use TF32
    assert distance(in_precision(there, "bf16")(*args, **kwargs), expected) < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_the_same_in_any_batch(method: Any) -> None:
    pipe = get_dummy_pipeline(method=method).to(DEVICE)
    options: dict[str, Any] = {"output_type": "pt", "guidance_scale": 2.0, "precision": "fp32"}
    whole = pipe(6, generator=sample_generators(0, 0, 6), **options)
    parts = [pipe(n, generator=sample_generators(0, start, n), **options) for start, n in ((0, 1), (1, 3), (4, 2))]
    assert distance(torch.cat([p.representations for p in parts]), whole.representations) < 1e-4
    assert (torch.cat([p.codes for p in parts]) == whole.codes).float().mean() > 0.98  # a last bit may flip a token
    there = get_dummy_pipeline(method=method)(6, generator=sample_generators(0, 0, 6), **options)
    assert distance(whole.representations, there.representations) < 1e-3


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What has been recorded of any model since the test began."""
    made: list[Any] = []

    def record(*args: Any) -> replay.Captured:
        made.append(replay.capture(*args))
        return made[-1]

    monkeypatch.setattr(replay, "REPLAYER", replay.Replayer(record))
    with replay.replaying():
        yield made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_replayed_drawings_are_the_same(name: str, precision: Any, recordings: list[Any]) -> None:
    drawn(name, DEVICE, precision=precision, sizes=(24, 7))
    assert bool(recordings) == (DEVICE == "cuda")


@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_pipeline_is_the_same(method: Any, recordings: list[Any]) -> None:
    pipe = get_dummy_pipeline(method=method).to(DEVICE)
    options: dict[str, Any] = {"output_type": "pt", "guidance_scale": 2.0, "precision": "fp32"}
    steps: list[int] = []

    def watch(pipe: Any, step: int, total: int, tensors: dict[str, Tensor]) -> None:
        steps.append(step)

    for first in (0, 24, 48):
        found = pipe(24, generator=sample_generators(0, first, 24), **options)
        with replay.replaying(False):
            plain = pipe(24, generator=sample_generators(0, first, 24), callback_on_step_end=watch, **options)
        assert distance(found.representations, plain.representations) < 1e-4
        assert (found.codes == plain.codes).float().mean() > 0.98
        assert distance(found.images, plain.images) < 0.1
    assert steps == list(range(5)) * 3
    assert len(recordings) == (2 if DEVICE == "cuda" else 0)  # the RDM's and MAGE's


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA records")
def test_what_cannot_be_recorded_is_said() -> None:
    """In a process of its own: a recording that fails leaves traces on the device."""
    code = """
import torch
from rcg.core import replay
class Reading(torch.nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y * float(y.sum())
model = Reading(3, 3).eval().cuda()
with torch.no_grad(), replay.replaying():
    for _ in range(2):
        replay.replayed(model, model, "f")(torch.ones(2, 3, device="cuda"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Reading cannot be recorded as a CUDA graph" in done.stderr.splitlines()[-1]


def config(out: Path, steps: int, **more: Any) -> TrainingConfig:
    return TrainingConfig(out, steps=steps, batch_size=8, lr=1e-3, device=DEVICE, save_every=2, log_every=2, **more)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_same_run(name: str, precision: Any, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(made(name), config(whole, 6, precision=precision))
    train(made(name), config(cut, 6, precision=precision), watch=lambda step: step == 2)
    train(made(name), config(cut, 6, precision=precision, resume=True))
    found = [CheckpointFolder(out / "training/checkpoints", 2).load_newest() for out in (whole, cut)]
    assert found[0] is not None
    assert found[1] is not None
    states: list[dict[str, list[Tensor]]] = [{}, {}]
    for state, (_, tensors, _) in zip(states, [f for f in found if f is not None], strict=True):
        for key, value in tensors.items():
            if value.is_floating_point() and ".bias" not in key:  # some biases' gradients are rounding alone
                state.setdefault(key.split(".")[0], []).append(value.double().flatten())
    assert states[0].keys() == states[1].keys()
    for kind, values in states[0].items():  # weights, their averages, the optimiser's moments
        assert distance(torch.cat(states[1][kind]), torch.cat(values)) < 2e-2, kind  # sums of a GPU have no fixed order


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA tells who waits")
@pytest.mark.parametrize("scheduler", [paper_scheduler(), fast_scheduler()], ids=["paper", "fast"])
def test_solvers_of_representations_do_not_wait_for_the_device(scheduler: Any) -> None:
    solver = Solver(scheduler, 10, generator=Noise([1, 2], DEVICE))
    x = solver.start(torch.randn(2, 8, device=DEVICE))
    for i, t in enumerate(solver.timesteps):
        with no_waiting() if i else contextlib.nullcontext():
            x = solver.step(x, t, x, solver.model_input(x, t))


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA tells who waits")
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_does_not_wait_for_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _Run._step

    def step(self: _Run, number: int, batch: Any) -> Any:
        with no_waiting() if number > 2 else contextlib.nullcontext():  # what is set up in the first steps may wait
            return original(self, number, batch)

    monkeypatch.setattr(_Run, "_step", step)
    train(made(name), config(tmp_path / "run", 6))
