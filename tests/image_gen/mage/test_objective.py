"""The objective: loss, gradients and optimiser steps of the reference, and the mask ratio's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rcg.core.errors import UserError
from rcg.image_gen.families import family_of
from rcg.image_gen.mage.generator import MageGenerator
from rcg.image_gen.mage.objective import MageObjective, draw_mask_ratio
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.train import GeneratorStage
from tests.image_gen.mage import golden
from tests.image_gen.mage.test_transformer import tiny


def recorded() -> dict[str, torch.Tensor]:
    """The recorded batch and draws, as arguments of the objective."""
    return {
        "batch": {
            "tokens": golden.tensor("train", "gt_indices").reshape(2, 16, 16),
            "representations": golden.tensor("train", "rep"),
        },
        "mask_ratio": float(golden.tensor("train", "mask_rate")),
        "mask_noise": golden.tensor("train", "mask_noise"),
        "condition_noise": golden.tensor("train", "rep_drop_u"),
    }  # type: ignore[return-value]


class FixedTokens:
    """A data set of random tokens."""

    fingerprint = "fixed"

    def __init__(self, side: int = 16) -> None:
        self.side = side

    def __len__(self) -> int:
        return 20

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(11, (20, self.side, self.side), generator=generator)[indices]
        return {"tokens": tokens, "representations": torch.randn(20, 24, generator=generator)[indices]}


@pytest.mark.parametrize("quick_attention", [False, True])
def test_loss_and_gradients_equal_the_reference(quick_attention: bool) -> None:
    objective = MageObjective(golden.model()).train()
    if quick_attention:  # the batched products that CPUs use with dropout; this much drops nothing
        for block in [*objective.model.blocks, *objective.model.decoder_blocks]:
            block.attn.dropout = 1e-12
    loss = objective(**recorded())["loss"]
    assert abs(loss.item() / float(golden.tensor("train", "loss")) - 1) < 1e-5
    loss.backward()
    gradients = {name: p.grad for name, p in objective.model.named_parameters()}
    norms = dict(zip(golden.arrays("train")["grad_names"], golden.arrays("train")["grad_norms"], strict=True))
    assert gradients.keys() == norms.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert abs(gradient.norm().item() / norms[name] - 1) < 1e-4, name
    whole = [key for key in golden.arrays("train") if key.startswith("grad:")]
    assert len(whole) > 60
    for key in whole:
        gradient = gradients[key.removeprefix("grad:")]
        assert gradient is not None
        assert golden.relative(gradient, golden.tensor("train", key)) < 1e-4, key


def test_logits_of_training_equal_the_reference() -> None:
    model, masked = golden.model(), int(golden.tensor("train", "token_all_mask")[0].sum())
    order = golden.tensor("train", "mask_noise").argsort(dim=1)
    drop = golden.tensor("train", "rep_drop_u") < 0.1
    ids = golden.tensor("train", "gt_indices")
    with torch.no_grad():
        hidden = model.forward_masked(ids, order, 128, masked, golden.tensor("train", "rep"), drop_condition=drop)
        logits = model.token_logits(hidden, model.config.num_codes)
    expected = golden.tensor("train", "logits")[:, 1:]  # of the first 16 tokens
    for sample in range(2):
        first = (order[sample, :masked] < 16).nonzero()[:, 0]
        assert len(first) > 5
        ours, theirs = logits[sample, first], expected[sample, order[sample, first]]
        assert golden.relative(ours, theirs) < 1e-5


def test_two_optimiser_steps_equal_the_reference() -> None:
    objective = MageObjective(golden.model())
    stage = GeneratorStage(objective, FixedTokens())
    lr, decay = float(golden.tensor("opt", "lr")), float(golden.tensor("opt", "weight_decay"))
    betas = tuple(golden.arrays("opt")["betas"].tolist())
    optimizer = torch.optim.AdamW(stage.param_groups("generator", decay), lr=lr, betas=betas)
    watched = [key.removeprefix("init:") for key in golden.arrays("opt") if key.startswith("init:")]
    parameters = dict(objective.model.named_parameters())
    for step in (1, 2):
        loss = objective(**recorded())["loss"]
        assert abs(loss.item() / golden.arrays("opt")["losses"][step - 1] - 1) < 1e-5
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), float(golden.tensor("opt", "grad_clip")))
        assert abs(norm.item() / golden.arrays("opt")["grad_norms_before_clip"][step - 1] - 1) < 1e-4
        optimizer.step()
        for name in watched:
            expected = golden.tensor("opt", f"step{step}:{name}")
            part = parameters[name]
            if part.shape != expected.shape:  # the first rows were kept
                part = part[:, :8] if name == "decoder_pos_embed_learned" else part[:8]
            start = golden.tensor("opt", f"init:{name}")
            if name.endswith("qkv.bias"):  # a key's bias has no gradient but rounding, whose sign Adam makes a step of
                queries_and_values = [*range(32), *range(64, 96)]
                part, expected, start = (x[queries_and_values] for x in (part, expected, start))
            assert golden.relative(part, expected) < 1e-5, name
            assert golden.relative(part - start, expected - start) < 1e-2, name
    assert len(watched) == 9


def test_the_same_parameters_decay_as_in_the_reference() -> None:
    objective = MageObjective(golden.model())
    stage = GeneratorStage(objective, FixedTokens())
    names = {id(p): n for n, p in objective.model.named_parameters()}
    ours = {names[id(p)]: g["weight_decay"] for g in stage.param_groups("generator", 0.05) for p in g["params"]}
    rows = (line.split("\t") for line in (golden.FOLDER / "param_groups.txt").read_text().splitlines())
    theirs = {name: float(decay.removeprefix("wd=")) for decay, name in rows}
    assert ours == {name: theirs[name] for name in names.values()}
    assert not {
        n
        for n in theirs.keys() - ours.keys()
        if not n.startswith(("cls_token", "mask_token", "patch_embed", "decoder_pred"))
    }


def _kolmogorov(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance of two empirical distribution functions."""
    at = np.sort(np.concatenate([a, b]))
    return float(
        np.abs(
            np.searchsorted(np.sort(a), at, "right") / len(a) - np.searchsorted(np.sort(b), at, "right") / len(b)
        ).max()
    )


def test_mask_ratio_is_drawn_from_the_reference_distribution() -> None:
    torch.manual_seed(0)
    theirs = golden.arrays("mask_rate")["draws"]
    ours = np.array([draw_mask_ratio(0.75, 0.25, 0.5) for _ in range(4000)])
    mage = np.array([draw_mask_ratio(0.55, 0.25, 0.5) for _ in range(4000)])
    assert ours.min() >= 0.5
    assert ours.max() <= 1
    critical = 1.95 * np.sqrt(1 / len(theirs) + 1 / len(ours))  # p = 0.001
    assert _kolmogorov(ours, theirs) < critical
    assert _kolmogorov(mage, theirs) > 2 * critical  # MAGE's own mean is another
    assert abs(ours.mean() - 0.75) < 0.01


def test_loss_is_the_mean_over_masked_positions() -> None:
    model = tiny("none")
    tokens, noise = torch.randint(11, (3, 4, 4)), torch.rand(3, 16)
    loss = MageObjective(model, label_smoothing=0.2)({"tokens": tokens}, mask_ratio=0.7, mask_noise=noise)["loss"]
    order = noise.argsort(dim=1)
    logits = model.token_logits(model.forward_masked(tokens.flatten(1), order, 8, 12), 11)  # ceil(16 · 0.7) = 12
    log_p = logits.log_softmax(dim=-1)
    targets = tokens.flatten(1).gather(1, order[:, :12])
    smoothed = 0.8 * F.one_hot(targets, 11) + 0.2 / 11
    assert loss.item() == pytest.approx(-(smoothed * log_p).sum(dim=-1).mean().item(), rel=1e-5)


def test_compiled_it_takes_any_share() -> None:
    objective = MageObjective(tiny("none", depth=1, decoder_depth=1))
    batch = {"tokens": torch.arange(16).view(1, 4, 4) % 11}
    compiled = torch.compile(objective, backend="eager")
    for share in (0.6, 0.7):  # after the second, sizes are no constants any more
        noise = torch.rand(1, 16)
        expected = objective(batch, share, noise)["loss"]
        torch.testing.assert_close(compiled(batch, share, noise)["loss"], expected)


@pytest.mark.parametrize("least", [0.25, 0.8])
def test_the_familys_objective_drops_what_the_model_was_trained_without(least: float) -> None:
    model = tiny("none", mask_ratio_min=least)
    generator = MageGenerator(model, MaskGITScheduler(model.config.mask_token_id))
    objective = family_of(model).objective(generator)
    assert objective.identity()["mask_ratio"] == [max(0.75, least), 0.25, least]


@pytest.mark.parametrize(("side", "dropped"), [(3, 5), (4, 8), (5, 13)])
def test_encoder_input_has_one_length(side: int, dropped: int) -> None:
    model = tiny("none", grid_size=side)
    lengths = set()
    model.blocks[0].register_forward_hook(lambda _m, args, _o: lengths.add(args[0].shape[1]))
    objective = MageObjective(model).train()
    torch.manual_seed(0)
    for _ in range(10):
        assert torch.isfinite(objective({"tokens": torch.randint(11, (2, side, side))})["loss"])
    assert lengths == {1 + side**2 - dropped}


def test_a_model_that_sees_nearly_everything_is_judged_by_a_token() -> None:
    objective = MageObjective(tiny("none", mask_ratio_min=0.0), mask_ratio_mean=0.0)
    figures = objective.evaluate({"tokens": torch.randint(11, (2, 4, 4))}, 0)
    assert figures["cross_entropy"] > 0
    assert figures["accuracy"] in (0, 0.5, 1)


def test_condition_is_dropped_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("representation", condition_dropout=0.3)
    drops: list[torch.Tensor] = []
    original = model.forward_masked
    monkeypatch.setattr(model, "forward_masked", lambda *a, **k: drops.append(k["drop_condition"]) or original(*a, **k))
    torch.manual_seed(0)
    MageObjective(model)({"tokens": torch.randint(11, (2000, 4, 4)), "representations": torch.randn(2000, 6)})
    assert drops[0].float().mean().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"mask_ratio_mean": 0.4}, r"mask_ratio_mean is 0.4, but it must lie in \[0.5, 1\]"),
        ({"mask_ratio_std": 0.0}, "mask_ratio_std is 0.0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MageObjective(tiny(), **changes)
