"""Sampling and training of ADM: one image whatever its batch, clipping, what a pipeline asks, and that it is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.pictures import from_signed
from rcg.core.rng import Noise
from rcg.image_gen.adm.generator import ADMGenerator
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.protocol import Request
from tests.image_gen.adm.models import CONDITIONS, batch, given, tiny


def request(count: int, condition: str = "none", first: int = 0, **changes: Any) -> Request:
    """Of images `first … first + count - 1` of one seed."""
    rows = {k: v[first:] for k, v in given(condition, first + count).items()}
    settings: dict[str, Any] = {"num_inference_steps": 3, "temperature": None, **changes}
    return Request(
        Noise([100 + i for i in range(first, first + count)]),
        rows.get("representations"),
        rows.get("class_labels"),
        **settings,
    )


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("exact", [False, True])
def test_an_image_does_not_depend_on_its_batch(condition: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 32 * 128)  # two images a block
    generator, seen = ADMGenerator(tiny(condition), default_scheduler()), []
    scale: dict[str, Any] = {"guidance": Guidance(2.0)} if condition != "none" else {}
    whole = generator.generate(
        request(3, condition, **scale, exact=exact, callback=lambda i, codes: seen.append((i, codes)))
    )
    assert whole.dtype == torch.uint8
    assert whole.shape == (3, 3, 8, 8)
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], whole)
    assert torch.equal(generator.generate(request(1, condition, 2, **scale, exact=exact)), whole[2:])


@pytest.mark.parametrize("exact", [False, True])
def test_autoguidance_changes_images(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 32 * 64)
    good, bad = tiny("none"), tiny("none", seed=1)
    images = [
        ADMGenerator(good, default_scheduler(), None, weaker).generate(
            request(1, guidance=Guidance(2.0), num_inference_steps=2, exact=exact)
        )
        for weaker in (good, bad)
    ]
    alone = ADMGenerator(good, default_scheduler()).generate(request(1, num_inference_steps=2, exact=exact))
    assert (images[0].int() - alone.int()).abs().max() <= 1  # guided away from itself: not at all
    assert not torch.equal(images[1], alone)


def test_predictions_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds no noise anywhere predicts images far outside; drawn ones are not."""
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 32 * 128)
    generator = ADMGenerator(tiny("none", stirred=False), default_scheduler())
    wanted = request(2, num_inference_steps=5)
    data = generator.draw(generator.drawing(wanted), wanted)
    assert data.abs().max() <= 1.001
    assert data.abs().mean() > 0.5


def test_what_a_pipeline_asks_of_the_generator() -> None:
    generator = ADMGenerator(tiny("class"), default_scheduler())
    assert (generator.condition, generator.num_classes, generator.field, generator.exact_steps) == (
        "class",
        3,
        "images",
        250,
    )
    assert generator.guidable
    assert generator.decodable
    generator.check()
    assert generator.defaults()["temperature"] is None
    with pytest.raises(UserError, match="leave the tokenizer out"):
        ADMGenerator(tiny(), default_scheduler(), torch.nn.Identity()).check()
    with pytest.raises(UserError, match="4 channels"):
        ADMGenerator(tiny("none", in_channels=4), default_scheduler()).check()
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal((generator.decode(codes) * 255).round().to(torch.uint8), codes)
    assert torch.equal(generator.codes_of(generator.data_of(codes)), codes)


def test_steps_that_nobody_looks_at_are_not_made_into_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a step's images are finite a GPU would have to be waited for."""
    made = list[torch.Tensor]()
    monkeypatch.setattr("rcg.image_gen.adm.generator.from_signed", lambda x: made.append(x) or from_signed(x))
    generator, steps = ADMGenerator(tiny("none"), default_scheduler()), list[int]()
    generator.generate(request(2, callback=lambda i, _codes: steps.append(i), watched=False))
    assert steps == [0, 1, 2]
    assert len(made) == 1


def test_a_model_without_null_condition_cannot_be_guided() -> None:
    generator = ADMGenerator(tiny("class", condition_dropout=0.0), default_scheduler())
    assert not generator.guidable
    with pytest.raises(UserError, match="condition_dropout=0"):
        generator.generate(request(2, "class", guidance=Guidance(2.0)))


def test_codes_that_do_not_fit() -> None:
    objective, images = DiffusionObjective(ADMGenerator(tiny(), default_scheduler())), batch("none", 3)["images"]
    assert torch.equal(objective.encode(images.float() / 255), images)
    objective.check_codes(images)
    for wrong, says in ((images.float(), "the model takes uint8"), (images[..., :7], r"the model takes \[3, 8, 8\]")):
        with pytest.raises(UserError, match=says):
            objective.check_codes(wrong)


def test_the_loss_of_a_few_images_falls() -> None:
    torch.manual_seed(0)
    colours = torch.randint(256, (8, 3, 1, 1), dtype=torch.uint8)
    data = {"images": colours.expand(-1, -1, 8, 8).contiguous()}
    model = tiny("none", stirred=False)
    objective = DiffusionObjective(ADMGenerator(model, default_scheduler())).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    errors = []
    for _ in range(12):
        parts = objective(data)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        errors.append(parts["noise_error"].item())
    assert errors[0] == pytest.approx(1, abs=0.1)  # it begins with no noise at all
    assert sum(errors[-3:]) < 0.7 * 3
