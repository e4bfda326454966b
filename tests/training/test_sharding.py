"""FSDP: computes what one process does, holds half of it, and is not to be seen in what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType
from torch import nn

from rcg.core.components import load_model
from rcg.core.errors import UserError
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.rdm.flow.flow_mlp import FlowMLP
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.training.checkpoints import CheckpointFolder
from rcg.training.loop import train
from rcg.training.schedules import EMA
from rcg.training.sharding import Replicated, Sharded, _call, _check_shared, fsdp_plugin, spread_of
from rcg.training.shards import cut, gather, is_cut, joined, norm, own, whole
from rcg.training.stream import cut_rows
from tests.training import objectives
from tests.training.elastic import ROOT, compute
from tests.training.sharded import BAD_STEP, FSDP, compute_one, shard
from tests.training.stages import RegressionStage
from tests.training.test_elastic import assert_alike, state
from tests.training.test_loop import config, curve

COMPUTED = ("flow", "muon")


def job(out: Path, stage: str, stop: int = 0, **changes: object) -> dict[str, object]:
    more = {"optimizer": "muon"} if stage == "muon" else {}
    return {"out": out, "stage": stage, "stop": stop, "steps": 12, **more, **changes}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs of two processes with FSDP, of one process, and of both in turns; what the first of the two said."""
    folder = tmp_path_factory.mktemp("two")
    jobs: list[dict[str, object]] = []
    for stage in COMPUTED:
        compute_one(**job(folder / "one" / stage, stage))  # type: ignore[arg-type]
        compute_one(**job(folder / "turns" / stage, stage, 4))  # type: ignore[arg-type]
        jobs += [job(folder / "two" / stage, stage), job(folder / "turns" / stage, stage, 8, resume=True)]
    compute_one(**job(folder / "one/mage", "mage"))  # type: ignore[arg-type]
    compute_one(**job(folder / "turns/mage", "mage", 4))  # type: ignore[arg-type]
    jobs += [job(folder / "turns/mage", "mage", 8, resume=True)]
    jobs += [job(folder / "cut", "flow", 5), job(folder / "cut", "flow", resume=True)]
    jobs += [job(folder / "poisoned", "poisoned", save_every=1, keep_checkpoints=9, lr_schedule="constant")]
    jobs += [job(folder / "micro", "flow", micro_batch_size=3, batch_size=7)]
    said = shard(jobs)
    for stage in (*COMPUTED, "mage"):
        compute_one(**job(folder / "turns" / stage, stage, resume=True))  # type: ignore[arg-type]
    return folder, said


@pytest.mark.timeout(900)  # busy machines take long
@pytest.mark.parametrize("stage", COMPUTED)
def test_two_processes_compute_what_one_does(two: tuple[Path, str], stage: str) -> None:
    folder, said = two
    assert "FSDP: 100.0% of" in said
    assert_equal_figures(folder / "one" / stage, folder / "two" / stage)
    assert_alike(folder / "one" / stage, folder / "two" / stage)


def assert_equal_figures(a: Path, b: Path) -> None:
    """But for those of the main process's own part of a batch."""
    one, other = curve(a), curve(b)
    assert [line.keys() for line in one] == [line.keys() for line in other]
    assert any("grad_norm" in line for line in one)
    for x, y in zip(one, other, strict=True):
        for key in (key for key in x if key in ("step", "lr", "epoch", "grad_norm") or key.startswith("eval/")):
            assert y[key] == pytest.approx(x[key], rel=1e-5), key


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [*COMPUTED, "mage"])
def test_a_run_goes_on_with_and_without_fsdp(two: tuple[Path, str], stage: str) -> None:
    folder, _ = two
    assert_alike(folder / "one" / stage, folder / "turns" / stage)


def test_a_run_cut_in_two_equals_the_unbroken_one_to_the_bit(two: tuple[Path, str]) -> None:
    folder, _ = two
    assert_same(folder / "two/flow", folder / "cut")


def assert_same(a: Path, b: Path) -> None:
    assert curve(a) == curve(b)
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_step_that_is_not_finite_in_one_process_is_skipped_in_all(two: tuple[Path, str]) -> None:
    folder, _ = two
    states = [CheckpointFolder(folder / "poisoned/training/checkpoints", 9)]
    assert set(states[0].steps()) >= {BAD_STEP - 1, BAD_STEP, BAD_STEP + 1}
    before, at, after = (
        load_state(folder / f"poisoned/training/checkpoints/step-{step:08d}")
        for step in range(BAD_STEP - 1, BAD_STEP + 2)
    )
    kept = [key for key in before if key.startswith(("model.", "optimizer."))]
    assert len(kept) == 16
    assert all(torch.equal(before[key], at[key]) for key in kept)
    assert not any(torch.equal(at[key], after[key]) for key in kept)


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "state.safetensors")


def test_processes_with_unequal_shares_make_as_many_passes(two: tuple[Path, str]) -> None:
    """Of 7 samples one process has 3 and one pass, the other 4 and two."""
    folder, _ = two
    compute_one(**job(folder / "micro-one", "flow", micro_batch_size=3, batch_size=7))  # type: ignore[arg-type]
    assert_alike(folder / "micro-one", folder / "micro")


def test_each_process_holds_about_half(two: tuple[Path, str]) -> None:
    folder, _ = two
    for stage in COMPUTED:
        of = [json.loads((folder / f"two/{stage}/training/held-{rank}.json").read_text()) for rank in (0, 1)]
        for kind in ("weights", "optimizer", "averages"):
            (first, all_of), (second, _) = of[0][kind], of[1][kind]
            assert first + second == all_of
            assert all_of == 0 or max(first, second) < 0.55 * all_of
        assert of[0]["optimizer"][1] >= of[0]["weights"][1]


def test_the_component_that_is_left_has_the_averaged_weights(two: tuple[Path, str]) -> None:
    folder, _ = two
    out = folder / "two/flow"
    model = load_model(FlowMLP, out)
    averages = {k.removeprefix("ema.rdm."): v for k, v in state(out).items() if k.startswith("ema.")}
    assert averages.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(averages[name], parameter) for name, parameter in model.named_parameters())


# ---------------------------------------------------------------------- what needs no second process


def test_whole_tensors_pass_through() -> None:
    x, y = torch.randn(5, 3), nn.Parameter(torch.randn(4))
    assert not is_cut(x)
    assert whole(x) is x
    assert cut(x, x) is x
    assert joined(x, x) is x
    assert torch.equal(own(y), y)
    assert not own(y).requires_grad
    assert norm([x, y.detach()]) == pytest.approx(float(torch.cat([x.flatten(), y.detach()]).norm()))
    assert gather([("x", x), ("y", y)], keep=True)["x"] is x
    assert gather([("x", x)], keep=False) == {}


def test_rows_are_cut_into_as_many_pieces_as_others_need() -> None:
    assert cut_rows(0, 6, 3, least=4) == [range(0, 1), range(1, 3), range(3, 4), range(4, 6)]
    assert cut_rows(0, 2, 3, least=4) == [range(0, 1), range(1, 2)]
    assert cut_rows(3, 9, 3, [5], least=2) == cut_rows(3, 9, 3, [5])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FSDP_VERSION": "1"}, "shards by FSDP2 only; set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "does not use fsdp_offload_params; set it to false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "does not use fsdp_activation_checkpointing"),
        ({"FSDP_IGNORED_MODULES": "norm"}, "leave fsdp_ignored_modules out"),
        ({"FSDP_AUTO_WRAP_POLICY": "BEST_WRAP"}, "settings cannot be used .Invalid auto wrap policy"),
    ],
)
def test_settings_that_cannot_be_used_say_so(
    settings: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**FSDP, **settings}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        train(RegressionStage(), config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Somebody:
    """What `Sharded` asks of an accelerator before there are other processes."""

    num_processes = 2
    distributed_type = DistributedType.MULTI_CPU
    device = torch.device("cpu")
    is_main_process = True


def sharded(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Sharded:
    for name, value in {**FSDP, **settings}.items():
        monkeypatch.setenv(name, value)
    plugin = fsdp_plugin()
    assert plugin is not None
    found = spread_of(Somebody(), plugin, False, False)  # type: ignore[arg-type]
    assert isinstance(found, Sharded)
    return found


def names(spread: Sharded, model: nn.Module) -> list[str]:
    of = {module: name for name, module in model.named_modules()}
    return [of[unit] for unit in spread._units(model)]


def test_what_is_put_together_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PixelDiT(image_size=8, width=16, depth=2, num_heads=2, condition="none")
    assert names(sharded(monkeypatch), model) == ["blocks.0", "blocks.1"]
    by_size = {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "100000000"}
    assert names(sharded(monkeypatch, **by_size), model) == []
    numbers = sum(p.numel() for p in model.blocks[0].parameters())
    for least, found in ((numbers, ["blocks.0", "blocks.1"]), (numbers + 1, [])):
        assert names(sharded(monkeypatch, **by_size | {"FSDP_MIN_NUM_PARAMS": str(least)}), model) == found
    by_name = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block,Head"}
    assert set(names(sharded(monkeypatch, **by_name), model)) == {"blocks.0", "blocks.1", "head"}
    spread = sharded(monkeypatch, **by_name | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer"})
    with pytest.raises(UserError, match="names Layer, which the model has not; its blocks are Block,"):
        spread._check_names({"model": model})
    monkeypatch.delenv("FSDP_TRANSFORMER_CLS_TO_WRAP")
    assert names(sharded(monkeypatch, FSDP_AUTO_WRAP_POLICY="NO_WRAP"), model) == []


def test_one_process_and_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Somebody, "num_processes", 1)
    plugin = object()
    assert isinstance(spread_of(Somebody(), plugin, False, False), Replicated)  # type: ignore[arg-type]
    monkeypatch.setattr(Somebody, "num_processes", 2)
    with pytest.raises(UserError, match="--compile does not go with FSDP"):
        spread_of(Somebody(), plugin, False, True)  # type: ignore[arg-type]
    monkeypatch.setattr(Somebody, "parallelism_config", object(), raising=False)
    with pytest.raises(UserError, match="does not split a model by a parallelism_config; let accelerate's"):
        spread_of(Somebody(), plugin, False, False)  # type: ignore[arg-type]


def test_models_that_cannot_be_cut_are_refused() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    _check_shared("m", model, list(model.blocks))
    model.blocks[1].weight = model.blocks[0].weight
    with pytest.raises(UserError, match="two parts of the m model share a weight"):
        _check_shared("m", model, list(model.blocks))
    _check_shared("m", model, [])

    class Mixed(nn.Module):
        def forward(self, batch: object) -> None:
            raise RuntimeError("aten.mm: got mixed torch.Tensor and DTensor, need to convert")

    with pytest.raises(UserError, match="Mixed uses weights of a part outside of that part's own forward pass"):
        _call(Mixed(), "cpu", False, {})


def test_passes_that_cannot_be_as_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replicated, "in_step", True)
    from rcg.training import loop

    run = loop._Run(RegressionStage(), config(tmp_path / "run", batch_size=3, micro_batch_size=1), {}, None)
    run.world, run.borders = 2, []
    with pytest.raises(UserError, match="leave one of 2 processes without samples for some"):
        run._cut_batch()
    run.config.batch_size = 8
    assert [len(rows) for rows in run._cut_batch()] == [1, 1, 1, 1]


def test_averages_of_whole_models_keep_their_names() -> None:
    module = nn.Linear(2, 2)
    ema = EMA({"m": module}, 0.5)
    assert list(ema.averages()) == list(module.parameters())
    assert list(ema.state()) == ["m.weight", "m.bias"]


# ---------------------------------------------------------------------- long ones


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kinds", [objectives.ENCODERS, objectives.GENERATORS, (*objectives.TOKENIZERS, "codes")])
def test_every_objective_trains_as_without(kinds: Iterable[str], tmp_path: Path) -> None:
    """Four steps with evaluations and pictures; BatchNorm and codebooks look at each process's part in both ways."""
    settings = {"steps": 4, "eval_every": 2, "preview_every": 3, "save_every": 2, "lr": 1e-3, "log_every": 1}
    compute(2, [{"out": tmp_path / "ddp" / k, "stage": k, **settings} for k in kinds], "tests.training.sharded")
    shard([{"out": tmp_path / "fsdp" / k, "stage": k, **settings} for k in kinds])
    for kind in kinds:
        ddp, fsdp = tmp_path / "ddp" / kind, tmp_path / "fsdp" / kind
        for a, b in zip(curve(ddp), curve(fsdp), strict=True):
            assert a.keys() == b.keys()
            for key in [key for key in a if key.endswith("loss")]:
                assert b[key] == pytest.approx(a[key], rel=1e-5), (kind, key)
        one, other = state(ddp), state(fsdp)
        assert {k: (v.shape, v.dtype) for k, v in one.items()} == {k: (v.shape, v.dtype) for k, v in other.items()}
        weights = [k for k in one if k.startswith("model.") and one[k].is_floating_point() and "running_" not in k]
        x, y = (torch.cat([s[k].flatten() for k in weights]) for s in (one, other))
        assert float((x - y).norm() / x.norm()) < 1e-4, kind  # biases without effect have gradients of rounding alone
        assert {p.name for p in ddp.glob("training/samples/*")} == {p.name for p in fsdp.glob("training/samples/*")}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_and_resumed_equals_unbroken_to_the_bit(tmp_path: Path) -> None:
    shard([job(tmp_path / "whole", "flow")])
    with pytest.raises(AssertionError):
        shard([job(tmp_path / "cut", "flow", kill_at=7)])
    assert (tmp_path / "killed").read_text() == "at step 7"
    shard([job(tmp_path / "cut", "flow", resume=True)])
    assert_same(tmp_path / "whole", tmp_path / "cut")


YAML = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
"""
RDM = ["train_rdm", "--method", "ddpm", "--held-out-share", "0.2", "--width", "16", "--depth", "2"]
PIXELS = ["train_generator", "--arch", "pixel-dit", "--condition", "none", "--width", "16", "--depth", "2", "--num-heads", "2",
          "--held-out", "4", "--ema", "--clip-grad", "1.0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["rdm", "generator"])
def test_through_the_commands(kind: str, tmp_path: Path) -> None:
    from rcg.encoders.ssl_encoder import SSLEncoder

    torch.manual_seed(0)
    SSLEncoder("vit_tiny_patch16_224", objectives.VIT, 16).eval().save_pretrained(tmp_path / "encoder")
    (tmp_path / "fsdp.yaml").write_text(YAML)
    command, *flags = RDM if kind == "rdm" else PIXELS
    more = ["--encoder", str(tmp_path / "encoder")] if kind == "rdm" else ["--image-size", "16"]
    base = ["-m", f"rcg.scripts.{command}", "--data", "shapes:n=60,size=16", *flags, *more, "--batch-size", "8",
            "--steps", "6", "--lr", "1e-3", "--device", "cpu", "--precision", "fp32", "--save-every", "3"]  # fmt: skip
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for out, start in (("one", []), ("two", launch)):
        words = [sys.executable, *start, *base, "--out", str(tmp_path / out)]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("FSDP: 100.0% of" in done.stdout) is (out == "two")
    assert_equal_figures(tmp_path / "one", tmp_path / "two")
    model = load_model(RepresentationMLP if kind == "rdm" else PixelDiT, tmp_path / "two")
    averages = {k.split(".", 2)[2]: v for k, v in state(tmp_path / "two").items() if k.startswith("ema.")}
    assert averages.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(averages[name], parameter) for name, parameter in model.named_parameters())
    files = [{p.relative_to(tmp_path / out).as_posix() for p in (tmp_path / out).rglob("*")} for out in ("one", "two")]
    assert files[0] == files[1]
