"""The MoCo stage by hand and through the real command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.data.images import ImageDataset
from rcg.data.shapes import draw
from rcg.data.sources import open_source
from rcg.encoders.recipes import DINORecipe, MAERecipe, MoCoV3Recipe
from rcg.encoders.shape import EncoderShape
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.train import EncoderStage
from rcg.eval.probes import knn_accuracy
from rcg.scripts.train_encoder import main
from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from tests.training import objectives

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


class Stripes:
    """Four classes of coloured stripes: a data set that needs no file."""

    fingerprint = "stripes"

    def __init__(self, count: int = 64, labelled: bool = True) -> None:
        self.count, self.labelled = count, labelled

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, torch.Tensor]:
        images = torch.empty(len(indices), 3, 16, 16)
        for place, i in zip(images, indices.tolist(), strict=True):
            noise = torch.Generator().manual_seed(i)
            wave = (torch.arange(16) * (0.4 + 0.5 * (i % 4)) + 6 * torch.rand(1, generator=noise)).sin() * 0.4 + 0.5
            colour = torch.rand(3, 1, 1, generator=noise) * 0.5 + 0.5
            place[:] = wave.expand(16, 16) * colour + 0.05 * torch.rand(3, 16, 16, generator=noise)
        batch = {"images": (images.clamp(0, 1) * 255).to(torch.uint8)}
        return batch | ({"labels": torch.from_numpy(indices % 4)} if self.labelled else {})


def make_stage(
    dataset: Stripes | None = None,
    *,
    eval_samples: int = 2000,
    eval_dataset: Stripes | None = None,
    **recipe: object,
) -> EncoderStage:
    torch.manual_seed(0)
    head = {"head_layers": 3, "head_hidden_dim": 64, "head_dim": 16}
    encoder = SSLEncoder("vit_tiny_patch16_224", VIT, image_size=16, **head)
    objective = MoCoV3Recipe(**recipe).objective(encoder, 16)
    return EncoderStage(objective, dataset or Stripes(), eval_samples=eval_samples, eval_dataset=eval_dataset)


def hand_loop(stage: EncoderStage, steps: int) -> list[float]:
    stage.objective.train()
    optimizer = torch.optim.AdamW(stage.param_groups("moco", 0.1), lr=2e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        indices = np.arange(64)
        batch = stage.prepare(stage.dataset.batch(indices, indices.astype(np.uint64)))
        out = stage.objective(batch)
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        stage.on_step_end(step + 1, steps)
        losses.append(float(out["loss"].detach()))
    return losses


def test_loss_falls_and_the_encoder_is_exported(tmp_path: Path) -> None:
    stage = make_stage()
    start = {k: v.clone() for k, v in stage.objective.state_dict().items()}
    losses = hand_loop(stage, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2, losses
    end = stage.objective.state_dict()
    for name in ("backbone.patch_embed.proj.weight", "backbone.pos_embed"):
        assert torch.equal(end[f"base.{name}"], start[f"base.{name}"])
        assert torch.equal(end[f"momentum_encoder.{name}"], start[f"base.{name}"])
    moved = "backbone.blocks.0.mlp.fc1.weight"
    fast, slow = (float((end[f"{e}.{moved}"] - start[f"base.{moved}"]).norm()) for e in ("base", "momentum_encoder"))
    assert 0 < slow < fast
    stage.objective.eval()
    stage.export(tmp_path)
    encoder = SSLEncoder.from_pretrained(tmp_path)
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        representations = encoder(images)
        assert torch.equal(representations, stage.objective.base(images))
    assert encoder.config.standardize
    torch.testing.assert_close(representations.std(1), torch.ones(4))
    assert {k for k in encoder.state_dict() if "momentum" in k or "predictor" in k} == set()


def test_a_pass_of_one_image_is_refused_where_batchnorm_compares(tmp_path: Path) -> None:
    settings = TrainingConfig(out=tmp_path, steps=1, batch_size=3, micro_batch_size=2, lr=1e-3, device="cpu")
    says = r"--batch-size 3 in micro-batches of 2 leaves 1 sample in a forward pass, but this training needs 2 in each"
    with pytest.raises(UserError, match=says):
        train(make_stage(), settings)
    assert not list(tmp_path.rglob("*.jsonl"))
    from rcg.training.loop import _Run

    run = _Run(make_stage(), dataclasses.replace(settings, batch_size=4, micro_batch_size=None), {}, None)
    run.world, run.borders = 4, []
    with pytest.raises(UserError, match="--batch-size 4 over 4 processes leaves 1 sample"):
        run._cut_batch()
    dino = SSLEncoder("vit_tiny_patch16_224", VIT, image_size=16, head_layers=2, head_dim=8, head_type="dino")
    assert EncoderStage(DINORecipe(prototypes=8).objective(dino, 16), Stripes()).least() == 1


def test_a_method_that_compares_no_samples_may_divide_a_batch_at_will(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of another micro-batch nor of another number of processes is anything said or asked."""
    assert {name for name in objectives.ENCODERS if not objectives.made(name).compares} == {"dino", "mae"}
    cnn = SSLEncoder("resnet10t", image_size=32, pool="timm", head_layers=2, head_dim=8, head_type="dino")
    assert EncoderStage(DINORecipe(prototypes=8).objective(cnn, 32), Stripes()).compares  # by BatchNorm
    settings = TrainingConfig(
        out=tmp_path, steps=3, batch_size=8, lr=1e-3, device="cpu", precision="fp32", eval_every=9
    )
    train(objectives.made("mae"), settings, watch=lambda step: step == 1)
    again = dataclasses.replace(settings, resume=True, micro_batch_size=4)
    train(objectives.made("mae"), again, watch=lambda step: step == 2)
    assert "Other micro-batches" not in capsys.readouterr().out


def test_evaluation_reports_knn_and_collapse() -> None:
    stage = make_stage(eval_samples=40)
    stage.objective.eval()
    figures = stage.evaluate(0)
    assert figures.keys() == {"feature_spread", "projection_rank", "knn_features", "knn_representation"}
    order = np.random.default_rng(0).permutation(64)
    images = [stage.dataset.batch(part, part.astype(np.uint64)) for part in (order[:30], order[30:40])]
    with torch.no_grad():
        bank, queries = (stage.objective.base(b["images"] / 255) for b in images)
    expected = knn_accuracy(bank, images[0]["labels"], queries, images[1]["labels"])
    assert figures["knn_representation"] == pytest.approx(expected)
    assert stage.evaluate(7) == figures
    assert "knn_features" not in make_stage(Stripes(labelled=False)).evaluate(0)
    other = make_stage(eval_samples=40, eval_dataset=Stripes(20))
    other.objective.eval()
    assert other.evaluate(0).keys() == figures.keys()


def test_images_of_a_group_are_on_one_side_of_an_evaluation(tmp_path: Path) -> None:
    for i in range(24):
        Image.fromarray(draw(0, i, 16)).save(tmp_path / f"{i // 3}.{i % 3}.png")
    images = ImageDataset(open_source(tmp_path, progress=False), 16)
    bank, rest = make_stage(images)._sides  # type: ignore[arg-type]
    assert (len(bank), len(rest)) == (18, 6)
    assert not {images.source.families()[i] for i in bank} & {images.source.families()[i] for i in rest}


def test_evaluation_of_a_collapsed_encoder_does_not_crash() -> None:
    stage = make_stage()
    stage.objective.eval()
    torch.nn.init.zeros_(stage.objective.base.head[6].weight)
    figures = stage.evaluate(0)
    assert "knn_representation" not in figures
    assert all(np.isfinite(v) for v in figures.values())
    torch.nn.init.zeros_(stage.objective.base.backbone.norm.weight)
    assert stage.evaluate(0)["feature_spread"] < 1e-6


def test_preview_is_repeatable_and_leaves_the_random_stream_alone() -> None:
    stage = make_stage()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = np.asarray(stage.preview(3))
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(first, np.asarray(stage.preview(3)))
    assert first.shape == (3 * 16 + 2 * 2, 8 * 16 + 7 * 2, 3)
    shown = np.random.default_rng(3).permutation(64)[:8]
    originals = stage.dataset.batch(shown, shown.astype(np.uint64))["images"][0].permute(1, 2, 0).numpy()
    assert np.array_equal(first[:16, :16], originals)


def test_views_are_two_different_ones() -> None:
    stage = make_stage()
    torch.manual_seed(0)
    views = stage.prepare(stage.dataset.batch(np.arange(8), np.zeros(8, np.uint64)))
    assert views.keys() == {"view1", "view2"}
    assert (views["view1"] - views["view2"]).abs().mean() > 0.01


def test_identity_tells_runs_apart() -> None:
    base = make_stage().identity()
    assert json.loads(json.dumps(base)) == json.loads(json.dumps(make_stage().identity()))
    for other in ({"temperature": 0.1}, {"momentum": 0.9}, {"min_crop_scale": 0.5}, {"freeze_patches": False}):
        assert make_stage(**other).identity() != base
    with pytest.raises(UserError, match="too few"):
        make_stage(Stripes(4))
    with pytest.raises(UserError, match="1 images are too few"):
        make_stage(Stripes(labelled=False), eval_dataset=Stripes(1))


def test_defaults_follow_the_image_size() -> None:
    def built(**flags: object) -> SSLEncoder:
        return SSLEncoder(**EncoderShape(**flags).config())

    small = built()
    vit = small.backbone
    assert (vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads, vit.patch_embed.patch_size) == (
        192,
        9,
        6,
        (4, 4),
    )
    assert small.config.image_size == 32
    assert small.representation_dim == 256
    assert built(image_size=64).backbone.patch_embed.patch_size == (8, 8)
    paper = built(image_size=224, head_hidden_dim=64).backbone
    shape = (paper.embed_dim, len(paper.blocks), paper.blocks[0].attn.num_heads, paper.patch_embed.patch_size)
    assert shape == (384, 12, 12, (16, 16))
    with pytest.raises(UserError, match="do not divide 30 px"):
        built(image_size=30, patch_size=4)


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (30, 3), (45, 5), (48, 6), (60, 6), (96, 16), (100, 20)])
def test_default_patches_divide_the_image(size: int, patch: int) -> None:
    assert EncoderShape(image_size=size).config()["arch_kwargs"]["patch_size"] == patch


def test_sizes_that_no_sensible_patches_divide() -> None:
    with pytest.raises(UserError, match="no patches of about 3 px divide 31 px; give another --image-size or"):
        EncoderShape(image_size=31).config()
    assert EncoderShape(image_size=31, patch_size=31).config()["arch_kwargs"]["patch_size"] == 31


COMMAND = ["--data", "shapes:n=64,size=16", "--image-size", "16", "--width", "32", "--depth", "2", "--head-hidden-dim", "64",
           "--representation-dim", "16", "--batch-size", "32", "--lr", "2e-3", "--log-every", "1", "--eval-samples", "40",
           "--device", "cpu", "--precision", "fp32"]  # fmt: skip


def test_the_command_trains_resumes_and_exports(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    main([*COMMAND, "--out", str(one), "--steps", "6", "--save-every", "3"])
    log = [json.loads(line) for line in (one / "training/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert 0 <= [e["eval/knn_representation"] for e in log if "eval/knn_representation" in e][-1] <= 1
    assert list((one / "training/samples").glob("*.png"))
    encoder = SSLEncoder.from_pretrained(one)
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 16)
    assert encoder.config.antialias

    main([*COMMAND, "--out", str(two), "--steps", "6", "--save-every", "3"])
    for folder in (two / "training/checkpoints").iterdir():
        if folder.name.endswith("6"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    main([*COMMAND, "--out", str(two), "--steps", "6", "--save-every", "3", "--resume"])
    again = SSLEncoder.from_pretrained(two)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arch", "no_such_net"], "timm has no architecture"),
        (["--arch", "resnet10t", "--depth", "3"], "--depth shapes --arch vit only"),
        (["--batch-size", "1"], "at least 2"),
        (["--patch-size", "5"], "do not divide 16 px"),
        (
            ["--method", "clip", "--head-hidden-dim", "8"],
            "--head-hidden-dim has no effect with --method clip and one layer",
        ),
        (
            ["--method", "synclr", "--patch-weight", "0", "--mask-ratio", "0.3"],
            "--mask-ratio has no effect with --patch-weight 0",
        ),
        (
            ["--method", "synclr", "--local-crops", "0", "--min-crop-scale", "0.3"],
            "--min-crop-scale has no effect with",
        ),
        (
            ["--method", "dino", "--temperature-warmup", "0", "--warmup-temperature", "0.05"],
            "--warmup-temperature has no",
        ),
        (
            ["--arch", "resnet10t", "--no-freeze-patches"],
            "--freeze-patches has no effect on resnet10t, which has no patches",
        ),
        (["--arch", "convnext_atto"], "convnext_atto cannot be run on images of 16 px"),
        (["--heads", "5"], "5 heads do not divide"),
        (["--temperature", "0"], "--temperature is 0"),
        (["--min-crop-scale", "2"], "--min-crop-scale is 2"),
        (["--eval-data", "shapes:n=40,size=16,seed=1", "--eval-samples", "4"], "--eval-samples is 4"),
    ],
)
def test_mistakes_end_with_one_sentence(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*COMMAND[:4], "--out", str(tmp_path / "o"), "--steps", "1", *flags]
    arguments += ["--width", "32"] if "--arch" not in flags else []
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "o").exists()


def test_evaluation_data_of_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(SystemExit):
        main([*COMMAND, "--out", str(tmp_path / "o"), "--steps", "1", "--eval-data", str(tmp_path)])
    assert "--eval-data needs labels; sort its images" in capsys.readouterr().err
    (tmp_path / "0").mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(tmp_path / "0" / file.name)
    with pytest.raises(SystemExit):
        main([*COMMAND, "--out", str(tmp_path / "o"), "--steps", "1", "--eval-data", str(tmp_path)])
    assert "needs labels of the same classes" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["encoder-small", "encoder-vit-b"])
def test_presets_parse(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--config", preset, "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "o")])
    assert "there is no folder" in capsys.readouterr().err


def test_small_preset_spells_out_the_defaults() -> None:
    from rcg.scripts._command import preset_arguments

    words = preset_arguments("encoder-small")
    given = dict(zip(words[::2], words[1::2], strict=True))
    encoder = EncoderShape().config()
    vit = encoder["arch_kwargs"]
    named = {"width": vit["embed_dim"], "depth": vit["depth"], "heads": vit["num_heads"], "patch-size": vit["patch_size"],
             "head-hidden-dim": encoder["head_hidden_dim"], "representation-dim": encoder["head_dim"]}  # fmt: skip
    for flag, value in named.items():
        assert given[f"--{flag}"] == str(value)


def test_resized_views_reach_the_backbone_at_its_size() -> None:
    """Images of another size than the encoder's are resized, so evaluation on any size works."""
    stage = make_stage()
    big = F.interpolate(torch.rand(2, 3, 16, 16), size=40)
    assert stage.objective.base.features(big).shape == (2, 32)


@pytest.mark.parametrize(("micro", "there"), [(1, False), (2, False), (3, True)])
def test_a_forward_pass_of_one_image_has_no_spread(micro: int, there: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = SSLEncoder("vit_tiny_patch16_224", VIT, image_size=16)
    stage = EncoderStage(MAERecipe(decoder_width=32, decoder_depth=1).objective(encoder, 16), Stripes())
    train(
        stage,
        TrainingConfig(out=tmp_path, steps=2, batch_size=3, micro_batch_size=micro, lr=1e-3, log_every=1, device="cpu"),
    )
    lines = [json.loads(line) for line in (tmp_path / "training/log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == 2
    assert all(line.get("feature_spread", 0) is not None and ("feature_spread" in line) == there for line in lines)
