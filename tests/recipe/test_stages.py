"""The stages' settings: those of the presets, fitted to the length of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rcg.core import shipped
from rcg.core.schema import check_config
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.pixel_dit.recipe import PixelDiTRecipe
from rcg.pipeline import RCGPipeline
from rcg.recipe.measure import NoiseData
from rcg.recipe.settings import check_image_size, default_settings, preset
from rcg.recipe.stages import (
    chosen_encoder,
    generator_in_box,
    generator_stage,
    new_encoder,
    open_encoder,
    training_config,
    weaker_generator,
)
from rcg.recipe.wishes import Wishes
from rcg.training.config import TrainingConfig
from tests.recipe.tiny import tiny_settings

SETTINGS = default_settings()


def config(flags: dict[str, object], out: Path, steps: int, **changes: object) -> TrainingConfig:
    given: dict[str, object] = {"seconds_a_step": 0.1, "device": "cpu", "seed": 3}
    return training_config(flags, out, steps, 4, **(given | changes))  # type: ignore[arg-type]


def test_the_small_generator_is_the_presets() -> None:
    flags = preset("generator-pixel-cifar10")
    small = SETTINGS.size("small")
    assert (small.recipe.width, small.recipe.depth, small.recipe.patch_size) == (flags["width"], flags["depth"], 4)
    assert small.lr == flags["lr"]
    assert SETTINGS.batch_size == flags["batch_size"]
    images = [size.images for size in SETTINGS.generators]
    assert images == sorted(images)
    assert images[0] == 0
    work = [size.work(32) for size in SETTINGS.generators]
    assert work == sorted(work)


def test_a_long_run_is_trained_as_the_preset_says(tmp_path: Path) -> None:
    flags = preset("generator-pixel-cifar10")
    made = config(SETTINGS.generator, tmp_path / "run", flags["steps"], lr=1e-3)
    check_config(made)
    for name in ("batch_size", "min_lr_ratio", "weight_decay", "beta2", "clip_grad", "ema_decay", "lr"):
        assert getattr(made, name) == flags[name], name
    assert made.warmup * made.steps == pytest.approx(flags["warmup"])  # type: ignore[operator]
    assert (made.seed, made.device, made.resume) == (3, "cpu", False)


@pytest.mark.parametrize("steps", [1, 7, 200, 100_000])
@pytest.mark.parametrize("name", ["generator", "rdm", "encoder"])
def test_short_and_long_runs_are_possible(name: str, steps: int, tmp_path: Path) -> None:
    made = config(getattr(SETTINGS, name), tmp_path / "run", steps)
    check_config(made)
    assert 0 <= made.warmup <= 0.1
    assert made.ema_decay <= max(0.0, 1 - 4 / steps)
    assert made.eval_every is not None
    assert -(-steps // made.eval_every) <= 4
    assert made.save_every == 300


def test_a_run_that_has_begun_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "run" / "training").mkdir(parents=True)
    assert config(SETTINGS.rdm, tmp_path / "run", 10).resume


def test_encoders_are_opened_by_folder_or_name(tmp_path: Path) -> None:
    made = new_encoder(tiny_settings(), seed=1)
    made.save_pretrained(tmp_path / "encoder")
    assert open_encoder(str(tmp_path / "encoder")).representation_dim == made.representation_dim == 16
    assert isinstance(made, SSLEncoder)
    assert made.config.antialias
    for spec in ("no/such/folder", "timm:no_such_model", "timm:", "rcg/unknown"):
        with pytest.raises(ValueError, match=r"."):
            open_encoder(spec)


def test_sizes_that_patches_do_not_divide_are_refused() -> None:
    check_image_size(SETTINGS, None)
    check_image_size(SETTINGS, 48)
    with pytest.raises(ValueError, match="--image-size 30 is no multiple of 4, the generator's patches; take 32"):
        check_image_size(dataclasses.replace(SETTINGS), 30)


@pytest.mark.parametrize(
    ("wished", "trains", "boxed", "expected"),
    [(None, False, True, "rcg/cifar10"), (None, False, False, None), (None, True, True, None), ("mine", False, True, "mine")],
)  # fmt: skip
def test_the_encoder_in_the_box_is_taken_unless_another_one_is_wanted(
    wished: str | None, trains: bool, boxed: bool, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcg.recipe.stages.locate", lambda name: tmp_path if boxed else None)
    wishes = Wishes(data="x", out=tmp_path / "out", encoder=wished, train_encoder=trains)
    assert chosen_encoder(wishes) == expected


def test_a_generator_of_the_size_in_the_box_begins_with_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings()
    assert generator_in_box(settings) is None  # whatever the box holds, it is larger
    data = NoiseData(16, 6)
    boxed = generator_stage(data, settings, settings.generators[0], 16, 6, seed=7)
    folder = tmp_path / "cifar10"
    RCGPipeline(
        image_generator=boxed.model,
        image_scheduler=boxed.objective.generator.scheduler,
    ).save_pretrained(folder)
    monkeypatch.setattr(shipped, "BOX", tmp_path)
    assert generator_in_box(settings) == ("tiny", 16)
    wider = dataclasses.replace(settings.generators[0], recipe=PixelDiTRecipe(width=64, depth=1, num_heads=2))
    assert generator_in_box(dataclasses.replace(settings, generators=(wider,))) is None
    begun, new = (
        generator_stage(data, dataclasses.replace(settings, start=start), settings.generators[0], 16, 6, seed=8)
        for start in (("tiny", 16), ("tiny", 32))
    )
    weight = boxed.model.patch_embed.weight
    assert torch.equal(begun.model.patch_embed.weight, weight)
    assert not torch.equal(new.model.patch_embed.weight, weight)


@pytest.mark.parametrize(
    ("start", "encoder", "expected"),
    [
        (("tiny", 16), "rcg/cifar10", "rcg/cifar10"),
        (("tiny", 16), "mine", None),  # other representations
        (("tiny", 16), None, None),
        (("tiny", 32), "rcg/cifar10", None),  # it began with new weights
        (None, "rcg/cifar10", None),
    ],
)
def test_only_what_began_in_the_box_is_guided_by_it(
    start: tuple[str, int] | None, encoder: str | None, expected: str | None
) -> None:
    settings = dataclasses.replace(tiny_settings(), start=start)
    assert weaker_generator(settings, "tiny", 16, encoder) == expected
