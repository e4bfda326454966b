"""A generator of pixels through the commands: cache, train, assemble, sample, no tokenizer anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from rcg import RCGPipeline, RepresentationMLP, SSLEncoder
from rcg.rdm.schedule import fast_scheduler
from rcg.scripts import assemble, cache, sample, train_generator

DATA = "shapes:n=40,size=16"
SMALL = [
    "--arch",
    "pixel-dit",
    "--width",
    "16",
    "--depth",
    "1",
    "--num-heads",
    "2",
    "--batch-size",
    "8",
    "--held-out",
    "4",
]
SHORT = ["--steps", "3", "--lr", "1e-3", "--device", "cpu"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = SSLEncoder("vit_tiny_patch16_224", kwargs, 16, head_layers=2, head_hidden_dim=16, head_dim=12)
    encoder.eval().save_pretrained(folder / "encoder")
    RepresentationMLP(12, 16, 1).save_pretrained(folder / "rdm")
    fast_scheduler().save_pretrained(folder / "rdm")
    views = ["--data", DATA, "--image-size", "16", "--images", "--encoder", str(folder / "encoder")]
    cache.main([*views, "--out", str(folder / "cache"), "--clusters", "4"])
    return folder


@pytest.mark.parametrize("condition", ["representation", "cluster", "none"])
def test_from_cache_to_pictures(condition: str, stages: Path, tmp_path: Path) -> None:
    out = tmp_path / "generator"
    arguments = ["--data", str(stages / "cache"), "--condition", condition, "--out", str(out), *SMALL, *SHORT]
    train_generator.main(arguments)
    log = [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]
    assert any("eval/velocity_error" in line for line in log)
    assert list((out / "training/samples").glob("*.png"))
    parts = (
        ["--rdm", str(stages / "rdm"), "--encoder", str(stages / "encoder")] if condition == "representation" else []
    )
    assemble.main(["--generator", str(out), "--out", str(tmp_path / "model"), *parts])
    sample.main(["--model", str(tmp_path / "model"), "--num-images", "3", "--out", str(tmp_path / "images")])
    assert Image.open(tmp_path / "images/000002.png").size == (16, 16)
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    assert pipe.tokenizer is None
    pipe.set_progress_bar_config(disable=True)
    one, more = (pipe(n, generator=torch.Generator().manual_seed(3), output_type="pt").images for n in (1, 3))
    assert torch.equal(one[0], more[0])
    if condition == "cluster":
        counts = pipe.image_generator.config.label_counts
        assert (len(counts), sum(counts)) == (4, 40)
        drawn = pipe(64, generator=torch.Generator().manual_seed(0), num_inference_steps=1).class_labels
        assert set(drawn.tolist()) <= {k for k, count in enumerate(counts) if count}
        assert len(pipe(class_labels=[0, 3], guidance_scale=2.0).images) == 2
    if condition == "representation":
        assert len(pipe.reconstruct(more, guidance_scale=2.0).images) == 3


def test_straight_from_images(stages: Path, tmp_path: Path) -> None:
    out = tmp_path / "generator"
    given = [
        "--data",
        DATA,
        "--image-size",
        "16",
        "--encoder",
        str(stages / "encoder"),
        "--condition",
        "representation",
    ]
    train_generator.main([*given, "--out", str(out), *SMALL, *SHORT])
    assert (out / "config.json").is_file()


def test_what_does_not_fit(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--data", str(stages / "cache"), "--condition", "none", "--out", str(tmp_path / "out"), *SMALL, *SHORT]
    for extra, says in (
        (["--tokenizer", str(stages / "encoder")], "--tokenizer has no effect with --arch pixel-dit"),
        (["--patch-size", "5"], "image_size is 16, which patches of 5 pixels do not divide"),
        (["--patch-size", "9"], "--patch-size is 9"),
    ):
        with pytest.raises(SystemExit):
            train_generator.main([*base, *extra])
        assert says in capsys.readouterr().err
