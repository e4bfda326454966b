"""ADM against the reference: outputs, losses, whole guided generations."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from rcg.core.pictures import from_signed
from rcg.image_gen.adm.generator import ADMGenerator
from rcg.image_gen.adm.unet import ADMUNet
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.diffusion.objective import DiffusionObjective
from rcg.image_gen.protocol import Request
from rcg.published.adm import convert_adm
from tests.golden.seeded import normal
from tests.image_gen.adm import golden


def model_of(condition: str = "representation") -> ADMUNet:
    return convert_adm(golden.contents(condition), "adm.pth", image_size=golden.SIZE).model


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
@torch.no_grad()
def test_outputs(condition: str) -> None:
    output = model_of(condition)(normal("x", 2, 3, 16, 16), torch.tensor([3, 870]), **golden.given(condition))
    assert golden.distance(output, golden.value(f"forward_{condition}")) < 1e-5


@torch.no_grad()
def test_losses() -> None:
    objective = DiffusionObjective(ADMGenerator(model_of(), default_scheduler()))
    clean, steps = normal("clean", 4, 3, 16, 16).div(2).clamp(-1, 1), torch.tensor([0, 1, 400, 999])
    given = {"representations": normal("reps", 4, 12)}
    parts = objective.losses(clean, steps, normal("noise", 4, 3, 16, 16), given)
    assert torch.allclose(parts["noise_error"], golden.value("loss_mse"), rtol=1e-5)
    assert torch.allclose(parts["bound"], golden.value("loss_vb"), rtol=1e-4)


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_whole_guided_generations(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 32 * 2 * golden.SIZE**2)
    model = model_of()
    model.register_to_config(condition_dropout=0.1)
    model.condition_embed.null.data.copy_(normal("null", 1, 12))
    ddim = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon")
    settings: dict[str, Any] = {"temperature": None, "guidance": Guidance(golden.SCALE), "exact": kind == "ancestral"}
    request = Request(
        golden.RecordedNoise(),  # type: ignore[arg-type]
        golden.given("representation")["representations"],
        None,
        num_inference_steps=golden.STEPS[kind],
        **settings,
    )
    generator = ADMGenerator(model, default_scheduler() if kind == "ancestral" else ddim)
    data = generator.draw(generator.drawing(request), request)
    assert golden.distance(data, golden.value(f"sample_{kind}")) < 1e-4
    codes = generator.codes_of(data)
    assert (codes.int() - from_signed(golden.value(f"sample_{kind}")).int()).abs().max() <= 1
