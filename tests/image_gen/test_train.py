"""The generator's stage: what it learns, judges, draws and writes, and what data it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rcg.core.components import load_model, load_scheduler
from rcg.core.errors import UserError
from rcg.core.rng import sample_generators
from rcg.image_gen.mage.objective import MageObjective
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.train import GeneratorStage
from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from tests.image_gen.mage.test_transformer import tiny

OF_CLASS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))  # a class's representation


class Patterns:
    """Images whose tokens follow from their class, and whose representations tell the class."""

    fingerprint = "patterns"

    def __init__(self, size: int = 60, side: int = 4, drop: tuple[str, ...] = ()) -> None:
        self.labels = np.arange(size) % 3
        self.side = side
        self.drop = drop

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        labels = torch.from_numpy(self.labels[indices])
        places = torch.arange(self.side**2)
        tokens = (labels[:, None] * 3 + places % 2).reshape(-1, self.side, self.side)
        whole = {"tokens": tokens, "labels": labels, "representations": OF_CLASS[labels]}
        return {k: v for k, v in whole.items() if k not in self.drop}


class Pictures:
    """uint8 images of one grey level each."""

    fingerprint = "pictures"

    def __len__(self) -> int:
        return 30

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        images = torch.from_numpy(indices % 3 * 100).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
        return {"images": images, "indices": torch.from_numpy(indices)}


class GreyTokenizer(nn.Module):
    """One token for each 2 x 2 pixels: its grey level in eleven steps."""

    factor = 2

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.mean(dim=1), 2).mul(10).round().long()

    def decode(self, ids: Tensor, precision: str = "fp32") -> Tensor:
        return (ids / 10)[:, None].repeat(1, 3, 1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


class GreyEncoder(nn.Module):
    """Six times the mean grey."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3))[:, None].repeat(1, 6)


def stage(
    condition: str = "representation",
    data: Any = None,
    width: int = 16,
    tokenizer: nn.Module | None = None,
    **changes: Any,
) -> GeneratorStage:
    model = tiny(condition, width=width)
    scheduler = MaskGITScheduler(model.config.mask_token_id, 4, 1.0)
    objective = MageObjective(model, scheduler=scheduler, tokenizer=tokenizer)
    return GeneratorStage(objective, data or Patterns(), **changes)


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
def test_it_learns_to_use_its_condition(condition: str, tmp_path: Path) -> None:
    trained = stage(condition, width=64, ema=condition == "class", held_out=6)
    before = trained.evaluate(0)
    config = TrainingConfig(
        tmp_path,
        steps=120,
        batch_size=16,
        lr=6e-3,
        warmup=10,
        clip_grad=3.0,
        device="cpu",
        precision="fp32",
        ema_decay=0.9,
    )
    figures = train(trained, config)
    assert 1.5 < before["cross_entropy"] < 3.5  # log 11 = 2.4: it knew nothing of these six samples
    assert figures["cross_entropy"] < 0.5
    assert figures["accuracy"] > 0.95
    assert ("cross_entropy_unconditional" in figures) == (condition != "none")
    model, scheduler = load_model(MageTransformer, tmp_path), load_scheduler(tmp_path, MaskGITScheduler)
    assert model.config.condition == condition
    assert (scheduler.config.num_inference_steps, scheduler.config.temperature) == (4, 1.0)
    assert scheduler.config.mask_token_id == model.config.mask_token_id
    same = [torch.equal(value, model.state_dict()[name]) for name, value in trained.model.state_dict().items()]
    assert any(same) == all(same) == (condition != "class")  # there the average was saved
    labels = torch.arange(30) % 3
    given = {"representation": {"representations": OF_CLASS[labels]}, "class": {"class_labels": labels}, "none": {}}
    drawn = generate_tokens(
        model, scheduler, batch_size=30, generator=sample_generators(0, 0, 30), **given[condition]
    ).flatten(1)  # fmt: skip
    classes = drawn // 3
    assert (classes == classes.mode(dim=1).values[:, None]).float().mean() > 0.85  # an image is of one class,
    if condition != "none":
        assert (classes.mode(dim=1).values == labels).float().mean() > 0.95  # of the one asked for


@pytest.mark.parametrize("ema", [False, True])
def test_a_resumed_run_is_the_same_run(ema: bool, tmp_path: Path) -> None:
    common: dict[str, Any] = {"batch_size": 8, "lr": 1e-3, "device": "cpu", "precision": "fp32", "save_every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(stage(ema=ema), TrainingConfig(whole, steps=4, **common))
    shutil.copytree(whole, parts)
    newest = max((parts / "training" / "checkpoints").iterdir())
    shutil.rmtree(newest)  # as if it had been killed before
    for file in parts.glob("*.*"):
        file.unlink()
    train(stage(ema=ema), TrainingConfig(parts, steps=4, resume=True, **common))
    one, other = (load_model(MageTransformer, folder).state_dict() for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match="--resume"):
        train(stage(ema=not ema), TrainingConfig(parts, steps=6, resume=True, **common))


def test_held_out_samples_are_not_trained_on() -> None:
    judged = stage(held_out=5)
    assert (len(judged.dataset), len(judged.held_out)) == (55, 5)
    assert not set(judged.dataset.indices) & set(judged.held_out.indices)
    assert len(stage(held_out=500).held_out) == 6  # at most a tenth
    assert stage(held_out=0).evaluate(0) == {}
    assert stage(held_out=5).dataset.fingerprint != stage(held_out=4).dataset.fingerprint
    assert stage(held_out=5).evaluate(3) == stage(held_out=5).evaluate(3)


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
def test_from_images_through_frozen_models(condition: str) -> None:
    encoder = GreyEncoder() if condition == "representation" else None
    data: Any = Pictures()
    if condition == "class":
        with pytest.raises(UserError, match="condition class needs labels"):
            stage(condition, data, tokenizer=GreyTokenizer())
        return
    images = stage(condition, data, tokenizer=GreyTokenizer(), encoder=encoder)
    batch = images.prepare(data.batch(np.arange(3), np.zeros(3, np.uint64)))
    assert batch["tokens"].shape == (3, 4, 4)
    assert batch["tokens"][:, 0, 0].tolist() == [0, 4, 8]
    if condition == "representation":
        assert torch.allclose(batch["representations"][:, 0], torch.tensor([0.0, 100 / 255, 200 / 255]))
    assert "images" not in batch
    loss = images.objective(batch)["loss"]
    assert torch.isfinite(loss)
    picture = images.preview(0)
    assert picture is not None
    columns = 3 if condition == "representation" else 8  # as many as are held out, at most eight
    rows = 4 if condition == "representation" else 3
    assert picture.size == (columns * 10 - 2, rows * 10 - 2)


def test_preview_shows_the_real_images_above_their_draws() -> None:
    shown = stage(held_out=3, tokenizer=GreyTokenizer())
    picture = shown.preview(0)
    assert picture is not None
    real = np.asarray(picture)[:8, :8, 0]
    tokens = shown.held_out.batch(np.arange(1), np.zeros(1, np.uint64))["tokens"]
    assert np.array_equal(real[::2, ::2], (tokens[0] * 25.5).round().byte().numpy())
    assert np.array_equal(np.asarray(picture), np.asarray(shown.preview(0)))
    assert stage().preview(0) is None


def test_a_preview_is_of_the_weights_of_now_also_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.core.precision.pick_bf16", lambda *_: True)
    shown = stage("none", tokenizer=GreyTokenizer())
    assert np.asarray(shown.preview(0))[:8, :8].any()
    shown.model.mlm_layer.bias.data[..., 0] = 1e4  # unnoticed by autograd, as fused optimisers do it: all code 0
    assert not np.asarray(shown.preview(0))[:8, :8].any()


def test_identity_tells_what_a_resumed_run_must_share() -> None:
    first = json.dumps(stage().identity(), sort_keys=True)
    assert first == json.dumps(stage().identity(), sort_keys=True)
    other = [stage("none"), stage(ema=True), stage(tokenizer=GreyTokenizer())]
    assert len({first, *(json.dumps(s.identity(), sort_keys=True) for s in other)}) == 4


@pytest.mark.parametrize(
    ("condition", "data", "says"),
    [
        ("representation", Patterns(side=3), "grid of 3 x 3, but the model works on 4 x 4"),
        ("representation", Patterns(drop=("tokens",)), "no tokens and there is no tokenizer"),
        ("representation", Patterns(drop=("representations",)), "no representations and there is no encoder"),
        ("class", Patterns(drop=("labels",)), "condition class needs labels"),
        ("none", Pictures(), "no tokens and there is no tokenizer"),
    ],
)
def test_data_that_does_not_fit(condition: str, data: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        stage(condition, data)


def test_values_that_do_not_fit() -> None:
    wide = Patterns()
    wide.batch = lambda i, s: {"tokens": torch.zeros(len(i), 4, 2).long()}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"grid of 4 x 2, but the model works on 4 x 4"):
        stage("none", wide)
    long = Patterns()
    long.batch = lambda i, s: {"tokens": torch.zeros(len(i), 4, 4).long(), "representations": torch.zeros(len(i), 5)}  # type: ignore[method-assign]
    with pytest.raises(UserError, match="representations have 5 numbers, but the model takes 6"):
        stage("representation", long)
    many = Patterns()
    many.labels = many.labels + 1
    with pytest.raises(UserError, match="class 3, but the model knows 0 to 2"):
        stage("class", many)
    with pytest.raises(UserError, match="code 11, but the model knows 11 codes"):
        stage().check({"tokens": torch.full((1, 4, 4), 11)})
    with pytest.raises(UserError, match="held_out is -1"):
        stage(held_out=-1)
