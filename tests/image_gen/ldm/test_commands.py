"""LDM through the commands: an autoencoder of diffusers, cache, train, assemble, sample."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from PIL import Image

from rcg import RCGPipeline
from rcg.image_gen.ldm.unet import LDMUNet
from rcg.scripts import assemble, cache, sample, train_generator
from tests.image_gen.ldm.models import autoencoder

DATA = "shapes:n=40,size=8"
SMALL = ["--arch", "ldm", "--base-channels", "32", "--num-res-blocks", "1", "--token-dim", "16"]
SHORT = ["--steps", "2", "--batch-size", "4", "--held-out", "4", "--lr", "1e-3", "--device", "cpu"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    autoencoder().save_pretrained(folder / "vq")
    cache.main(f"--data {DATA} --image-size 8 --tokenizer {folder / 'vq'} --out {folder / 'cache'}".split())
    return folder


@pytest.mark.parametrize(("condition", "cached"), [("class", True), ("none", False)])
def test_from_images_to_pictures(
    condition: str, cached: bool, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcg.image_gen.diffusion.generator.DEFAULT_STEPS", 2)
    monkeypatch.setattr("rcg.core.blocks.BLOCK_PIXELS", 4 * 8**2)
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 64 * 4 * 4**2)
    out, data = tmp_path / "generator", str(stages / "cache") if cached else DATA
    given = ["--data", data, "--tokenizer", str(stages / "vq"), "--condition", condition, "--out", str(out)]
    train_generator.main([*given, *SMALL, *SHORT])
    log = [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]
    assert any("eval/noise_error" in line and "eval/bound" not in line for line in log)
    assert list((out / "training/samples").glob("*.png"))
    assemble.main(["--generator", str(out), "--tokenizer", str(stages / "vq"), "--out", str(tmp_path / "model")])
    sample.main(["--model", str(tmp_path / "model"), "--num-images", "2", "--out", str(tmp_path / "images")])
    assert Image.open(tmp_path / "images/000001.png").size == (8, 8)
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.tokenizer, VQModel)
    assert pipe.settings(exact=True)["num_inference_steps"] == 200
    one, more = (pipe(n, generator=torch.Generator().manual_seed(3), output_type="pt").images for n in (1, 3))
    assert torch.equal(one[0], more[0])


def test_what_does_not_fit(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--data", DATA, "--condition", "none", "--out", str(tmp_path / "out"), *SMALL, *SHORT]
    for extra, says in (
        ([], "images need a tokenizer"),
        (["--tokenizer", str(stages / "vq"), "--image-size", "9"], "--image-size 9 is no multiple of 2"),
        (["--tokenizer", str(stages / "vq"), "--channel-multipliers", "1", "2", "2", "2"], "the latents' side is 4"),
    ):
        with pytest.raises(SystemExit):
            train_generator.main([*base, *extra])
        assert says in capsys.readouterr().err.replace("\n", " ")


def test_the_preset_is_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train_generator, "run", seen.append)
    train_generator.main(["--config", "generator-ldm", "--data", "d", "--condition", "none", "--out", "o"])
    published = inspect.signature(LDMUNet).parameters
    for name in ("base_channels", "channel_multipliers", "num_res_blocks", "token_dim", "head_channels"):
        assert getattr(seen[0].recipe, name) == published[name].default, name
    assert seen[0].ema
    assert seen[0].training.clip_grad is None
