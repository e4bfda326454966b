"""Official files: every key loaded, dropped with a reason, or an error."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.state_dicts import Conversion, read_checkpoint
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.published.mage import _config, convert_mage
from tests.image_gen.mage import golden

DEAD = {
    "cls_token": (1, 1, 32), "pos_embed": (1, 257, 32), "mask_token": (1, 1, 32), "decoder_pos_embed": (1, 257, 32),
    "patch_embed.proj.weight": (32, 3, 16, 16), "patch_embed.proj.bias": (32,), "decoder_pred.weight": (768, 32),
    "decoder_pred.bias": (768,), "vqgan.quantize.embedding.weight": (1024, 4), "pretrained_encoder.cls_token": (1, 1, 32),
}  # fmt: skip
HEADS = {"num_heads": 4, "decoder_num_heads": 2}


def official() -> dict[str, torch.Tensor]:
    """The state dict of an official file (its encoder and tokenizer stand for themselves with one key each)."""
    position_ids = {"token_emb.position_ids": torch.arange(257)[None]}
    return golden.state() | {name: torch.zeros(shape) for name, shape in DEAD.items()} | position_ids


def load(path: Path, **heads: int) -> Conversion[MageTransformer]:
    return convert_mage(read_checkpoint(path), str(path), **heads)


def write(path: Path, weights: Any, **extra: Any) -> Path:
    contents = {"model": weights, "model_ema": None, "optimizer": {}, "epoch": 7, "args": argparse.Namespace(lr=0.1)}
    torch.save(contents | extra, path)
    return path


def test_every_key_is_accounted_for_and_the_model_computes_the_same(tmp_path: Path) -> None:
    converted = load(write(tmp_path / "mage.pth", official()), **HEADS)
    assert {*converted.loaded, *converted.dropped} == official().keys()
    assert converted.dropped.keys() == DEAD.keys() | {"token_emb.position_ids"}
    assert all(converted.dropped.values())
    config = converted.model.config
    expected = {
        **golden.CONFIG,
        "grid_size": 16,
        "num_codes": 1024,
        "mask_token_id": 2024,
        "condition": "representation",
    }
    assert {k: config[k] for k in expected if k != "dropout"} == {k: v for k, v in expected.items() if k != "dropout"}
    assert not converted.model.training
    with torch.no_grad():
        logits = converted.model(
            golden.tensor("forward", "token_ids"), golden.tensor("forward", "rep"), full_vocabulary=True
        )
    assert golden.relative(logits[:1, :17], golden.tensor("forward", "gen_logits_full")) < 1e-5


def test_sizes_of_the_published_b_model_are_inferred() -> None:
    rows = [line.split("\t") for line in (golden.FOLDER / "base_keys.txt").read_text().splitlines()]
    shapes = {name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for name, shape, _ in rows}
    live = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert _config(live, "mage.pth", None, None) == {
        "grid_size": 16, "num_codes": 1024, "vocab_size": 2025, "slot_token_id": 1100, "width": 768, "depth": 12,
        "num_heads": 12, "decoder_width": 768, "decoder_depth": 8, "decoder_num_heads": 16, "mlp_ratio": 4.0,
        "condition": "representation", "representation_dim": 256, "num_classes": None, "condition_dropout": 0.1,
    }  # fmt: skip


def test_a_file_without_representation_is_an_unconditional_model(tmp_path: Path) -> None:
    weights = official()
    for name in ("fake_latent", "latent_prior_proj.weight", "latent_prior_proj.bias"):
        del weights[name]
    model = load(write(tmp_path / "mage.pth", weights), **HEADS).model
    assert model.config.condition == "none"
    assert model(torch.full((1, 256), 2024)).shape == (1, 256, 1024)
    weights["fake_latent"] = torch.zeros(1, 24)  # the reference saves it whatever the condition
    converted = load(write(tmp_path / "mage.pth", weights), **HEADS)
    assert "fake_latent" in converted.dropped


def test_a_file_with_classes_is_a_class_conditional_model_without_null_class(tmp_path: Path) -> None:
    weights = official()
    for name in ("latent_prior_proj.weight", "latent_prior_proj.bias"):
        del weights[name]
    weights["class_emb.weight"] = torch.randn(1000, 32)
    converted = load(write(tmp_path / "mage.pth", weights), **HEADS)
    model = converted.model
    assert (model.config.condition, model.config.num_classes) == ("class", 1000)
    assert "fake_latent" in converted.dropped
    assert "cannot be guided" in converted.notes[0]
    slot = model.condition_slot(2, class_labels=torch.tensor([3, 999]))
    assert torch.equal(slot, weights["class_emb.weight"][[3, 999]])
    with pytest.raises(UserError, match="no null class"):
        model(torch.full((1, 256), 2024))


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds code"):
        load(write(tmp_path / "mage.pth", official(), extra=Harmful()), **HEADS)
    assert not (tmp_path / "was-run").exists()


def without(name: str) -> dict[str, torch.Tensor]:
    weights = official()
    del weights[name]
    return weights


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {(new if k == old else k): v for k, v in official().items()}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (lambda: without("decoder_norm.bias"), "lacks 1 of 79 weights, first decoder_norm.bias"),
        (lambda: without("fake_latent"), "first fake_latent"),
        (lambda: without("blocks.1.attn.proj.bias"), "first blocks.1.attn.proj.bias"),
        (lambda: renamed("norm.bias", "norm.bais"), r"first norm.bias \(nearest: norm.bais\)"),
        (lambda: official() | {"norm3.bias": torch.zeros(32)}, r"first norm3.bias \(nearest: norm.bias\)"),
        (lambda: official() | {"norm.bias": torch.zeros(31)}, r"norm.bias has shape \[31\]"),
        (lambda: without("token_emb.word_embeddings.weight"), "holds no MAGE generator"),
        (lambda: {"model.diffusion_model.x": torch.zeros(1)}, "holds no MAGE generator"),
        (lambda: [1, 2], "no weights under `model`"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, weights: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(write(tmp_path / "mage.pth", weights()), **HEADS)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "none.pth")
    whole = write(tmp_path / "mage.pth", official())
    with pytest.raises(UserError, match="none of the published sizes; add --generator-num-heads"):
        load(whole)
    with pytest.raises(UserError, match="5 heads do not divide"):
        load(whole, num_heads=5)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(UserError, match="truncated"):
        load(tmp_path / "half.pth", **HEADS)
