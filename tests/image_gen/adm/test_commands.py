"""ADM through the commands: cache, train, assemble, sample, no tokenizer anywhere."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from rcg import RCGPipeline, RepresentationMLP, SSLEncoder
from rcg.core.errors import UserError
from rcg.image_gen.adm.unet import ADMUNet
from rcg.rdm.schedule import fast_scheduler
from rcg.scripts import assemble, cache, sample, train_generator

DATA = "shapes:n=40,size=8"
SMALL = [
    "--arch",
    "adm",
    "--base-channels",
    "32",
    "--channel-multipliers",
    "1",
    "2",
    "--num-res-blocks",
    "1",
    "--head-channels",
    "32",
]
SHORT = ["--steps", "2", "--batch-size", "4", "--held-out", "4", "--lr", "1e-3", "--device", "cpu"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = SSLEncoder("vit_tiny_patch16_224", kwargs, 8, head_layers=2, head_hidden_dim=16, head_dim=12)
    encoder.eval().save_pretrained(folder / "encoder")
    RepresentationMLP(12, 16, 1).save_pretrained(folder / "rdm")
    fast_scheduler().save_pretrained(folder / "rdm")
    views = ["--data", DATA, "--image-size", "8", "--images", "--encoder", str(folder / "encoder")]
    cache.main([*views, "--out", str(folder / "cache"), "--clusters", "4"])
    return folder


@pytest.mark.parametrize(
    ("condition", "prediction_type", "error"),
    [("representation", "epsilon", "noise_error"), ("cluster", "v_prediction", "velocity_error")],
)
def test_from_cache_to_pictures(
    condition: str, prediction_type: str, error: str, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcg.image_gen.diffusion.generator.DEFAULT_STEPS", 2)
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 32 * 4 * 8**2)
    out = tmp_path / "generator"
    base = ["--data", str(stages / "cache"), "--condition", condition, *SMALL, *SHORT]
    train_generator.main([*base, "--prediction-type", prediction_type, "--out", str(out)])
    log = [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]
    assert any({f"eval/{error}", "eval/bound"} <= line.keys() for line in log)
    assert list((out / "training/samples").glob("*.png"))
    assert json.loads((out / "config.json").read_text())["attention_resolutions"] == [8]
    parts = ["--rdm", str(stages / "rdm")] if condition == "representation" else []
    assemble.main(["--generator", str(out), "--out", str(tmp_path / "model"), *parts])
    sample.main(["--model", str(tmp_path / "model"), "--num-images", "2", "--out", str(tmp_path / "images")])
    assert Image.open(tmp_path / "images/000001.png").size == (8, 8)
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.tokenizer is None
    seed = torch.Generator().manual_seed(3)
    exact = pipe(1, generator=seed, output_type="pt", num_inference_steps=2, guidance_scale=2.0, exact=True)
    assert exact.images.shape == (1, 3, 8, 8)
    assert pipe.image_scheduler.config.prediction_type == prediction_type


def test_what_a_model_predicts_is_nobody_elses(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights do not show whether they predict noise or velocity; the scheduler beside them does."""
    monkeypatch.setattr("rcg.image_gen.diffusion.generator.DEFAULT_STEPS", 2)
    noise, velocity = tmp_path / "noise", tmp_path / "velocity"
    base = ["--data", str(stages / "cache"), "--condition", "none", *SMALL, *SHORT, "--preview-every", "100"]
    train_generator.main([*base, "--out", str(noise)])
    of_velocity = [*base, "--out", str(velocity), "--prediction-type", "v_prediction"]
    for command, arguments in (
        (train_generator.main, [*of_velocity, "--start-from", str(noise)]),
        (train_generator.main, [*base, "--out", str(noise), "--resume", "--prediction-type", "v_prediction"]),
    ):
        with pytest.raises(SystemExit):
            command(arguments)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "prediction_type epsilon (here v_prediction); add --prediction-type epsilon" in said
    assert "was begun with other settings (--prediction-type epsilon → v_prediction); give what" in said
    train_generator.main(of_velocity)
    with pytest.raises(
        UserError, match="the guiding model has prediction_type v_prediction, but the image generator epsilon"
    ):
        RCGPipeline.from_stages(noise, guiding_model=velocity)
    pipe = RCGPipeline.from_stages(velocity, guiding_model=velocity)
    with pytest.raises(UserError, match="the image generator predicts v_prediction, but the scheduler is set to"):
        RCGPipeline(**{**pipe.components, "image_scheduler": DDIMScheduler()})
    another = DDIMScheduler.from_config(pipe.image_scheduler.config)
    assert RCGPipeline(**{**pipe.components, "image_scheduler": another}).image_scheduler is another


def test_what_does_not_fit(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--data", str(stages / "cache"), "--condition", "none", "--out", str(tmp_path / "out"), *SMALL, *SHORT]
    for extra, says in (
        (["--tokenizer", str(stages / "encoder")], "--tokenizer has no effect with --arch adm"),
        (["--attention-resolutions", "5"], "attention_resolutions holds 5, but the levels have sides 8, 4"),
        (["--norm-groups", "24"], "base_channels is 32, which 24 norm_groups do not divide"),
    ):
        with pytest.raises(SystemExit):
            train_generator.main([*base, *extra])
        assert says in capsys.readouterr().err.replace("\n", " ")


def test_the_preset_is_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train_generator, "run", seen.append)
    train_generator.main(["--config", "generator-adm", "--data", "d", "--condition", "none", "--out", "o"])
    published = inspect.signature(ADMUNet).parameters
    for name in ("base_channels", "channel_multipliers", "num_res_blocks", "attention_resolutions", "head_channels"):
        assert getattr(seen[0].recipe, name) == published[name].default, name
    assert seen[0].ema
    assert seen[0].training.clip_grad is None
