"""Drawings of every family and RDM method, compared with and without replaying (`rcg.core.replay`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcg.core.replay import replaying
from rcg.core.rng import Noise
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.protocol import Request
from rcg.rdm import protocol as rdm_protocol
from rcg.rdm.methods import METHODS, open_rdm
from tests.components import CLASSES, get_dummy_rdm
from tests.training.objectives import GENERATORS, made

GUIDED = ("by null", "by model")
DRAWINGS = (*GENERATORS, *METHODS)


def stirred(model: Any) -> Any:
    """The model with weights that let every input matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter))
    return model


def drawn(
    name: str, device: Any, exact_bits: bool = False, precision: Any = "fp32", sizes: Sequence[int] = (3,)
) -> None:
    """Draw again and again, with other noise, conditions, numbers of samples and weights, each time also eagerly; compare.

    Args:
        name: of `DRAWINGS`.
        device: where.
        exact_bits: whether both are to be the same, bit for bit, instead of nearly.
        precision: of the model.
        sizes: numbers of samples.
    """
    draw: Any = _Images(name, device, precision) if name in GENERATORS else _Representations(name, device, precision)
    many, *fewer = sizes
    for number, (rows, weights) in enumerate([(many, 0)] * 3 + [(few, 0) for few in fewer] * 2 + [(many, 1)]):
        for case in range(len(draw.cases)):
            found = draw(number, rows, weights, case)
            with replaying(False):
                expected = draw(number, rows, weights, case)
            where = f"{name}, {draw.cases[case]}, drawing {number}"
            if exact_bits:
                assert torch.equal(found, expected), where
            elif not found.is_floating_point():
                near = (found.long() - expected.long()).abs() <= (name != "mage")  # pixels may round differently
                assert near.float().mean() > 0.98, where
            else:
                error = (found.double() - expected.double()).norm() / expected.double().norm()
                assert error < (1e-4 if precision == "fp32" else 2e-2), where


class _Images:
    """Codes of a family: unguided, guided by the null condition and by another model, exact."""

    cases = ("plain", *GUIDED, "exact")

    def __init__(self, name: str, device: Any, precision: Any) -> None:
        stage: Any = made(name)
        self.generator = stage.objective.generator
        self.generator.model = stirred(stage.model).eval().to(device)
        self.weaker, self.tokens = stirred(copy.deepcopy(self.generator.model)), name == "mage"
        self.device, self.precision = device, precision

    def __call__(self, number: int, rows: int, weights: int, case: int) -> Tensor:
        generator, kind = self.generator, self.cases[case]
        generator.guiding_model = self.weaker if kind == "by model" else None
        _shift(generator.model, weights)
        random = torch.Generator().manual_seed(100 * number + case)
        return generator.generate(
            Request(
                noise=Noise([1000 * number + i for i in range(rows)], self.device),
                representations=torch.randn(rows, 12, generator=random).to(self.device),
                class_labels=None,
                num_inference_steps=5 if self.tokens or kind == "exact" else 2,
                temperature=generator.defaults()["temperature"],
                guidance=Guidance(2.0 if kind in GUIDED else 1.0),
                exact=kind == "exact",
                precision=self.precision,
            )
        )


class _Representations:
    """Representations of a method, with a class and guided by it."""

    cases = ("unconditional", "class", "guided")

    def __init__(self, method: Any, device: Any, precision: Any) -> None:
        torch.manual_seed(0)
        self.generators = []
        for classes in (0, CLASSES):
            model, scheduler = get_dummy_rdm(method, classes)
            self.generators.append(open_rdm(stirred(model).eval().to(device), scheduler))
        self.device, self.precision = device, precision

    def __call__(self, number: int, rows: int, weights: int, case: int) -> Tensor:
        generator = self.generators[min(case, 1)]
        _shift(generator.model, weights)
        labels = (torch.arange(rows) + number) % CLASSES
        return generator.draw(
            rdm_protocol.Request(
                noise=Noise([1000 * number + i for i in range(rows)], self.device),
                class_labels=labels if case else None,
                num_inference_steps=4,
                guidance_scale=2.0 if case == 2 else 1.0,
                precision=self.precision,
            )
        )


@torch.no_grad()
def _shift(model: Any, weights: int) -> None:
    """Change the weights in place, once: `weights` says how often they are to have been."""
    if getattr(model, "shifted", 0) < weights:
        for parameter in model.parameters():
            parameter.mul_(1.1)
        model.shifted = weights
