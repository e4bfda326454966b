"""Drawing token grids: the same for any batch size, guided, with a callback, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from rcg.core.errors import UserError
from rcg.core.rng import Noise, sample_generators
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.mage import sampling
from rcg.image_gen.mage.generator import MageGenerator
from rcg.image_gen.mage.recipe import MageRecipe
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.protocol import Task
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from tests.image_gen.latent_dit.models import autoencoder_kl
from tests.image_gen.mage import golden
from tests.image_gen.mage.test_transformer import condition_for, tiny


def scheduler_of(model: MageTransformer, steps: int = 6) -> MaskGITScheduler:
    return MaskGITScheduler(model.config.mask_token_id, steps, temperature=2.0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_same_images_whatever_the_batch_size(scale: float, exact: bool) -> None:
    model = tiny(grid_size=8, num_codes=256, width=32, num_heads=4)
    rep = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    scheduler = scheduler_of(model)

    def draw(start: int, count: int) -> torch.Tensor:
        return generate_tokens(
            model, scheduler, batch_size=count, representations=rep[start : start + count], guidance=Guidance(scale, "linear"),
            generator=sample_generators(3, start, count), exact=exact,
        )  # fmt: skip

    whole = draw(0, 16)
    assert whole.shape == (16, 8, 8)
    for size in (1, 5):
        parts = [draw(start, min(size, 16 - start)) for start in range(0, 16, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert len(torch.unique(whole.flatten(1), dim=0)) == 16


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("condition", ["representation", "none"])
def test_parts_of_a_batch_are_drawn_as_the_whole(condition: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(condition, grid_size=8, num_codes=256, width=32, num_heads=4)
    rep = torch.randn(11, 6, generator=torch.Generator().manual_seed(0)) if condition != "none" else None
    how = Guidance(1.0 if condition == "none" else 3.0, "linear")

    def draw() -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen: list[torch.Tensor] = []
        ids = generate_tokens(
            model, scheduler_of(model), batch_size=11, representations=rep, guidance=how, generator=Noise(range(11)),
            exact=exact, callback=lambda step, ids: seen.append(ids),
        )  # fmt: skip
        return ids, seen

    whole, steps = draw()
    rows: list[int] = []
    step = MaskGITScheduler.step
    monkeypatch.setattr(
        MaskGITScheduler, "step", lambda self, logits, *a, **k: rows.append(len(logits)) or step(self, logits, *a, **k)
    )
    monkeypatch.setattr(sampling, "PART_LOGITS", 1)  # one block each
    parts, others = draw()
    assert set(rows) == {4, 3}
    assert torch.equal(parts, whole)
    assert torch.equal(torch.stack(others), torch.stack(steps))


@torch.no_grad()
def test_logits_hardly_depend_on_the_batch_size() -> None:
    model, rep = golden.model(), torch.randn(16, 24)
    ids = torch.randint(1024, (16, 256)).masked_fill(torch.rand(16, 256) < 0.7, 2024)
    whole = model(ids, rep)
    alone = torch.cat([model(ids[j : j + 1], rep[j : j + 1]) for j in range(16)])
    assert golden.relative(alone, whole) < 1e-6


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
@torch.no_grad()
def test_equals_the_loop_written_out(condition: str) -> None:
    model, given = tiny(condition), condition_for(condition, 3)
    scheduler, scale = scheduler_of(model), 1.0 if condition == "none" else 2.5
    drawn = generate_tokens(
        model, scheduler, batch_size=3, guidance=Guidance(scale, "linear"), generator=sample_generators(0, 0, 3), num_inference_steps=4,
        temperature=0.5, exact=True, **given,
    )  # fmt: skip
    generators, ids = sample_generators(0, 0, 3), torch.full((3, 16), model.config.mask_token_id)
    scheduler.set_timesteps(4)
    for i in range(4):
        logits = model(ids, **given)
        logits = logits + (scale - 1) * (i + 1) / 4 * (logits - model(ids))
        out = scheduler.step(logits, i, ids, generator=generators, temperature=0.5)
        ids = out.prev_sample
    assert torch.equal(drawn, out.pred_original_sample.reshape(3, 4, 4))
    assert int(drawn.max()) < 11


@pytest.mark.parametrize("exact", [False, True])
def test_guidance_outside_of_its_interval_costs_nothing(exact: bool) -> None:
    model, calls = tiny("class"), []
    given = {"class_labels": torch.tensor([0, 1]), "exact": exact, "num_inference_steps": 8}
    model.decoder_embed.register_forward_pre_hook(lambda *_: calls.append(1))
    draws, counts = [], []
    for guidance in (Guidance(), Guidance(3.0, interval=(0.0, 0.05)), Guidance(3.0, interval=(0.5, 1.0))):
        calls.clear()
        draws.append(
            generate_tokens(
                model,
                scheduler_of(model),
                batch_size=2,
                guidance=guidance,
                generator=sample_generators(0, 0, 2),
                **given,
            )
        )
        counts.append(len(calls))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert counts == ([8, 8, 13] if exact else [8, 8, 11])


@pytest.mark.parametrize("exact", [False, True])
def test_autoguidance_by_itself_changes_nothing(exact: bool) -> None:
    """Away from an equal model is nowhere; away from another one is somewhere else, for an unconditional model, too."""
    model, other = tiny("none"), tiny("none", seed=1)
    common = {"batch_size": 3, "guidance": Guidance(4.0), "exact": exact}
    plain, same, away = (
        generate_tokens(model, scheduler_of(model), guiding_model=g, generator=sample_generators(0, 0, 3), **c)
        for g, c in ((None, {**common, "guidance": Guidance()}), (model, common), (other, common))
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, away)


def test_guidance_strengthens_the_condition() -> None:
    """With a strong pull of each class to one code, guided images hold more of it."""
    model = tiny("class")
    with torch.no_grad():
        model.class_emb.weight.normal_(std=2.0)
    labels = torch.zeros(32, dtype=torch.int64)
    favourite = model(torch.full((1, 16), model.config.mask_token_id), class_labels=labels[:1])
    favourite = (favourite - model(torch.full((1, 16), model.config.mask_token_id)))[0].mean(dim=0).argmax()
    shares = [
        (generate_tokens(model, scheduler_of(model), batch_size=32, class_labels=labels, guidance=Guidance(scale, "linear"),
                         generator=sample_generators(0, 0, 32)) == favourite).float().mean().item()
        for scale in (1.0, 4.0)
    ]  # fmt: skip
    assert shares[1] > 1.4 * shares[0]


def test_callback_sees_every_step() -> None:
    model, seen = tiny("none"), []
    final = generate_tokens(
        model, scheduler_of(model), batch_size=2, num_inference_steps=5, callback=lambda i, ids: seen.append((i, ids))
    )
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert all(ids.shape == (2, 4, 4) and int(ids.max()) < 11 for _, ids in seen)
    assert torch.equal(seen[-1][1], final)


def test_conditional_model_without_condition_draws_unconditionally() -> None:
    model = tiny()
    null = {"representations": model.fake_latent.detach().expand(2, -1)}
    draws = [
        generate_tokens(model, scheduler_of(model), batch_size=2, generator=sample_generators(0, 0, 2), **given)
        for given in ({}, null)
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("condition", "changes", "arguments", "says"),
    [
        ("none", {}, {"guidance": Guidance(2.0)}, "no condition to be guided by"),
        ("representation", {"condition_dropout": 0.0}, {"guidance": Guidance(2.0)}, "cannot be guided"),
        ("representation", {}, {"guidance": Guidance(2.0)}, "guidance needs a representation"),
        ("none", {}, {"temperature": -1.0}, "temperature is -1.0"),
        ("none", {}, {"batch_size": 0}, "batch_size is 0"),
        ("none", {}, {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("none", {}, {"num_inference_steps": 17}, "only 16 tokens"),
        ("class", {}, {"class_labels": torch.tensor([0, 3])}, "class label 3 was given"),
        ("class", {}, {"class_labels": torch.tensor([0, -1])}, "class label -1 was given"),
        ("none", {}, {"representations": torch.randn(2, 6)}, "representations were given"),
        ("representation", {}, {"representations": torch.randn(3, 6)}, r"needs \(2, 6\)"),
    ],
)
def test_what_cannot_be(condition: str, changes: dict[str, Any], arguments: dict[str, Any], says: str) -> None:
    model = tiny(condition, **changes)
    with pytest.raises(UserError, match=says):
        generate_tokens(model, scheduler_of(model), **{"batch_size": 2, **arguments})


@pytest.mark.parametrize(("share", "shown"), [(0.95, 0), (0.5, 8), (0.25, 12), (0.0, 16)])
def test_the_encoder_sees_as_many_tokens_as_in_training(share: float, shown: int) -> None:
    recipe = MageRecipe(num_codes=11, width=16, depth=1, num_heads=2, decoder_depth=1, decoder_num_heads=2,
                        mask_ratio_mean=1.0, mask_ratio_min=share)  # fmt: skip
    model, seen = recipe.objective(Task("none", (4, 4))).model.eval(), list[int]()
    model.decoder_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    generate_tokens(model, scheduler_of(model), batch_size=1)
    assert seen[0] == 1 + shown


def test_parts_of_other_families_do_not_fit() -> None:
    model = tiny("none")
    tokenizer = VQTokenizer(base_channels=4, channel_multipliers=(1,), num_codes=11, code_dim=4, norm_groups=4)
    MageGenerator(model, scheduler_of(model), tokenizer).check()
    with pytest.raises(UserError, match="give the VQTokenizer that it was trained with"):
        MageGenerator(model, scheduler_of(model), autoencoder_kl()).check()
    with pytest.raises(UserError, match="mask token is 12, but the image scheduler's is None"):
        MageGenerator(model, DDIMScheduler(), tokenizer).check()  # type: ignore[arg-type]
