"""Starting from another generator's weights: what is taken over, what stays new, what is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.adm.unet import ADMUNet
from rcg.image_gen.pixels.objective import PixelObjective
from rcg.image_gen.recipes import RECIPES
from rcg.image_gen.start import start_from
from rcg.image_gen.train import GeneratorStage
from tests.image_gen.adm.models import tiny as tiny_adm
from tests.image_gen.edm.test_unet import tiny as tiny_edm
from tests.image_gen.latent_dit.models import tiny as tiny_dit
from tests.image_gen.ldm.models import tiny as tiny_ldm
from tests.image_gen.mage.test_transformer import tiny as tiny_mage
from tests.image_gen.pixel_dit.models import given, tiny
from tests.image_gen.test_train import Pictures

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def test_a_model_of_the_same_kind_becomes_the_same() -> None:
    model, other = tiny(seed=1), tiny(seed=2)
    assert start_from(model, other) == []
    assert torch.equal(model(X, 0.4, **given("representation", 3)), other(X, 0.4, **given("representation", 3)))
    other.head.linear.weight.zero_()
    assert model(X, 0.4).any()  # its weights are its own


@pytest.mark.parametrize("condition", ["representation", "class"])
@torch.no_grad()
def test_a_model_without_condition_goes_on_from_the_null_condition(condition: str) -> None:
    model, other = tiny("none", seed=1), tiny(condition, seed=2)
    assert start_from(model, other) == []
    assert torch.allclose(model(X, 0.4), other(X, 0.4), atol=1e-5)


@pytest.mark.parametrize("kind", ["edm", "adm", "ldm"])
@torch.no_grad()
def test_so_do_u_nets(kind: str) -> None:
    make, shape = {"edm": (tiny_edm, (3, 8, 8)), "adm": (tiny_adm, (3, 8, 8)), "ldm": (tiny_ldm, (4, 4, 4))}[kind]
    model, other = make("none"), make("representation" if kind != "ldm" else "class")
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(9))
    start_from(model, other)
    assert torch.allclose(model(x, 0.4), other(x, 0.4), atol=1e-4)
    assert not torch.allclose(other(x, 0.4), other(x, 0.4, **given_of(kind)), atol=1e-3)  # the condition matters


def given_of(kind: str) -> dict[str, torch.Tensor]:
    return given("class", 2) if kind == "ldm" else given("representation", 2)


@torch.no_grad()
def test_another_condition_of_mage_stays_new() -> None:
    model, other = tiny_mage("class", seed=1), tiny_mage("representation", seed=2)
    assert start_from(model, other) == ["class_emb.weight"]
    assert start_from(other, tiny_mage("none", seed=3)) == [
        "fake_latent",
        "latent_prior_proj.weight",
        "latent_prior_proj.bias",
    ]


@pytest.mark.parametrize(("condition", "changes"), [("class", {}), ("representation", {"representation_dim": 9})])
@torch.no_grad()
def test_another_condition_stays_new(condition: str, changes: dict[str, Any]) -> None:
    model, other = tiny(condition, seed=1, **changes), tiny("representation", seed=2)
    before = {name: value.clone() for name, value in model.condition_embed.state_dict().items()}
    new = start_from(model, other)
    assert new
    assert all(name.startswith("condition_embed.") for name in new)
    assert all(torch.equal(model.state_dict()[name], before[name.split(".", 1)[1]]) for name in new)
    assert torch.equal(model.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("model", "other", "says"),
    [
        (tiny(), tiny(width=32, depth=2), r"width 32 \(here 16\).*; add --width 32"),
        (tiny(), tiny(patch_size=4, conv_channels=[8]), "add .*--conv-channels 8"),
        (
            tiny(conv_channels=[8], patch_size=4),
            tiny(patch_size=4),
            r"conv_channels none \(here 8\); add --conv-channels\.",
        ),
        (
            tiny(),
            tiny_mage("representation"),
            "makes a PixelDiT, but the weights to start from are a MageTransformer's",
        ),
        (tiny("none"), tiny(condition_dropout=0.0), "know no null representation"),
        (
            tiny_mage("none"),
            tiny_mage("representation"),
            "MageTransformer without condition cannot go on .* 'representation'",
        ),
        (tiny_ldm("none"), tiny_ldm("representation"), "other parts, which belong to their condition"),
    ],
)
def test_what_does_not_fit_is_refused(model: Any, other: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        start_from(model, other)


def test_saved_sizes_that_are_the_same_are_not_named(tmp_path: Path) -> None:
    tiny_adm("none").save_pretrained(tmp_path)  # JSON makes lists of tuples
    with pytest.raises(UserError, match=r"kind: base_channels 32 \(here 64\); add --base-channels 32\.$"):
        start_from(tiny_adm("none", base_channels=64), ADMUNet.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("model", "other", "way"),
    [
        (tiny_dit("none"), tiny_dit("none", learn_sigma=False), r"False \(here True\); add --no-learn-sigma\.$"),
        (tiny_dit("none", learn_sigma=False), tiny_dit("none"), r"True \(here False\); add --learn-sigma\.$"),
        (tiny_edm(attention_size=4), tiny_edm(attention_size=0), r"0 \(here 4\); add --attention-size 0\.$"),
        (tiny_mage("none"), tiny_mage("none", width=32), r"decoder_width 32 \(here 16\); add --width 32\.$"),
        (tiny_mage("none"), tiny_mage("none", grid_size=3), r"grid_size 3 \(here 4\); train on data of its size\.$"),
        (tiny(), tiny(image_size=16, width=32), "; add --width 32, and train on data of its size"),
    ],
)
def test_ways_out_are_flags_that_there_are(model: Any, other: Any, way: str) -> None:
    with pytest.raises(UserError, match=way) as refused:
        start_from(model, other)
    known = {field.name for recipe in RECIPES.values() for field in fields(recipe)}
    named = [flag.removeprefix("no-").replace("-", "_") for flag in re.findall(r"--([a-z-]+)", str(refused.value))]
    assert known.issuperset(named)


def test_a_token_that_takes_the_null_conditions_place_is_not_new() -> None:
    assert start_from(tiny_ldm("none"), tiny_ldm("class")) == []


def test_a_run_remembers_where_it_started() -> None:
    plain = GeneratorStage(PixelObjective(tiny("none")), Pictures())
    begun = GeneratorStage(PixelObjective(tiny("none")), Pictures(), start=tiny("none", seed=3))
    assert "start" not in plain.identity()
    assert begun.identity() == plain.identity() | {"start": begun.start}
    assert torch.equal(begun.model.patch_embed.weight, tiny("none", seed=3).patch_embed.weight)


@pytest.mark.parametrize(
    ("make", "own", "theirs", "says"),
    [
        (tiny_adm, {"norm_groups": 8}, {"norm_groups": 32}, r"norm_groups 32 \(here 8\); add --norm-groups 32"),
        (tiny_adm, {}, {"prediction_type": "v_prediction"}, "add --prediction-type v_prediction"),
        (tiny_dit, {"num_heads": 2}, {"num_heads": 4}, r"num_heads 4 \(here 2\); add --num-heads 4"),
        (tiny_ldm, {"head_channels": 16}, {"head_channels": 32}, "add --head-channels 32"),
    ],
)
def test_settings_that_no_weight_shows_must_agree(make: Any, own: Any, theirs: Any, says: str) -> None:
    model, other = make("none", **own), make("none", **theirs)
    assert all(v.shape == other.state_dict()[k].shape for k, v in model.state_dict().items())
    with pytest.raises(UserError, match=says):
        start_from(model, other)
