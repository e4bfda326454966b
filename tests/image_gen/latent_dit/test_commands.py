"""A generator of latents through the commands: an autoencoder of diffusers is tokenizer, from the cache to the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg import RCGPipeline, RepresentationMLP, SSLEncoder
from rcg.data.cache import Cache
from rcg.rdm.schedule import fast_scheduler
from rcg.scripts import assemble, cache, inspect, sample, train_generator
from tests.image_gen.latent_dit.models import autoencoder_kl, autoencoder_tiny

DATA = "shapes:n=40,size=16"
SIZES = ["--width", "16", "--depth", "1", "--num-heads", "2", "--batch-size", "8", "--held-out", "4"]
SMALL = ["--arch", "dit", *SIZES, "--steps", "3", "--lr", "1e-3", "--device", "cpu"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = SSLEncoder("vit_tiny_patch16_224", kwargs, 16, head_layers=2, head_hidden_dim=16, head_dim=12)
    encoder.eval().save_pretrained(folder / "encoder")
    RepresentationMLP(12, 16, 1).save_pretrained(folder / "rdm")
    fast_scheduler().save_pretrained(folder / "rdm")
    autoencoder_kl().save_pretrained(folder / "vae")
    autoencoder_tiny().save_pretrained(folder / "tiny")
    views = ["--data", DATA, "--image-size", "16", "--encoder", str(folder / "encoder"), "--half"]
    cache.main([*views, "--tokenizer", str(folder / "vae"), "--out", str(folder / "cache"), "--clusters", "4"])
    return folder


def test_the_cache_holds_latents_in_half_precision(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = Cache(stages / "cache", ["latents"])
    field = held.manifest["fields"]["latents"]
    assert (field["dtype"], field["shape"], field["model_class"]) == ("float16", [4, 8, 8], "AutoencoderKL")
    batch = held.batch(np.arange(3), np.zeros(3, np.uint64))
    assert batch["latents"].dtype == torch.float32
    assert batch["latents"].std() > 0
    inspect.main([str(stages / "vae")])
    assert "rcg-cache --data IMAGES --image-size SIZE --tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize("condition", ["representation", "cluster"])
def test_from_cache_to_pictures(condition: str, stages: Path, tmp_path: Path) -> None:
    out, tokenizer = tmp_path / "generator", ["--tokenizer", str(stages / "vae")]
    arguments = ["--data", str(stages / "cache"), "--condition", condition, "--out", str(out), *SMALL]
    train_generator.main([*arguments, *tokenizer])
    log = [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]
    assert any({"eval/noise_error", "eval/bound"} <= line.keys() for line in log)
    assert list((out / "training/samples").glob("*.png"))
    parts = ["--rdm", str(stages / "rdm"), "--encoder", str(stages / "encoder")]
    given = parts if condition == "representation" else []
    assemble.main(["--generator", str(out), *tokenizer, "--out", str(tmp_path / "model"), *given])
    sample.main(
        [
            "--model",
            str(tmp_path / "model"),
            "--num-images",
            "3",
            "--out",
            str(tmp_path / "images"),
            "--num-inference-steps=3",
        ]
    )
    assert Image.open(tmp_path / "images/000002.png").size == (16, 16)
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    one, more = (
        pipe(n, generator=torch.Generator().manual_seed(3), num_inference_steps=3, output_type="pt").images
        for n in (1, 3)
    )
    assert torch.equal(one[0], more[0])
    if condition == "representation":
        assert len(pipe.reconstruct(more, guidance_scale=2.0, num_inference_steps=3).images) == 3


def test_straight_from_images(stages: Path, tmp_path: Path) -> None:
    given = ["--data", DATA, "--tokenizer", str(stages / "tiny"), "--encoder", str(stages / "encoder")]
    out = ["--out", str(tmp_path / "generator")]
    train_generator.main([*given, *out, "--image-size", "16", "--condition", "representation", "--ema", *SMALL])
    config = json.loads((tmp_path / "generator/config.json").read_text())
    assert (config["sample_size"], config["in_channels"], config["representation_dim"]) == (4, 4, 12)


def test_what_does_not_fit(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--condition", "none", "--out", str(tmp_path / "out"), *SMALL]
    cached = ["--data", str(stages / "cache"), *common]
    images = ["--data", DATA, *common]
    for arguments, says in (
        ([*cached, "--tokenizer", str(stages / "tiny")], "the latents in the cache"),
        ([*cached, "--tokenizer", str(stages / "encoder")], "but a AutoencoderKL or AutoencoderTiny or"),
        ([*cached, "--patch-size", "3"], "sample_size is 8, which patches of 3 do not divide"),
        (images, "images need a tokenizer"),
        ([*images, "--tokenizer", str(stages / "tiny")], "nothing says at what size to train; add --image-size"),
        ([*images, "--tokenizer", str(stages / "tiny"), "--image-size", "18"], "is no multiple of 4"),
        ([*[a if a != "dit" else "mage" for a in cached][:6]], "holds no tokens"),
    ):
        with pytest.raises(SystemExit):
            train_generator.main(arguments)
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cache.main(
            ["--data", DATA, "--image-size", "15", "--tokenizer", str(stages / "vae"), "--out", str(tmp_path / "c")]
        )
    assert "--image-size 15 is no multiple of 2" in capsys.readouterr().err
