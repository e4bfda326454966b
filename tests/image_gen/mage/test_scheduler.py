"""The scheduler: whole generations of the reference, its schedule, its randomness, its refusals."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.rng import sample_generators
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.mage.scheduler import MaskGITScheduler, MaskGITSchedulerOutput
from tests.image_gen.mage import golden

MASK = 99


def recorded(kind: str, key: str) -> torch.Tensor:
    return golden.tensor("generation", f"{kind}_{key}")


@pytest.mark.parametrize("kind", ["cfg0", "cfg6", "classcond"])
@torch.no_grad()
def test_whole_generation_equals_the_reference(kind: str) -> None:
    model, rep = golden.model(), recorded(kind, "rep")
    scheduler = MaskGITScheduler(2024, temperature=float(recorded(kind, "choice_temperature")))
    scheduler.set_timesteps(int(recorded(kind, "num_iter")))
    scale = 1 + float(recorded(kind, "cfg"))
    probed = {0: 0, len(scheduler.timesteps) // 2: 1, len(scheduler.timesteps) - 1: 2}
    ids = torch.full((2, 256), 2024)
    for i in scheduler.timesteps:
        assert torch.equal(ids, recorded(kind, "token_ids_before")[i])
        logits = model(ids, rep)
        if scale != 1:
            weight = Guidance(scale, "linear").at(scheduler.progress(i)) - 1
            logits = logits + weight * (logits - model(ids))
        if (probe := probed.get(int(i))) is not None and kind != "cfg6":
            ours = logits[:1, :4].log_softmax(dim=-1)
            assert golden.relative(ours, recorded(kind, "logprob")[probe]) < 1e-4
        out = scheduler.step(logits, i, ids, uniform=recorded(kind, "cat_u")[i], gumbel=recorded(kind, "gumbel")[i])
        masked = ids == 2024
        assert torch.equal(out.pred_original_sample[masked], recorded(kind, "sampled_ids_raw")[i][masked])
        assert torch.equal(out.pred_original_sample[~masked], ids[~masked])
        assert torch.equal(out.prev_sample == 2024, recorded(kind, "masking")[i])
        assert (out.prev_sample == 2024).sum(dim=1).tolist() == [int(recorded(kind, "mask_len")[i])] * 2
        ids = out.prev_sample
    assert torch.equal(out.pred_original_sample, recorded(kind, "final_ids"))


def run(scheduler: MaskGITScheduler, batch: int, tokens: int, codes: int = 7) -> list[int]:
    """Numbers of masked tokens after each step, with random logits."""
    ids, counts = torch.full((batch, tokens), MASK), []
    for i in scheduler.timesteps:
        out = scheduler.step(torch.randn(batch, tokens, codes), i, ids)
        assert isinstance(out, MaskGITSchedulerOutput)
        known = ids != MASK
        assert torch.equal(out.prev_sample[known], ids[known])  # what is known stays
        assert int(out.pred_original_sample.max()) < codes
        ids = out.prev_sample
        counts.append(int((ids == MASK).sum(dim=1).max()))
        assert counts[-1] == int((ids == MASK).sum(dim=1).min())
    return counts


@pytest.mark.parametrize(("tokens", "steps"), [(64, 16), (256, 20), (16, 16), (9, 8), (64, 1), (1, 1), (5, 5)])
def test_cosine_schedule_reveals_at_least_one_a_step(tokens: int, steps: int) -> None:
    scheduler = MaskGITScheduler(MASK, steps)
    counts = run(scheduler, 2, tokens)
    expected, before = [], tokens
    for i in range(steps):
        before = max(1, min(before - 1, math.floor(tokens * math.cos(math.pi / 2 * (i + 1) / steps))))
        expected.append(before)
    assert counts == expected
    settled = [tokens, *counts[:-1]]
    assert all(a > b for a, b in itertools.pairwise(settled))
    assert counts[-1] == 1  # whose drawn code is the result's


def test_temperature_is_annealed_to_nothing() -> None:
    scheduler = MaskGITScheduler(MASK, 4, temperature=1e6)
    logits = torch.zeros(1, 8, 3)
    logits[0, :, 0] = torch.arange(8) + 3.0  # drawn code 0, ever surer from left to right
    ids, zeros = torch.full((1, 8), MASK), torch.zeros(1, 8)
    noise = torch.arange(8, 0, -1.0)[None]  # Gumbel noise that prefers the left
    first = scheduler.step(logits, 0, ids, uniform=zeros, gumbel=noise).prev_sample
    assert (first[0] != MASK).nonzero()[:, 0].tolist() == [0]
    last = scheduler.step(logits, 3, ids, uniform=zeros, gumbel=noise).prev_sample
    assert (last[0] == MASK).nonzero()[:, 0].tolist() == [0]
    calm = scheduler.step(logits, 0, ids, uniform=zeros, gumbel=noise, temperature=0.0).prev_sample
    assert (calm[0] != MASK).nonzero()[:, 0].tolist() == [7]


def test_codes_are_drawn_from_the_distribution() -> None:
    scheduler = MaskGITScheduler(MASK, 1)
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    logits = probabilities.clamp_min(1e-30).log().expand(4, 5000, 4)
    out = scheduler.step(logits, 0, torch.full((4, 5000), MASK), generator=sample_generators(0, 0, 4))
    share = torch.bincount(out.pred_original_sample.flatten(), minlength=4) / 20000
    assert torch.allclose(share, probabilities, atol=0.015)
    assert share[1] == 0
    ends = scheduler.step(
        logits[:, :2], 0, torch.full((4, 2), MASK), uniform=torch.tensor([0.0, 1 - 1e-16]).expand(4, 2)
    )
    assert ends.pred_original_sample.unique().tolist() == [0, 3]


def test_a_samples_stream_is_its_own() -> None:
    scheduler = MaskGITScheduler(MASK, 3)
    logits, ids = torch.randn(5, 12, 6), torch.full((5, 12), MASK)
    whole = scheduler.step(logits, 0, ids, generator=sample_generators(7, 0, 5))
    for j in range(5):
        one = scheduler.step(logits[j : j + 1], 0, ids[j : j + 1], generator=sample_generators(7, j, 1))
        assert torch.equal(one.prev_sample[0], whole.prev_sample[j])
        assert torch.equal(one.pred_original_sample[0], whole.pred_original_sample[j])


def test_order_of_draws_is_as_documented() -> None:
    scheduler = MaskGITScheduler(MASK, 3)
    logits, ids = torch.randn(1, 12, 6), torch.full((1, 12), MASK)
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(12, dtype=torch.float64, generator=generator)[None]
    gumbel = -torch.log(-torch.log(torch.rand(12, dtype=torch.float64, generator=generator)))[None]
    drawn = scheduler.step(logits, 0, ids, generator=[torch.Generator().manual_seed(3)])
    given = scheduler.step(logits, 0, ids, uniform=uniform, gumbel=gumbel)
    assert torch.equal(drawn.prev_sample, given.prev_sample)
    single = scheduler.step(logits, 0, ids, generator=torch.Generator().manual_seed(3), return_dict=False)
    assert torch.equal(single[0], given.prev_sample)
    assert torch.equal(single[1], given.pred_original_sample)


def test_save_and_load(tmp_path: Path) -> None:
    MaskGITScheduler(17, 11, 3.5).save_pretrained(tmp_path)
    loaded = MaskGITScheduler.from_pretrained(tmp_path)
    assert (loaded.config.mask_token_id, loaded.config.num_inference_steps, loaded.config.temperature) == (17, 11, 3.5)
    assert loaded.timesteps.tolist() == list(range(11))
    loaded.set_timesteps(4)
    assert len(loaded.timesteps) == 4
    loaded.set_timesteps()
    assert len(loaded.timesteps) == 11


def test_what_cannot_be() -> None:
    scheduler = MaskGITScheduler(MASK)
    for steps in (0, -1, 2.5, True):
        with pytest.raises(UserError, match="whole number above 0"):
            scheduler.set_timesteps(steps)  # type: ignore[arg-type]
    scheduler.set_timesteps(17)
    ids = torch.full((2, 16), MASK)
    with pytest.raises(UserError, match="only 16 tokens"):
        scheduler.step(torch.randn(2, 16, 4), 0, ids)
    scheduler.set_timesteps(16)
    with pytest.raises(UserError, match="3 generators were given for 2 samples"):
        scheduler.step(torch.randn(2, 16, 4), 0, ids, generator=sample_generators(0, 0, 3))
    with pytest.raises(UserError, match="not finite"):
        scheduler.step(torch.full((2, 16, 4), float("nan")), 0, ids)
    with pytest.raises(UserError, match="temperature is -1"):
        MaskGITScheduler(MASK, temperature=-1)
    with pytest.raises(UserError, match="temperature is inf"):
        MaskGITScheduler(MASK, temperature=np.inf)
