"""Codes: the quantiser, the order of drawing, the objective, and samples against the model's own distribution."""

from __future__ import annotations

import itertools

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.flow import flow_scheduler
from rcg.core.rng import Noise
from rcg.rdm.codes.generator import CodesGenerator
from rcg.rdm.codes.objective import CodesObjective
from rcg.rdm.codes.quantizer import ProductQuantizer, deal, kmeans
from rcg.rdm.codes.scheduler import CodeScheduler
from rcg.rdm.codes.transformer import CodeTransformer
from rcg.rdm.protocol import Request
from tests.rdm.data import modes

DIM = 8


def data(count: int = 3000, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(modes(count, DIM, seed).vectors)


def model(num_classes: int = 0, positions: int = 4, num_codes: int = 6, **changes: object) -> CodeTransformer:
    torch.manual_seed(0)
    made = CodeTransformer(
        DIM, positions, num_codes, 16, 1, 2, num_classes, class_dropout=0.1 if num_classes else 0.0, **changes  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


# ---------------------------------------------------------------------- the quantiser


def test_codes_round_trip() -> None:
    quantizer = ProductQuantizer(DIM, 4, 16)
    quantizer.fit(data())
    codes = torch.randint(16, (50, 4), generator=torch.Generator().manual_seed(0))
    centres = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(centres), codes)  # a centre is nearest to itself
    x = data(200, seed=1)
    found = quantizer.encode(x)
    assert found.shape == (200, 4)
    assert (found.min(), found.max()) == (0, 15)
    every = torch.stack(
        [quantizer.decode(found.index_fill(1, torch.tensor([n]), k)) for n in range(4) for k in range(16)]
    )
    errors = (every - x).square().sum(-1).view(4, 16, 200)
    assert torch.equal(errors.argmin(1).T, found)  # no other code at any position comes closer


def test_decoding_has_the_mean_and_covariance_of_the_data() -> None:
    x = data()
    quantizer = ProductQuantizer(DIM, 2, 8)
    quantizer.fit(x)
    codes = quantizer.encode(x)
    centres = quantizer.decode(codes)
    decoded = quantizer.decode(codes, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert centres.var(0).sum() < 0.97 * x.var(0).sum()  # centres alone shrink it
    torch.testing.assert_close(decoded.mean(0), x.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(decoded.T.cov(), x.T.cov(), atol=0.03, rtol=0)


def test_fitting_is_deterministic_and_better_than_its_start() -> None:
    x = data()
    made = [ProductQuantizer(DIM, 4, 16) for _ in range(2)]
    for quantizer in made:
        torch.randn(3)  # the global state does not matter
        quantizer.fit(x)
    for one, other in zip(made[0].buffers(), made[1].buffers(), strict=True):
        assert torch.equal(one, other)
    rotation = made[0].rotation
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(DIM), atol=1e-5, rtol=0)

    def error(rounds: int) -> float:
        centres, codes = kmeans(x[None], 16, rounds)
        return float((x - centres[0, codes[0]]).square().sum(1).mean())

    assert error(25) < error(3) < error(0)


def test_no_cluster_stays_empty() -> None:
    """Where many vectors coincide, so do centres at the start; they are then put to use."""
    x = torch.cat([torch.zeros(1, 90, 2), torch.arange(20.0).view(1, 10, 2)], dim=1)
    centres, codes = kmeans(x, 8)
    assert codes.unique().numel() == 8
    assert float((x - centres.gather(1, codes[..., None].expand(-1, -1, 2))).abs().max()) < 3


def test_components_are_dealt_to_groups_of_equal_volume() -> None:
    variances = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128])
    order = deal(variances, 4)
    assert sorted(order.tolist()) == list(range(8))
    assert variances[order].view(4, 2).prod(1).tolist() == [128.0] * 4
    assert sorted(deal(torch.zeros(6), 3).tolist()) == list(range(6))


# ---------------------------------------------------------------------- the order of drawing


@pytest.mark.parametrize("steps", [1, 3, 8, 12])
def test_every_code_is_drawn_once_and_more_at_each_step(steps: int) -> None:
    scheduler = CodeScheduler(num_inference_steps=steps)
    counts = scheduler.masked_counts(12)
    drawn = [a - b for a, b in itertools.pairwise(counts)]
    assert (counts[0], counts[-1], len(drawn)) == (12, 0, steps)
    assert min(drawn) >= 1
    noise = Noise([3, 4])
    rank = scheduler.order(noise, 12)
    assert rank.sort(1).values.tolist() == [list(range(12))] * 2
    codes = torch.full((2, 12), 5)
    for i in range(steps):
        codes = scheduler.step(torch.zeros(2, 12, 5), i, codes, rank, noise)
        assert (codes == 5).sum(1).tolist() == [counts[i + 1]] * 2


def test_one_code_a_step_draws_from_the_models_own_distribution() -> None:
    """Two positions, drawn one after the other: the frequencies are the mixture over both orders of p(a)·p(b | a)."""
    rdm = model(positions=2, num_codes=3)
    rdm.quantizer.fit(data())
    seen: list[torch.Tensor] = []
    generator = CodesGenerator(rdm, CodeScheduler(num_inference_steps=2))
    rdm.decode = lambda codes, noise: seen.append(codes) or torch.zeros(len(codes), DIM)  # type: ignore[assignment, func-returns-value]
    generator.draw(Request(Noise(list(range(20_000))), blocks=False))
    pairs = torch.cat(seen)[:20_000]
    frequencies = (pairs[:, 0] * 3 + pairs[:, 1]).bincount(minlength=9) / 20_000
    with torch.no_grad():
        first = rdm(torch.tensor([[3, 3]])).softmax(-1)[0]
        given_a = rdm(torch.tensor([[a, 3] for a in range(3)])).softmax(-1)[:, 1]  # [a, b]
        given_b = rdm(torch.tensor([[3, b] for b in range(3)])).softmax(-1)[:, 0].T  # [a, b]
    expected = (first[0][:, None] * given_a + first[1][None] * given_b) / 2
    torch.testing.assert_close(frequencies.view(3, 3), expected, atol=0.012, rtol=0)


def test_guidance_extrapolates_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rdm = model(3)
    rdm.quantizer.fit(data())
    seen: list[torch.Tensor] = []
    original = CodeScheduler.step

    def step(self: CodeScheduler, logits: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(logits)
        return original(self, logits, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(CodeScheduler, "step", step)
    generator = CodesGenerator(rdm, CodeScheduler(num_inference_steps=1))
    for label, scale in ((1, 1.0), (None, 1.0), (1, 2.5)):
        labels = None if label is None else torch.tensor([label, label])
        generator.draw(Request(Noise([1, 2]), labels, None, scale))
    with_class, without, guided = seen
    torch.testing.assert_close(guided, without + 2.5 * (with_class - without), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_class, without)


# ---------------------------------------------------------------------- the objective


def test_the_loss_is_the_cross_entropy_of_what_is_masked() -> None:
    rdm = model()
    objective = CodesObjective(rdm)
    objective.fit(data())
    x = data(3, seed=2)
    codes = rdm.encode(x)
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]])
    losses, hits = objective.losses(x, torch.tensor([0.0, 0.999, 0.5]), order)
    for row, masked in enumerate([[0, 1, 2, 3], [3], [0, 1, 3]]):  # cos(π/4)·4 = 2.8
        given = codes[row].clone()
        given[masked] = rdm.mask_code
        log_p = rdm(given[None]).log_softmax(-1)[0]
        expected = -torch.stack([log_p[n, codes[row, n]] for n in masked]).mean()
        torch.testing.assert_close(losses[row], expected)
        right = [float(log_p[n].argmax() == codes[row, n]) for n in masked]
        assert float(hits[row]) == pytest.approx(sum(right) / len(right))


def test_only_the_model_is_trained() -> None:
    objective = CodesObjective(model(3))
    objective.fit(data())
    objective({"representations": data(16), "labels": torch.arange(16) % 3})["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())
    names = {name for name, _ in objective.named_parameters()}
    assert not any("quantizer" in name for name in names)
    assert any("quantizer.centres" in name for name in objective.state_dict())


def test_what_cannot_be_used_says_so() -> None:
    with pytest.raises(UserError, match="take a divisor"):
        CodeTransformer(DIM, 3)
    with pytest.raises(UserError, match="does not split over 3 heads"):
        CodeTransformer(DIM, 4, width=16, num_heads=3)
    with pytest.raises(UserError, match="more than can be held"):
        CodeTransformer(DIM, 4, num_codes=2**24, width=64, num_heads=2)
    with pytest.raises(UserError, match="8 codes cannot be fitted to 5 representations"):
        CodesObjective(model(num_codes=8)).fit(data(5))
    with pytest.raises(UserError, match="needs a CodeScheduler"):
        CodesGenerator(model(), flow_scheduler()).check()
    with pytest.raises(UserError, match="use 4 steps or fewer"):
        CodesGenerator(model(), CodeScheduler(num_inference_steps=5)).check()
    with pytest.raises(UserError, match="use 4 steps or fewer"):
        CodesGenerator(model(), CodeScheduler(num_inference_steps=2)).draw(Request(Noise([1]), num_inference_steps=9))
    with pytest.raises(UserError, match="the codes have shape"):
        model()(torch.zeros(2, 5, dtype=torch.int64))
    broken = model()
    broken.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        CodesGenerator(broken, CodeScheduler(num_inference_steps=2)).draw(Request(Noise([1])))
