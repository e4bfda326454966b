"""The stages as the training loop takes them: the models of the recipe, their data, and the loop's settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch

from rcg.core.components import component_folder, load_model, read_config
from rcg.core.shipped import DEFAULT, locate
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.train import EncoderStage
from rcg.image_gen import protocol as image_gen
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.image_gen.train import GeneratorStage
from rcg.rdm import protocol as rdm
from rcg.rdm.train import RDMData, RDMStage
from rcg.recipe.settings import GeneratorSize, Settings
from rcg.recipe.wishes import Wishes
from rcg.training.config import TrainingConfig
from rcg.training.stage import BatchDataset

ENCODER_EVAL_SAMPLES = 2000
RDM_EVAL_SAMPLES = 1000
SAVE_SECONDS = 30.0
"""Between checkpoints, about."""
LINES = 100
"""Of the log in a stage, about."""


def open_encoder(spec: str) -> SSLEncoder:
    """A frozen encoder.

    Args:
        spec: the folder of an `SSLEncoder` (or of a pipeline that has one, or its name in the box), or `timm:NAME[:FILE]`: a model of timm with its published weights, or those
            of a file.

    Raises:
        UserError: no such folder or model, or weights that cannot be had.
    """
    kind, _, rest = spec.partition(":")
    if kind == "timm" and rest and not Path(spec).exists():
        name, _, file = rest.partition(":")
        return SSLEncoder.from_timm(name, pretrained=not file, checkpoint=file or None)
    return load_model(SSLEncoder, spec)


def chosen_encoder(wishes: Wishes) -> str | None:
    """What `open_encoder` is to open: the encoder that is asked for, else that of the model in the box; None to train one."""
    if wishes.encoder is not None or wishes.train_encoder:
        return wishes.encoder
    return DEFAULT if locate(DEFAULT) is not None else None


def generator_in_box(settings: Settings) -> tuple[str, int] | None:
    """The size that the pixel transformer in the box has, and the side of its pictures; None if there is none such."""
    if locate(DEFAULT) is None:
        return None
    config = read_config(component_folder(DEFAULT, (PixelDiT,)) / "config.json")
    for size in settings.generators:
        recipe = dataclasses.asdict(size.recipe)
        sizes = ("patch_size", "conv_channels", "width", "depth", "num_heads", "mlp_ratio")
        if all((config.get(name) or []) == (recipe[name] or []) for name in sizes):
            return size.name, int(config["image_size"])
    return None


def weaker_generator(settings: Settings, size: str, image_size: int, encoder: str | None) -> str | None:
    """What the generator is guided away from: what it was before it saw these images, the one in the box.

    Autoguidance (arXiv 2406.02507) takes a less trained model of the same kind. It needs the same representations, so there
    is none for a generator that began with new weights, or has another encoder than the box's; the null condition then serves.

    Args:
        settings: with `start`.
        size, image_size: of the generator.
        encoder: what `open_encoder` opened; None for one that was trained.
    """
    return DEFAULT if encoder == DEFAULT and settings.start == (size, image_size) else None


def new_encoder(settings: Settings, seed: int) -> SSLEncoder:
    """An encoder to be trained. Pictures larger than its own size are shrunk as its training images were, smoothly."""
    torch.manual_seed(seed)
    return SSLEncoder(**settings.encoder_shape.config(), antialias=True)


def encoder_stage(dataset: BatchDataset, settings: Settings, seed: int) -> EncoderStage:
    """Training of a new encoder, from images of its size."""
    encoder = new_encoder(settings, seed)
    objective = settings.encoder_recipe.objective(encoder, encoder.config.image_size)
    return EncoderStage(objective, dataset, eval_samples=ENCODER_EVAL_SAMPLES)


def rdm_stage(data: RDMData, settings: Settings, seed: int) -> RDMStage:
    """Training of the RDM, a flow, without classes."""
    torch.manual_seed(seed)
    objective = settings.rdm_recipe.objective(rdm.Task(data.representation_dim, standardized=data.standardized))
    return RDMStage(objective, data.dataset, heldout=data.heldout, eval_samples=RDM_EVAL_SAMPLES)


def generator_stage(
    dataset: BatchDataset, settings: Settings, size: GeneratorSize, image_size: int, representation_dim: int, seed: int
) -> GeneratorStage:
    """Training of the image generator, from pixels and representations; see `Settings.start` for what it begins with."""
    torch.manual_seed(seed)
    shape = (3, image_size, image_size)
    objective: Any = size.recipe.objective(
        image_gen.Task("representation", shape, representation_dim, None, None, None)
    )
    begins = settings.start == (size.name, image_size)
    start = load_model(PixelDiT, DEFAULT) if begins else None
    return GeneratorStage(objective, dataset, held_out=settings.held_out, ema=True, start=start)


def training_config(
    flags: dict[str, Any],
    out: Path,
    steps: int,
    looks: int,
    *,
    seconds_a_step: float,
    device: Literal["auto", "cpu", "cuda"],
    seed: int,
    lr: float | None = None,
) -> TrainingConfig:
    """The loop's settings for a stage, to go on with if it has begun.

    A short run warms up for a tenth of it at most, and its average does not reach back further than about a quarter.

    Args:
        flags: of the stage's preset.
        out: its folder.
        steps: in all.
        looks: evaluations, with their pictures.
        seconds_a_step: decides how often a checkpoint is written.
        device, seed: of the run.
        lr: peak learning rate in place of the preset's.
    """
    config = TrainingConfig(out=out, steps=steps, device=device, seed=seed, **flags)
    warmup = config.warmup if config.warmup < 1 else config.warmup / steps
    return dataclasses.replace(
        config,
        lr=config.lr if lr is None else lr,
        warmup=min(warmup, 0.1),
        ema_decay=max(0.0, min(config.ema_decay, 1 - 4 / steps)),
        save_every=max(1, round(SAVE_SECONDS / seconds_a_step)),
        log_every=max(1, steps // LINES),
        eval_every=max(1, -(-steps // looks)),
        resume=(out / "training").is_dir(),
    )
