"""The transformer: against the reference, its two paths against each other, its conditions, its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights

from rcg.core.errors import UserError
from rcg.image_gen.mage.layers import Block
from rcg.image_gen.mage.transformer import CODE_LENGTH, MageTransformer
from tests.image_gen.mage import golden

TINY: dict[str, Any] = {
    "grid_size": 4, "num_codes": 11, "width": 16, "depth": 2, "num_heads": 2, "decoder_depth": 2, "dropout": 0.0,
}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "representation": {"representation_dim": 6},
    "class": {"num_classes": 3},
    "none": {},
}


def tiny(condition: str = "representation", seed: int = 0, **changes: Any) -> MageTransformer:
    torch.manual_seed(seed)
    return MageTransformer(**{**TINY, "condition": condition, **CONDITIONS[condition], **changes}).eval()


def condition_for(name: str, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "representation":
        return {"representations": torch.randn(batch, 6, generator=generator)}
    return {"class_labels": torch.arange(batch) % 3} if name == "class" else {}


@torch.no_grad()
def test_generation_path_equals_the_reference() -> None:
    model = golden.model()
    ids, rep = golden.tensor("forward", "token_ids"), golden.tensor("forward", "rep")
    slot = model.condition_slot(2, rep)
    assert slot is not None
    embedded = torch.cat([slot[:, None], model.token_emb(ids, torch.arange(1, 257))], dim=1)
    assert golden.relative(embedded[:1], golden.tensor("forward", "gen_embeddings")) < 1e-5
    assert golden.relative(model.encode(ids, slot), golden.tensor("forward", "gen_encoded")) < 1e-5
    full = model(ids, rep, full_vocabulary=True)
    assert full.shape == (2, 257, 2025)
    assert golden.relative(full[:1, :17], golden.tensor("forward", "gen_logits_full")) < 1e-5
    # what generation uses is the same without the slot's position and the words that are no codes
    assert torch.allclose(model(ids, rep), full[:, 1:, :1024], atol=1e-5)


@torch.no_grad()
def test_all_masked_with_and_without_condition_equals_the_reference() -> None:
    model, rep = golden.model(), golden.tensor("forward", "rep")
    masked = torch.full((2, 256), 2024)
    assert golden.relative(model(masked, rep)[:, :17], golden.tensor("forward", "gen_allmask_logits")) < 1e-5
    assert golden.relative(model(masked[:1])[:, :17], golden.tensor("forward", "gen_allmask_uncond_logits")) < 1e-5
    assert torch.equal(model(masked), model(masked, rep, drop_condition=torch.tensor([True, True])))
    assert not torch.allclose(model(masked, rep), model(masked))


@torch.no_grad()
def test_encoder_output_of_the_training_path_equals_the_reference() -> None:
    model = golden.model()
    ids, noise = golden.tensor("train", "gt_indices"), golden.tensor("train", "mask_noise")
    dropped, masked = golden.tensor("train", "token_drop_mask")[:, 1:], golden.tensor("train", "token_all_mask")[:, 1:]
    rank = noise.argsort(dim=1).argsort(dim=1)
    assert torch.equal(dropped, rank < 128)
    assert torch.equal(masked, rank < masked[0].sum())
    kept = (~dropped).nonzero()[:, 1].reshape(2, 128)  # raster order, as the reference has it
    slot = model.condition_slot(
        2, golden.tensor("train", "rep"), drop_condition=golden.tensor("train", "rep_drop_u") < 0.1
    )
    shown = ids.masked_fill(masked, 2024).gather(1, kept)
    assert golden.relative(model.encode(shown, slot, kept), golden.tensor("train", "latent")) < 1e-5


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_training_path_without_dropping_equals_generation_path(condition: str) -> None:
    model, given = tiny(condition), condition_for(condition, 3)
    ids = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(2))
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    before = ids.clone()
    logits = model.token_logits(model.forward_masked(ids, order, 0, 10, **given), 11)
    assert torch.equal(ids, before)
    masked = ids.scatter(1, order[:, :10], model.config.mask_token_id)
    expected = model(masked, **given).gather(1, order[:, :10, None].expand(-1, -1, 11))
    assert torch.allclose(logits, expected, atol=1e-5)


@torch.no_grad()
def test_a_dropped_token_is_not_seen() -> None:
    model, rep = tiny(), condition_for("representation", 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))[None]
    ids = torch.randint(11, (1, 16))
    other = ids.clone()
    other[0, order[0, :12]] = (other[0, order[0, :12]] + 1) % 11  # all that is masked, dropped or not
    same = model.forward_masked(ids, order, 8, 12, **rep), model.forward_masked(other, order, 8, 12, **rep)
    assert torch.equal(*same)
    seen = ids.clone()
    seen[0, order[0, 12]] = (seen[0, order[0, 12]] + 1) % 11
    assert not torch.allclose(same[0], model.forward_masked(seen, order, 8, 12, **rep), atol=1e-4)


@pytest.mark.parametrize("condition", ["representation", "class"])
@torch.no_grad()
def test_dropping_the_condition_is_per_sample(condition: str) -> None:
    model, given = tiny(condition), condition_for(condition, 3)
    ids = torch.full((3, 16), model.config.mask_token_id)
    mixed = model(ids, **given, drop_condition=torch.tensor([False, True, False]))
    assert torch.allclose(mixed[1], model(ids)[1], atol=1e-6)
    assert torch.allclose(mixed[[0, 2]], model(ids, **given)[[0, 2]], atol=1e-6)
    assert not torch.allclose(mixed[1], model(ids, **given)[1], atol=1e-4)
    if condition == "representation":  # replaced before the projection
        null = model.fake_latent.expand(3, -1)
        assert torch.allclose(model(ids, representations=null), model(ids), atol=1e-6)


def test_names_and_shapes_are_those_of_the_published_b_model() -> None:
    with init_empty_weights():
        model = MageTransformer(vocab_size=2025, slot_token_id=1100, decoder_num_heads=16, representation_dim=256)
    ours = {name: str(tuple(value.shape)) for name, value in model.state_dict().items()}
    rows = [line.split("\t") for line in (golden.FOLDER / "base_keys.txt").read_text().splitlines()]
    published = {name: shape for name, shape, _ in rows}
    dead = {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "token_emb.position_ids", "patch_embed.proj.weight",
            "patch_embed.proj.bias", "decoder_pred.weight", "decoder_pred.bias"}  # fmt: skip
    assert ours == {name: shape for name, shape in published.items() if name not in dead}


@pytest.mark.parametrize("bf16", [False, True])
def test_quick_attention_equals_the_fused_one(bf16: bool) -> None:
    torch.manual_seed(0)
    block = Block(32, 4, 2.0, 0.0)
    x = torch.randn(3, 9, 32)
    with torch.no_grad():
        fused = block(x)
    block.attn.dropout = 1e-12  # takes the batched products, and drops nothing
    block.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        quick = block(x)
    assert quick.grad_fn is not None
    assert golden.relative(quick, fused) < (1e-2 if bf16 else 1e-6)


def test_dropout_acts_in_training_only() -> None:
    model = tiny(dropout=0.5)
    ids = torch.randint(11, (2, 16))
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.no_grad()
def test_save_and_load(condition: str, tmp_path: Path) -> None:
    model, given = tiny(condition, decoder_width=8), condition_for(condition, 2)
    model.save_pretrained(tmp_path)
    loaded = MageTransformer.from_pretrained(tmp_path)
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    assert {k: loaded.config[k] for k in config} == config
    ids = torch.randint(13, (2, 16))
    assert torch.equal(model(ids, **given), loaded(ids, **given))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grid_size": (8, 4)}, r"grid_size is \(8, 4\)"),
        ({"grid_size": 0}, "grid_size is 0"),
        ({"grid_size": 4.0}, "grid_size is 4.0"),
        ({"grid_size": True}, "grid_size is True"),
        ({"num_heads": 3}, "3 heads do not divide"),
        ({"decoder_width": 15}, "decoder_width is 15"),
        ({"mask_token_id": 4}, "mask_token_id is 4"),
        ({"slot_token_id": 12}, "slot and mask need ids of their own"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"condition_dropout": -0.1}, "condition_dropout is -0.1"),
        ({"representation_dim": None}, "needs representation_dim"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(**changes)


def test_inputs_that_do_not_fit() -> None:
    model = tiny()
    ids = torch.zeros(2, 16, dtype=torch.int64)
    with pytest.raises(UserError, match=r"needs \[B, 16\]"):
        model(ids[:, :9])
    with pytest.raises(UserError, match=r"needs \(2, 6\)"):
        model(ids, torch.randn(2, 5))
    with pytest.raises(UserError, match="class labels were given"):
        model(ids, class_labels=torch.tensor([0, 1]))
    with pytest.raises(UserError, match="representations were given"):
        tiny("none")(ids, torch.randn(2, 6))
    with pytest.raises(UserError, match="class labels have shape"):
        tiny("class")(ids, class_labels=torch.tensor([0]))
    with pytest.raises(UserError, match="condition is 'text'"):
        MageTransformer(**TINY, condition="text")  # type: ignore[arg-type]


def test_alike_codes_begin_with_alike_words() -> None:
    codes = torch.cartesian_prod(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9))
    model = tiny("none", num_codes=81, width=512)
    words, before = model.token_emb.word_embeddings.weight, model.token_emb.word_embeddings.weight.clone()
    model.place_words(codes)
    assert words[:81].std().item() == pytest.approx(before[:81].std().item(), rel=0.1)
    assert torch.equal(words[81:], before[81:])  # slot and mask
    cosines = torch.nn.functional.cosine_similarity(words[:81, None], words[None, :81], dim=-1)
    expected = (-torch.cdist(codes, codes).square() / (2 * CODE_LENGTH**2)).exp()
    assert (cosines - expected).abs().mean() < 0.05
