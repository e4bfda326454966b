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
from rcg.rdm.codes.quantizer import ResidualQuantizer
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


def test_codes_are_the_nearest_centres_of_what_is_left() -> None:
    quantizer = ResidualQuantizer(DIM, 3, 16)
    quantizer.fit(data())
    x = data(200, seed=1)
    found = quantizer.encode(x)
    assert found.shape == (200, 3)
    assert (found.min(), found.max()) == (0, 15)
    for row, codes in zip(x.double().numpy(), found.tolist(), strict=True):
        left = row - quantizer.mean.double().numpy()
        for centres, code in zip(quantizer.centres.double().numpy(), codes, strict=True):
            distances = ((centres - left) ** 2).sum(axis=1)
            assert distances[code] <= distances.min() + 1e-5
            left = left - centres[code]


def test_every_code_brings_the_decoded_nearer() -> None:
    x, quantizer = data(), ResidualQuantizer(DIM, 4, 8)
    quantizer.fit(x)
    codes = quantizer.encode(x)
    parts = quantizer.centres[torch.arange(4), codes]
    torch.testing.assert_close(quantizer.mean + parts.sum(1), quantizer.decode(codes))
    errors = [float((x - quantizer.mean - parts[:, :n].sum(1)).square().mean()) for n in range(5)]
    assert all(b < 0.9 * a for a, b in itertools.pairwise(errors))


def test_decoding_has_the_mean_and_covariance_of_the_data() -> None:
    x = data()
    quantizer = ResidualQuantizer(DIM, 2, 4)
    quantizer.fit(x)
    codes = quantizer.encode(x)
    centres = quantizer.decode(codes)
    decoded = quantizer.decode(codes, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert centres.var(0).sum() < 0.97 * x.var(0).sum()  # centres alone shrink it
    torch.testing.assert_close(decoded.mean(0), x.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(decoded.T.cov(), x.T.cov(), atol=0.03, rtol=0)


def test_half_precision_weights_code_and_draw_in_float32() -> None:
    x, rdm = data(), model()
    rdm.fit(x)
    noise = torch.randn(200, DIM)
    codes, expected = rdm.encode(x[:200]), rdm.decode(rdm.encode(x[:200]), noise)
    rdm = rdm.bfloat16()
    half = rdm.decode(codes, noise)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0.02)
    assert (rdm.encode(x[:200]) == codes).float().mean() > 0.8
    assert CodesGenerator(rdm, CodeScheduler(2)).draw(Request(Noise([1, 2]))).isfinite().all()


def test_fitting_is_deterministic() -> None:
    x = data()
    made = [ResidualQuantizer(DIM, 4, 16) for _ in range(2)]
    for quantizer in made:
        torch.randn(3)  # the global state does not matter
        quantizer.fit(x)
    for one, other in zip(made[0].buffers(), made[1].buffers(), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------- the order of drawing


@pytest.mark.parametrize("steps", [1, 3, 8, 12])
def test_every_code_is_drawn_once_and_more_at_each_step(steps: int) -> None:
    scheduler = CodeScheduler(num_inference_steps=steps)
    counts = scheduler.masked_counts(12)
    drawn = [a - b for a, b in itertools.pairwise(counts)]
    assert (counts[0], counts[-1], len(drawn)) == (12, 0, steps)
    assert min(drawn) >= 1
    noise = Noise([3, 4])
    codes = torch.full((2, 12), 5)
    for i in range(steps):
        codes = scheduler.step(torch.zeros(2, 12, 5), i, codes, noise)
        assert [(row == 5).nonzero()[:, 0].tolist() for row in codes] == [list(range(12 - counts[i + 1], 12))] * 2


def test_one_code_a_step_draws_from_the_models_own_distribution() -> None:
    """Two positions, drawn one after the other: the frequencies are p(a) · p(b | a)."""
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
    expected = first[0][:, None] * given_a
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
    losses, hits = objective.losses(x, torch.tensor([0.0, 0.999, 0.3]))
    for row, masked in enumerate([[0, 1, 2, 3], [3], [1, 2, 3]]):
        given = codes[row].clone()
        given[masked] = rdm.mask_code
        log_p = rdm(given[None]).log_softmax(-1)[0]
        expected = -torch.stack([log_p[n, codes[row, n]] for n in masked]).sum() / 2.5  # (N + 1) / 2
        torch.testing.assert_close(losses[row], expected)
        right = [float(log_p[n].argmax() == codes[row, n]) for n in masked]
        assert float(hits[row]) == pytest.approx(sum(right) / len(right))


def test_a_fitted_model_begins_with_the_frequencies_of_the_codes() -> None:
    rdm = model(positions=2, num_codes=4)
    x = data()
    CodesObjective(rdm).fit(x)
    counts = torch.stack([column.bincount(minlength=4) for column in rdm.encode(x).T]).float()
    for given in ([4, 4], [1, 4], [2, 3]):
        probabilities = rdm(torch.tensor([given]))[0].softmax(-1)
        torch.testing.assert_close(probabilities, counts / len(x), atol=1e-3, rtol=0)


def test_only_the_model_is_trained() -> None:
    objective = CodesObjective(model(3))
    objective.fit(data())
    objective({"representations": data(16), "labels": torch.arange(16) % 3})["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())
    names = {name for name, _ in objective.named_parameters()}
    assert not any("quantizer" in name for name in names)
    assert any("quantizer.centres" in name for name in objective.state_dict())


def test_what_cannot_be_used_says_so() -> None:
    with pytest.raises(UserError, match="does not split over 3 heads"):
        CodeTransformer(DIM, 4, width=16, num_heads=3)
    with pytest.raises(UserError, match="more than can be held"):
        CodeTransformer(DIM, 4, num_codes=2**24, width=64, num_heads=2)
    with pytest.raises(UserError, match="8 codes cannot be fitted to 5 representations"):
        CodesObjective(model(num_codes=8)).fit(data(5))
    assert CodesObjective(model(num_codes=30_000)).fit_samples > 30_000  # adding data, as advised, does help
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
