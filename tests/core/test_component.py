"""Weights lie in memory as if the model had just been made, wherever they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rcg import RCGPipeline
from rcg.core.component import ALIGNMENT, settle_weights
from tests.components import get_dummy_pipeline


def settled(module: nn.Module) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    assert tensors
    return all(
        t.data_ptr() % ALIGNMENT == 0 and t.stride() == torch.empty(t.shape, device="meta").stride()
        for t in tensors
        if t.numel()
    )


def test_odd_places_and_strides() -> None:
    model = nn.Conv2d(8, 8, 1)
    weight = model.weight.data
    odd = torch.empty(65)[1:]
    model.weight.data = odd.view(8, 8, 1, 1).copy_(weight).as_strided((8, 8, 1, 1), (8, 1, 8, 8))
    before = model.weight
    assert not settled(model)
    settle_weights(model)
    assert settled(model)
    assert model.weight is before  # optimisers and ties hold on to it
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("name", ["encoder", "rdm", "image_generator", "tokenizer"])
def test_loaded_models(name: str, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path)
    again = RCGPipeline.from_pretrained(tmp_path)
    assert settled(getattr(again, name))
    alone = type(getattr(pipe, name)).from_pretrained(tmp_path / name)
    assert settled(alone)
    assert type(alone).from_pretrained(tmp_path / name, output_loading_info=True)[1]["missing_keys"] == []
