"""Every method of training an encoder, by hand and through the command; what is their own."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rcg.core.captions import caption_bytes
from rcg.core.draws import drawing_for
from rcg.core.errors import UserError
from rcg.core.schema import check_config
from rcg.encoders.augment import StableRepView, augment, lower_resolution, stablerep_view
from rcg.encoders.language import CLIP, LanguageTower
from rcg.encoders.methods import rows_of
from rcg.encoders.multi_positive import multi_positive_loss
from rcg.encoders.recipes import RECIPES, CLIPRecipe, MethodName, StableRepPlusRecipe, StableRepRecipe
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.stablerep import MultiPositive
from rcg.encoders.train import EncoderStage
from rcg.scripts.train_encoder import main
from tests.data.shards import write_shards

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
HEAD = {"head_layers": 3, "head_hidden_dim": 32, "head_dim": 16}
CAPTIONS = [f"picture {i} of a {name}" for i in range(4) for name in ("ship", "dog", "owl", "cat")]
TEXT = {"text_width": 16, "text_depth": 1, "text_heads": 2, "caption_bytes": 24}


def new_encoder(**more: Any) -> SSLEncoder:
    torch.manual_seed(0)
    return SSLEncoder(**{"arch": "vit_tiny_patch16_224", "arch_kwargs": VIT, "image_size": 16, **HEAD, **more})


def grouped_batch(count: int = 3) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, count, 3, 16, 16), generator=g, dtype=torch.uint8)
    captions = torch.from_numpy(caption_bytes(["a", "b", "a", "d"], 24))
    return {"images": images, "identities": torch.tensor([5, 2, 5, 7]), "captions": captions}


class Nothing:
    """Data that nobody looks at."""

    fingerprint = "nothing"

    def __len__(self) -> int:
        return 16

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, torch.Tensor]:
        raise NotImplementedError


def test_the_loss_is_that_of_all_views_with_batch_norm_by_view() -> None:
    """The i-th images of all captions go through the head together, by themselves."""
    objective = StableRepRecipe(images_per_caption=3).objective(new_encoder(head_type="stablerep"), 16).train()
    torch.manual_seed(3)
    batch = objective.prepare(grouped_batch())
    assert set(batch) == {"view1", "view2", "view3", "identities"}
    encoder = objective.encoder
    z = [encoder.project(encoder.features(batch[f"view{i}"])) for i in (1, 2, 3)]
    expected = multi_positive_loss(torch.cat(z), batch["identities"].repeat(3), 0.1)
    torch.testing.assert_close(objective(batch)["loss"], expected)
    together = StableRepRecipe(images_per_caption=3, batch_norm="all").objective(new_encoder(head_type="stablerep"), 16)
    other = together.train()(batch)["loss"]
    z = encoder.project(encoder.features(torch.cat([batch[f"view{i}"] for i in (1, 2, 3)])))
    torch.testing.assert_close(other, multi_positive_loss(z, batch["identities"].repeat(3), 0.1))
    assert abs(float((other - expected).detach())) > 1e-4


def test_batch_norm_by_view_reaches_a_cnn() -> None:
    channels = {"channels": [8, 8, 8, 8]}
    encoder = new_encoder(arch="resnet10t", arch_kwargs=channels, pool="timm", head_type="stablerep")
    objective = MultiPositive(encoder, stablerep_view(16)).train()
    batch = objective.prepare(grouped_batch(2))
    z = [encoder.project(encoder.features(batch[f"view{i}"])) for i in (1, 2)]
    expected = multi_positive_loss(torch.cat(z), batch["identities"].repeat(2), 0.1)
    torch.testing.assert_close(objective(batch)["loss"], expected)


@pytest.mark.parametrize("method", ["dino", "moco-v3", "simclr"])
def test_what_a_sample_loses_is_its_own_and_targets_lose_nothing(method: MethodName) -> None:
    """Dropout and stochastic depth by `arch_kwargs`: the same in any micro-batch, and none in what makes targets."""
    drops = {"drop_path_rate": 0.5, "attn_drop_rate": 0.5, "proj_drop_rate": 0.2, "pos_drop_rate": 0.2}
    objective = RECIPES[method]().objective(new_encoder(arch_kwargs={**VIT, "depth": 3, **drops}), 16).train()
    views = [torch.rand(4, 3, 16, 16) for _ in range(2)]
    seeds = np.arange(10, 14, dtype=np.uint64)

    def features(encoder: SSLEncoder, rows: slice) -> torch.Tensor:
        with torch.no_grad(), drawing_for(seeds[rows], rows.start, 4, 0):
            return encoder.features(rows_of([view[rows] for view in views]))

    trained = objective.student if method == "dino" else objective.encoder
    whole = features(trained, slice(0, 4))
    parts = torch.cat([features(trained, slice(0, 2)), features(trained, slice(2, 4))])
    torch.testing.assert_close(whole, parts)
    assert (whole - trained.eval().features(rows_of(views))).abs().max() > 0.01
    if method != "simclr":
        slow = objective.teacher if method == "dino" else objective.copied
        torch.testing.assert_close(slow.features(views[0]), copy.deepcopy(slow).eval().features(views[0]))


def test_simclr_takes_two_crops_of_each_image() -> None:
    objective = RECIPES["simclr"]().objective(new_encoder(head_type="stablerep"), 16)
    images = grouped_batch(1)["images"][:, 0]
    batch = objective.prepare({"images": images, "indices": torch.arange(4)})
    assert set(batch) == {"view1", "view2", "identities"}
    assert (batch["view1"] - batch["view2"]).abs().mean() > 0.01
    assert batch["identities"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["moco-v3", "byol", "stablerep"])
def test_a_batch_that_is_not_finite_does_not_stay_in_the_statistics(method: MethodName) -> None:
    objective = RECIPES[method]().objective(new_encoder(head_type="stablerep"), 16).train()
    stage = EncoderStage(objective, Nothing())
    norms = [m for m in objective.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    images = grouped_batch(2)
    batch = stage.prepare(images if method == "stablerep" else {"images": images["images"][:, 0]})
    objective(batch)["loss"].backward()
    stage.on_step_end(1, 10)
    before = [m.running_mean.clone() for m in norms]
    assert all(m.any() for m in before)
    objective(batch | {"view1": torch.full_like(batch["view1"], torch.nan)})["loss"].backward()
    assert norms[0].running_mean.isnan().any()
    stage.on_step_end(2, 10)
    assert all(torch.equal(m.running_mean, mean) for m, mean in zip(norms, before, strict=True))
    assert all(m.running_var.isfinite().all() for m in norms)
    objective(batch)
    stage.on_step_end(3, 10)
    assert not torch.equal(norms[0].running_mean, before[0])


def test_synchronised_batch_norm_keeps_the_activations_of_a_cnn(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = new_encoder(arch="mobilenetv3_small_050", arch_kwargs={}, pool="timm", image_size=32)
    stage = EncoderStage(RECIPES["moco-v3"]().objective(encoder, 32), Nothing())
    views = torch.rand(2, 3, 32, 32)
    expected = encoder.features(views)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    stage.to(torch.device("cuda"))
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in encoder.modules()) > 3
    torch.testing.assert_close(encoder.features(views), expected)


def test_stablerep_plus_adds_half_of_each_language_loss() -> None:
    recipe = StableRepPlusRecipe(images_per_caption=2, text_dim=8, **TEXT)
    objective = recipe.objective(new_encoder(head_type="stablerep"), 16).train()
    out = objective(objective.prepare(grouped_batch(2)))
    parts = out["contrastive"] + 0.5 * (out["image_to_text"] + out["text_to_image"])
    torch.testing.assert_close(out["loss"], parts)
    out["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    language = objective.language
    assert language is not None
    assert float(language.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    language.logit_scale.data.fill_(9.0)
    objective.advance(0.5)
    assert float(language.logit_scale.exp()) == pytest.approx(100)


def test_clip_pairs_images_and_captions() -> None:
    encoder = new_encoder(head_type="linear", head_layers=1)
    objective = CLIPRecipe(**TEXT).objective(encoder, 16)
    batch = objective.prepare(grouped_batch(1))
    x = F.normalize(encoder.project(encoder.features(batch["view1"])), dim=1)
    t = F.normalize(objective.language(batch["captions"]), dim=1)
    logits = x @ t.T / 0.07
    same = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    p = same / same.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, p) + F.cross_entropy(logits.T, p)) / 2
    torch.testing.assert_close(objective(batch)["loss"], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="give both the same"):
        CLIP(encoder, LanguageTower(7, 16, 1, 2), stablerep_view(16))


def test_captions_are_read_up_to_their_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = LanguageTower(8, 16, 2, 2, caption_bytes=12)
    a, b, c = tower.encode(["a dog", "a dot", "héé"])
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(tower.encode(["a dog"])[0], a)
    long, short = (torch.from_numpy(caption_bytes(["a dog"], length)) for length in (12, 6))
    torch.testing.assert_close(tower(long), tower(short))
    torch.testing.assert_close(tower.encode(["0123456789abcdef"]), tower.encode(["0123456789ab"]))
    half_a_character = "\ud83d"  # as JSON may hold
    torch.testing.assert_close(tower.encode([half_a_character]), tower.encode(["?"]))
    tower.save_pretrained(tmp_path)
    torch.testing.assert_close(LanguageTower.from_pretrained(tmp_path).encode(["héé"])[0], c)
    with pytest.raises(UserError, match="3 heads do not divide"):
        LanguageTower(8, 16, 1, 3)


def test_down_sampling_lowers_the_resolution_of_some() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    made = lower_resolution(images, (4, 2), torch.tensor([-1, 0, 1, -1]))
    assert torch.equal(made[[0, 3]], images[[0, 3]])

    def detail(x: torch.Tensor) -> float:
        return float((x[:, 1:] - x[:, :-1]).abs().mean())

    assert detail(made[1]) < 0.5 * detail(made[2]) < 0.5 * detail(images[2])
    torch.manual_seed(1)
    usual = augment(images, stablerep_view(32, downsample=0.0))
    torch.manual_seed(1)
    always = augment(images, StableRepView(**{**vars(stablerep_view(32)), "downsample": 1.0}))
    assert (usual - always).abs().mean() > 0.01


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), CAPTIONS, count=3, classes=True)


COMMAND = ["--image-size", "16", "--width", "32", "--depth", "1", "--representation-dim", "16", "--batch-size", "8", "--lr",
           "1e-3", "--log-every", "1", "--eval-samples", "40", "--device", "cpu", "--precision", "fp32", "--steps", "3",
           "--head-hidden-dim", "32"]  # fmt: skip
OWN: dict[str, list[str]] = {
    "stablerep": ["--images-per-caption", "2"],
    "stablerep+": ["--images-per-caption", "2", "--text-width", "16", "--text-depth", "1", "--text-heads", "2"],
    "clip": ["--text-width", "16", "--text-depth", "1", "--text-heads", "2"],
    "synclr": ["--images-per-caption", "2", "--prototypes", "32", "--local-crops", "1", "--patch-hidden-dim", "16"],
    "dino": ["--prototypes", "32", "--local-crops", "1"],
    "mae": ["--decoder-width", "32", "--decoder-depth", "1"],
}


def command_of(method: str) -> list[str]:
    """Flags of a small training; those that its head has not are left out."""
    flags = [*COMMAND, "--method", method, *OWN.get(method, [])]
    for flag in {"mae": ["--representation-dim", "--head-hidden-dim"], "clip": ["--head-hidden-dim"]}.get(method, []):
        del flags[(at := flags.index(flag)) : at + 2]
    return flags


@pytest.mark.parametrize("method", [m for m in get_args(MethodName) if m != "moco-v3"])
def test_the_command_trains_an_encoder(method: str, shards: Path, tmp_path: Path) -> None:
    arguments = [*command_of(method), "--data", str(shards), "--out", str(tmp_path / "o")]
    main([*arguments, "--save-every", "2"])
    log = [json.loads(line) for line in (tmp_path / "o/training/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert any("eval/knn_features" in entry for entry in log)
    encoder = SSLEncoder.from_pretrained(tmp_path / "o")
    assert encoder(torch.rand(2, 3, 20, 20)).shape == (2, 32 if method == "mae" else 16)
    assert (tmp_path / "o/language/config.json").is_file() == (method in ("stablerep+", "clip"))
    first = {k: v.clone() for k, v in encoder.state_dict().items()}
    for folder in (tmp_path / "o/training/checkpoints").iterdir():
        if folder.name.endswith("3"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    main([*arguments, "--save-every", "2", "--resume"])
    again = SSLEncoder.from_pretrained(tmp_path / "o").state_dict()
    assert all(torch.equal(again[k], v) for k, v in first.items())


def test_captions_may_be_judged_by_labelled_images(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "s", CAPTIONS, count=2)
    arguments = [
        *COMMAND,
        "--method",
        "stablerep",
        *OWN["stablerep"],
        "--data",
        str(data),
        "--out",
        str(tmp_path / "o"),
    ]
    main([*arguments, "--eval-data", "shapes:n=40,size=16"])
    log = [json.loads(line) for line in (tmp_path / "o/training/log.jsonl").read_text().splitlines()]
    assert any("eval/knn_features" in entry for entry in log)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "swav"], "invalid choice"),
        (["--method", "mae", "--head-layers", "2"], "set --head-layers 0"),
        (["--method", "mae", "--representation-dim", "16"], "there is none"),
        (["--method", "mae", "--head-hidden-dim", "16"], "there is none"),
        (["--method", "stablerep", "--data", "shapes:n=20,size=16"], "which images belong together"),
        (["--method", "stablerep", "--images-per-caption", "1"], "--images-per-caption is 1"),
        (["--method", "clip", "--head-layers", "2"], "has one layer"),
        (["--method", "simclr", "--momentum", "0.9"], "momentum"),
        (["--method", "clip", "--text-heads", "7"], "7 heads do not divide"),
    ],
)
def test_mistakes_end_with_one_sentence(
    flags: list[str], message: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = command_of(flags[1]) if flags[1] in ("mae", "clip") else COMMAND
    with pytest.raises(SystemExit) as stop:
        main([*start, "--data", str(shards), "--out", str(tmp_path / "o"), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("method", get_args(MethodName))
def test_recipes_hold_together(method: MethodName) -> None:
    check_config(RECIPES[method]())
    assert RECIPES.keys() == set(get_args(MethodName))
