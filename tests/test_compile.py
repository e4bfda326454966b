"""Every model compiles into one graph, so that torch.compile gains what there is to be gained. (Objectives draw random numbers,
which are not traced.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.objectives import GENERATORS, made
from tests.training.stages import MadeOfAll


def given(stage: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a training step gives to the model."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    indices = np.arange(4)
    batch = stage.prepare(stage.dataset.batch(indices, indices.astype(np.uint64)))
    (objective,) = stage.objectives.values()
    objective(batch)
    handle.remove()
    return calls[0]


def assert_one_graph(function: Any, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        compiled = torch.compile(function, backend="eager", fullgraph=True)(*args, **kwargs)
        torch.testing.assert_close(compiled, function(*args, **kwargs))


@pytest.mark.parametrize("name", [*(name for name in GENERATORS if name != "mage"), "codes"])
def test_models_are_one_graph(name: str) -> None:
    stage: Any = made(name)
    model = (stage.model if name in GENERATORS else stage.rdm).eval()
    args, kwargs = given(stage, model)
    assert_one_graph(model, *args, **kwargs)


def test_mage_is_one_graph_in_sampling_and_in_training() -> None:
    stage: Any = made("mage")
    model, ids = stage.model.eval(), torch.arange(32).view(2, 16) % 12
    representations = torch.randn(2, 12)
    assert_one_graph(model, ids, representations)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    assert_one_graph(model.forward_masked, ids, order, 8, 12, representations)
    hidden = torch.randn(2, 12, model.config.decoder_width)
    assert_one_graph(model.token_loss, hidden, ids[:, :12], 0.1)


def test_a_flow_is_one_graph() -> None:
    stage: Any = MadeOfAll.made("flow")
    assert_one_graph(stage.rdm.eval(), torch.randn(4, 8), torch.tensor([1.0, 20.0, 300.0, 999.0]))


@pytest.mark.parametrize("name", ["codebook", "fsq"])
def test_tokenizers_are_one_graph(name: str) -> None:
    tokenizer: Any = made(name).tokenizer.eval()  # type: ignore[attr-defined]
    images = torch.rand(2, 3, 16, 16)
    assert_one_graph(tokenizer.encode, images)
    assert_one_graph(tokenizer.decode, tokenizer.encode(images))


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "resnet18d"])
def test_features_of_encoders_are_one_graph(arch: str) -> None:
    """Standardising asks whether a representation is constant, and so waits for it; what comes before is one graph."""
    from rcg import SSLEncoder

    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    kwargs, pool = (vit, "token") if arch.startswith("vit") else ({"channels": [8, 8, 8, 8]}, "avg")
    encoder = SSLEncoder(arch, kwargs, image_size=16, pool=pool)  # type: ignore[arg-type]
    images = torch.rand(2, 3, 16, 16)
    assert_one_graph(encoder.features, images)
