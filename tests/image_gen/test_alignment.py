"""Representation alignment: its loss against plain loops, what it trains and what it leaves behind, its flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg import SSLEncoder
from rcg.core.errors import UserError
from rcg.image_gen.alignment import AlignedObjective, spatially_normalized
from rcg.image_gen.families import FAMILIES, family_of
from rcg.image_gen.latent_dit.transformer import DiT
from rcg.image_gen.pixels.objective import PixelObjective
from rcg.image_gen.train import GeneratorStage
from rcg.scripts import cache, train_generator
from tests.image_gen.pixel_dit.models import batch, tiny

DATA = "shapes:n=40,size=16"


class Maps(nn.Module):
    """Maps [B, 5, h, w] of images: their colours and what follows from those, at half of the resolution or less."""

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.side, self.mix = side, nn.Conv2d(3, 5, 3, padding=1)

    def feature_maps(self, images: Tensor, indices: list[int]) -> list[Tensor]:
        assert indices == [-1]
        assert images.device == self.mix.weight.device
        return [nn.functional.adaptive_avg_pool2d(self.mix(images), self.side)]


def made(side: int = 4, depth: int | None = 1, weight: float = 0.5, **changes: Any) -> AlignedObjective:
    model = tiny(**changes)
    return AlignedObjective(PixelObjective(model), list(model.blocks), Maps(side), weight, depth)


def test_the_loss_is_one_minus_the_mean_cosine() -> None:
    objective, given = made(), batch("representation", 3)
    dropped = torch.ones(3)  # nobody's condition
    torch.manual_seed(1)
    figures = objective(given, condition_noise=dropped)
    torch.manual_seed(1)
    plain = objective.objective(given, condition_noise=dropped)
    cosine = float(figures["alignment"])
    assert figures["loss"].item() == pytest.approx(plain["loss"].item() + 0.5 * (1 - cosine), rel=1e-5)

    tokens = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
    images = given["images"].float() / 255
    found = objective.similarity(tokens, images)
    target = objective.encoder.feature_maps(images, [-1])[0].double().detach().numpy()  # type: ignore[operator]
    kernel, bias = (p.double().detach().numpy() for p in objective.projection.parameters())
    for i in range(3):
        cosines = []
        grid = np.pad(tokens[i].double().numpy().reshape(4, 4, 16), ((1, 1), (1, 1), (0, 0)))  # row after row
        for row in range(4):
            for column in range(4):
                window = grid[row : row + 3, column : column + 3].transpose(2, 0, 1)
                ours = (kernel * window).sum(axis=(1, 2, 3)) + bias
                own = target[i]
                theirs = (own[:, row, column] - own.mean(axis=(1, 2))) / np.sqrt(own.var(axis=(1, 2)) + 1e-5)
                cosines.append(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        assert found[i].item() == pytest.approx(np.mean(cosines), abs=1e-5)


def test_an_encoder_may_lie_on_another_device_already() -> None:
    model = tiny()
    objective = AlignedObjective(PixelObjective(model), list(model.blocks), Maps().to("meta"))
    assert objective.projection.out_channels == 5


@pytest.mark.parametrize("side", [2, 4, 8])
def test_maps_of_any_size_are_brought_to_the_tokens(side: int) -> None:
    figures = made(side)(batch("representation", 4))
    assert -1 <= float(figures["alignment"]) <= 1
    maps = spatially_normalized(torch.rand(2, 3, side, side) * 5 + 7)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.square().mean(dim=(2, 3)), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_it_trains_the_first_blocks_and_the_projection_alone() -> None:
    objective = made(depth=1)
    given = batch("representation", 4)
    alignment: list[Tensor] = []
    original = objective.similarity

    def similarity(tokens: Tensor, images: Tensor) -> Tensor:
        alignment.append(original(tokens, images))
        return alignment[0]

    objective.similarity = similarity  # type: ignore[method-assign]
    objective(given)
    alignment[0].sum().backward()
    trained = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("blocks.0" in name for name in trained)
    assert {"projection.weight", "projection.bias"} <= trained
    assert not any("blocks.1" in name or "head" in name for name in trained)
    assert not any("mix" in name for name, _ in objective.named_parameters())  # the encoder is none of its parts
    assert all(not p.requires_grad for p in objective.encoder.parameters())
    assert not objective.model.blocks[0]._forward_hooks  # nothing is left behind


def test_transformers_over_latents_are_aligned_too() -> None:
    torch.manual_seed(0)
    model = DiT(sample_size=8, patch_size=2, in_channels=4, width=16, depth=3, num_heads=2, condition="none")
    family = family_of(model)
    assert family.blocks is not None
    own = family.objective(family.generator(model, _scheduler(), None, None))
    objective = AlignedObjective(own, family.blocks(model), Maps())
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    figures = objective({"latents": torch.randn(4, 4, 8, 8), "images": images})
    assert "alignment" in figures
    assert objective.depth == 1
    assert {name for name, f in FAMILIES.items() if f.blocks is not None} == {"dit", "pixel-dit"}


def _scheduler() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(variance_type="learned_range")


def test_a_stage_needs_images_and_remembers_its_encoder() -> None:
    class Data:
        fingerprint = "data"
        labels = None

        def __init__(self, images: bool) -> None:
            self.images = images

        def __len__(self) -> int:
            return 20

        def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
            made = batch("representation", len(indices))
            return (
                made if self.images else {k: v for k, v in made.items() if k != "images"} | {"latents": made["images"]}
            )

    objective = made()
    stage = GeneratorStage(objective, Data(True))
    assert stage.identity()["alignment"] == [0.5, 1]
    other = made()
    other.encoder.mix.weight.data += 1  # type: ignore[union-attr, operator]
    assert stage.identity()["aligned_to"] != GeneratorStage(other, Data(True)).identity()["aligned_to"]
    assert "aligned_to" not in GeneratorStage(other.objective, Data(True)).identity()
    assert stage.encoder is None
    objective.objective.field = "latents"
    objective.objective.check_codes = lambda codes: None
    with pytest.raises(UserError, match="alignment needs the images themselves"):
        GeneratorStage(objective, Data(False))


def test_what_cannot_be_aligned_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--align-depth 3 is not among the 2 blocks"):
        made(depth=3)
    flags = ["--data", DATA, "--image-size", "16", "--out", str(tmp_path / "x"), "--condition", "none", "--steps", "1"]
    for more, says in (
        (["--arch", "edm", "--align-encoder", "rcg/cifar10"], "--align-encoder has no effect with --arch edm"),
        (["--arch", "pixel-dit", "--align-weight", "1"], "--align-weight has no effect without --align-encoder"),
        (["--arch", "pixel-dit", "--align-depth", "1"], "--align-depth has no effect without --align-encoder"),
    ):
        with pytest.raises(SystemExit):
            train_generator.main([*flags, *more])
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_command_aligns_and_exports_the_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    SSLEncoder("vit_tiny_patch16_224", kwargs, 16).save_pretrained(tmp_path / "encoder")
    cache.main(["--data", DATA, "--image-size", "16", "--images", "--out", str(tmp_path / "cache")])
    sizes = ["--arch", "pixel-dit", "--width", "16", "--depth", "2", "--num-heads", "2", "--condition", "none"]
    common = ["--data", str(tmp_path / "cache"), *sizes, "--batch-size", "8", "--lr", "3e-3", "--device", "cpu"]
    aligned = ["--align-encoder", str(tmp_path / "encoder"), "--align-weight", "2", "--log-every", "5"]
    out = tmp_path / "aligned"
    train_generator.main([*common, *aligned, "--steps", "20", "--out", str(out)])
    train_generator.main([*common, *aligned, "--steps", "40", "--out", str(out), "--resume"])
    train_generator.main([*common, "--steps", "2", "--out", str(tmp_path / "plain")])
    assert (
        load_file(out / "diffusion_pytorch_model.safetensors").keys()
        == load_file(tmp_path / "plain/diffusion_pytorch_model.safetensors").keys()
    )
    lines = [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]
    cosines = [line["alignment"] for line in lines if "alignment" in line]
    assert len(cosines) == 8
    assert cosines[-1] > cosines[0] + 0.05
    with pytest.raises(SystemExit):  # without the encoder it would be another run
        train_generator.main([*common, "--steps", "60", "--out", str(out), "--resume"])
