"""Many representations of one seed."""

from __future__ import annotations

import pytest
import torch

from rcg.rdm import draw
from rcg.rdm.draw import draw_many
from rcg.rdm.methods import open_rdm
from tests.components import get_dummy_rdm


@pytest.mark.parametrize("method", ["ddpm", "flow"])
def test_each_follows_from_seed_and_number(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, scheduler = get_dummy_rdm(method, 3)  # type: ignore[arg-type]
    rdm, labels = open_rdm(model.eval(), scheduler), torch.arange(7) % 3
    with torch.inference_mode():
        whole = draw_many(rdm, 7, 1, labels, num_inference_steps=4)
        monkeypatch.setattr(draw, "AT_ONCE", 3)
        parts = draw_many(rdm, 7, 1, labels, num_inference_steps=4)
        other = draw_many(rdm, 7, 2, labels, num_inference_steps=4)
        steps = draw_many(rdm, 7, 1, labels, num_inference_steps=3)
    assert whole.shape == (7, 12)
    assert torch.allclose(parts, whole, atol=1e-5)
    assert not torch.allclose(other, whole, atol=1e-2)
    assert not torch.allclose(steps, whole, atol=1e-5)
