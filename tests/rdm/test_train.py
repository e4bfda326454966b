"""The training objective against the reference; the stage's figures, picture and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import nn

from rcg.core.errors import UserError
from rcg.rdm.ddpm.objective import DDPMObjective
from rcg.rdm.draw import draw_many
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.sampling import sample_representations
from rcg.rdm.schedule import PredictionType
from rcg.rdm.train import RDMStage, hold_out_share
from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from rcg.training.schedules import EMA
from rcg.training.subset import Subset
from tests.rdm import golden
from tests.rdm.data import modes


def _parameter(rdm: RepresentationMLP, name: str) -> torch.Tensor:
    name = name.removeprefix("grad:").removeprefix("model.diffusion_model.")
    if name.endswith(("cond_rows", "cond_stage_model.embedding.weight")):
        name = "class_embedding.weight"
    return rdm.get_parameter(name)


@pytest.mark.parametrize("kind", golden.KINDS)
def test_loss_and_gradients_equal_the_reference(kind: str) -> None:
    rdm = golden.model(kind, "raw")
    objective = DDPMObjective(rdm)
    x0, noise, t = (golden.tensor(kind, k) for k in ("loss_x0", "loss_noise", "t"))
    assert golden.relative(objective.diffuse(x0, t, noise), golden.tensor(kind, "loss_xnoisy")) < 1e-5
    losses = objective.loss(x0, t, noise, golden.labels(kind))
    assert golden.relative(losses, golden.tensor(kind, "loss_per_sample")) < 1e-5
    loss = losses.mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(golden.tensor(kind, "loss")), rel=1e-5)
    names = golden.arrays(kind)["grad_names"].tolist()
    assert len(names) == len(list(rdm.parameters()))
    for name, norm in zip(names, golden.arrays(kind)["grad_norms"], strict=True):
        gradient = _parameter(rdm, name).grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(float(norm), rel=1e-4)
    for name in golden.arrays(kind):
        if name.startswith("grad:") and "cond_rows" not in name:
            assert golden.relative(_parameter(rdm, name).grad, golden.tensor(kind, name)) < 1e-4, name  # type: ignore[arg-type]
    if kind == "classcond":
        rows = rdm.class_embedding.weight.grad[golden.tensor(kind, "labels")]  # type: ignore[index]
        assert golden.relative(rows, golden.tensor(kind, "grad:cond_rows")) < 1e-4


@pytest.mark.parametrize("kind", golden.KINDS)
def test_three_optimiser_steps_equal_the_reference(kind: str) -> None:
    """Weights, averages and losses; the reference averages before the optimiser steps, so the test does too."""
    rdm = golden.model(kind, "raw")
    stage = RDMStage(DDPMObjective(rdm), modes(8, 24))
    groups = stage.param_groups("rdm", float(golden.arrays(kind)["train_weight_decay"]))
    optimizer = torch.optim.AdamW(groups, lr=float(golden.arrays(kind)["train_lr"]), betas=(0.9, 0.999))
    watch = golden.arrays(kind)["train_watch"].tolist()
    average = EMA(stage.ema_modules(), float(golden.arrays(kind)["train_ema_decay"]))
    for i in range(3):
        loss = stage.objective.loss(
            golden.tensor(kind, "train_rep"),
            golden.tensor(kind, "train_t")[i],
            golden.tensor(kind, "train_noise")[i],
            golden.labels(kind, "train_labels"),
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        assert loss.item() == pytest.approx(float(golden.arrays(kind)["train_losses"][i]), rel=1e-4)
        norm = torch.nn.utils.get_total_norm([p.grad for p in rdm.parameters() if p.grad is not None])
        assert float(norm) == pytest.approx(float(golden.arrays(kind)["train_grad_norms"][i]), rel=1e-4)
        average.update()
        optimizer.step()
        for name in watch:
            for mine, theirs in (
                (rdm.get_parameter(name), f"step{i + 1}"),
                (average.state()[f"rdm.{name}"], f"ema{i + 1}"),
            ):
                expected = golden.tensor(kind, f"train_{theirs}:{name}")
                assert golden.relative(mine.detach()[: len(expected)], expected) < 1e-4, (i, name, theirs)
        if kind == "classcond":  # also the rows that no label touched, which only decay
            rows = rdm.class_embedding.weight.detach()[[0, 3, 7, 999]]
            torch.testing.assert_close(rows, golden.tensor(kind, f"train_step{i + 1}:cond_rows"), rtol=1e-6, atol=1e-6)


def test_forward_draws_time_noise_and_dropped_labels() -> None:
    torch.manual_seed(0)
    rdm = RepresentationMLP(4, 8, 1, num_classes=3, context_dim=4, class_dropout=0.25)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append((t, labels))
        return x0.sum(1)

    objective = DDPMObjective(rdm)
    objective.loss = loss  # type: ignore[method-assign,assignment]
    batch = {"representations": torch.ones(20_000, 4), "labels": torch.arange(20_000) % 3}
    objective(batch)
    t, labels = seen[0]
    assert (int(t.min()), int(t.max())) == (0, 999)
    assert float(t.float().mean()) == pytest.approx(499.5, abs=8)
    assert float((labels == 3).float().mean()) == pytest.approx(0.25, abs=0.02)
    kept = labels != 3
    assert torch.equal(labels[kept], batch["labels"][kept])


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_targets_follow_diffusers_definitions(prediction_type: PredictionType) -> None:
    """A model that predicts its target exactly makes diffusers' scheduler find x0 again."""
    x0, noise, t = torch.randn(5, 6), torch.randn(5, 6), torch.tensor([1, 200, 500, 800, 998])
    rdm = RepresentationMLP(6, 8, 1)
    objective = DDPMObjective(rdm, prediction_type)
    # the new model predicts 0, so that its loss is the mean square of the target
    with torch.no_grad():
        squares = objective.loss(x0, t, noise)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        prediction_type=prediction_type,
        clip_sample=False,
    )
    target = (
        {"sample": x0, "epsilon": noise, "v_prediction": scheduler.get_velocity(x0, noise, t)}
        if hasattr(scheduler, "get_velocity")
        else {}
    )
    torch.testing.assert_close(squares, target[prediction_type].square().mean(1), rtol=1e-4, atol=1e-5)
    noisy = scheduler.add_noise(x0, noise, t)
    torch.testing.assert_close(objective.diffuse(x0, t, noise), noisy, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(1000)
    for i, step in enumerate(t.tolist()):
        found = scheduler.step(target[prediction_type][i : i + 1], step, noisy[i : i + 1]).pred_original_sample
        torch.testing.assert_close(found, x0[i : i + 1], rtol=1e-3, atol=1e-3)


def test_weight_decay_hits_every_parameter() -> None:
    stage = RDMStage(DDPMObjective(RepresentationMLP(8, 16, 1, num_classes=2, context_dim=4)), modes(20))
    (group,) = stage.param_groups("rdm", 0.01)
    assert group["weight_decay"] == 0.01
    assert len(group["params"]) == len(list(stage.rdm.parameters()))
    assert stage.ema_modules() == {"rdm": stage.rdm}
    assert not stage.objective.state_dict().keys() - {f"rdm.{k}" for k in stage.rdm.state_dict()}


def test_images_are_encoded_by_the_frozen_encoder() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 8))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) @ self.weight

    encoder = Encoder()
    stage = RDMStage(DDPMObjective(RepresentationMLP(8, 16, 1)), modes(20), encoder=encoder)
    images = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    batch = stage.prepare({"images": images, "labels": torch.tensor([1, 2])})
    torch.testing.assert_close(batch["representations"], torch.full((2, 8), 3.0))
    assert batch.keys() == {"representations", "labels"}
    assert not encoder.weight.requires_grad
    before = stage.identity()
    encoder.weight.data += 1
    assert stage.identity() != before


def test_holding_out_splits_the_data_for_good() -> None:
    data = modes(100)
    training, held = hold_out_share(data, 0.2)
    assert (len(training), len(held)) == (80, 20)
    assert sorted([*training.indices, *held.indices]) == list(range(100))
    assert np.array_equal(hold_out_share(data, 0.2)[1].indices, held.indices)
    assert training.fingerprint != held.fingerprint
    batch = held.batch(np.array([3, 1]), np.zeros(2, np.uint64))
    assert batch["indices"].tolist() == held.indices[[3, 1]].tolist()
    assert len(hold_out_share(data, 0.5, most=10)[1]) == 10
    with pytest.raises(UserError, match="set --held-out-share 0"):
        hold_out_share(modes(20), 0.05)
    assert isinstance(held, Subset)


def test_histograms_are_of_what_the_evaluation_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stage, draws = RDMStage(DDPMObjective(RepresentationMLP(8, 16, 1), "sample"), modes(40)), list[torch.Tensor]()
    monkeypatch.setattr("rcg.rdm.train.draw_many", lambda *a: draws.append(draw_many(*a)) or draws[-1])
    stage.evaluate(0)
    shown = stage.distributions(0)
    assert len(draws) == 1
    assert torch.equal(shown["representation_norm/sampled"], draws[0].norm(dim=1))
    assert shown["representation_norm/real"].shape == (40,)
    assert stage.distributions(0).keys() == shown.keys()  # without an evaluation before, it draws
    assert len(draws) == 2


@pytest.mark.parametrize("conditional", [False, True])
def test_training_brings_the_frechet_distance_down_to_its_floor(tmp_path: Path, conditional: bool) -> None:
    """The whole stage through the loop: modes are learned, the figures show it, the export samples them."""
    classes = {"num_classes": 3, "context_dim": 8, "class_dropout": 0.1} if conditional else {}
    torch.manual_seed(0)
    rdm = RepresentationMLP(8, 48, 2, **classes)  # type: ignore[arg-type]
    stage = RDMStage(DDPMObjective(rdm, "sample"), modes(4000), heldout=modes(1000, seed=1))
    before = stage.evaluate(0)
    config = TrainingConfig(
        out=tmp_path, steps=400, batch_size=128, lr=3e-3, ema_decay=0.98, weight_decay=0.01, device="cpu",
        precision="fp32", eval_every=400, warmup=20,
    )  # fmt: skip
    figures = train(stage, config)
    assert figures.keys() == before.keys() == {"rep_fd", "rep_fd_floor", "val_loss"}
    assert figures["rep_fd_floor"] == before["rep_fd_floor"]
    assert figures["rep_fd"] < 0.1 * before["rep_fd"]
    assert figures["rep_fd"] < 0.35
    assert figures["val_loss"] < 0.5 * before["val_loss"]
    assert list((tmp_path / "training" / "samples").glob("*.png"))

    trained = RepresentationMLP.from_pretrained(tmp_path)
    scheduler = DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert scheduler.config.prediction_type == "sample"
    data = modes(2000, seed=2)
    for label in range(3) if conditional else [None]:
        for guidance in (1.0, 1.5) if conditional else (1.0,):
            out = sample_representations(
                trained, scheduler, 200, class_labels=label, guidance_scale=guidance,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            centres = np.stack([data.vectors[data.labels == c].mean(0) for c in range(3)])
            nearest = torch.cdist(out, torch.from_numpy(centres)).min(1)
            assert float((nearest.values < 1.5).float().mean()) > 0.9
            if label is None:
                assert nearest.indices.bincount(minlength=3).min() > 30
            else:
                assert float((nearest.indices == label).float().mean()) > 0.95


def test_the_target_travels_into_the_exported_scheduler(tmp_path: Path) -> None:
    stage = RDMStage(DDPMObjective(RepresentationMLP(8, 16, 1), "v_prediction"), modes(20))
    stage.export(tmp_path)
    scheduler = DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert torch.equal(RepresentationMLP.from_pretrained(tmp_path).input_proj.weight, stage.rdm.input_proj.weight)
    assert stage.identity()["prediction_type"] == "v_prediction"


def test_mistakes_say_so() -> None:
    with pytest.raises(UserError, match="choose one of sample, epsilon, v_prediction"):
        DDPMObjective(RepresentationMLP(8, 16, 1), "x0")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="3 samples are too few"):
        RDMStage(DDPMObjective(RepresentationMLP(8, 16, 1)), modes(3))
