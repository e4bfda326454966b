"""Going on from the weights of a trained encoder."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from rcg.core.errors import UserError
from rcg.encoders.methods import start_from
from rcg.encoders.recipes import RECIPES
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.scripts.train_encoder import main
from tests.encoders.test_methods import new_encoder

RUN = ["--data", "shapes:n=32,size=16", "--image-size", "16", "--width", "32", "--depth", "1", "--heads", "2", "--patch-size", "4",
       "--head-hidden-dim", "32", "--representation-dim", "16", "--batch-size", "8", "--precision", "fp32"]  # fmt: skip


def trained() -> SSLEncoder:
    """An encoder whose weights are its own."""
    encoder = new_encoder()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return encoder


@pytest.mark.parametrize("method", ["moco-v3", "byol", "simclr"])
def test_the_encoder_and_the_one_that_follows_it_begin_alike(method: str) -> None:
    other = trained()
    objective = RECIPES[method]().objective(new_encoder(), 16)  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_from(objective, other)
    encoders = [m for m in objective.modules() if isinstance(m, SSLEncoder)]
    assert len(encoders) == (1 if method == "simclr" else 2)
    for encoder in encoders:
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_how_the_first_one_sees_images_comes_along() -> None:
    seeing = {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "antialias": True, "pool": "avg"}
    objective = RECIPES["byol"]().objective(new_encoder(), 16)
    start_from(objective, new_encoder(**seeing))
    for encoder in (objective.encoder, objective.copied):
        assert {name: encoder.config[name] for name in seeing} == seeing


def test_a_head_of_another_kind_stays_new() -> None:
    objective = RECIPES["moco-v3"]().objective(new_encoder(head_dim=8), 16)
    head = {name: value.clone() for name, value in objective.encoder.head.state_dict().items()}
    other = trained()
    with pytest.warns(UserWarning, match="projection head"):
        start_from(objective, other)
    for name, value in objective.encoder.head.state_dict().items():
        assert torch.equal(value, head[name])
    for name, value in objective.encoder.backbone.state_dict().items():
        assert torch.equal(value, other.backbone.state_dict()[name])


def test_another_architecture_is_refused() -> None:
    deeper = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    objective = RECIPES["moco-v3"]().objective(new_encoder(), 16)
    with pytest.raises(UserError, match=r"to start from are of vit_tiny_patch16_224 .*'depth': 2.* give --arch"):
        start_from(objective, new_encoder(arch_kwargs=deeper))


def test_a_run_goes_on_from_the_weights_of_another(tmp_path: Path) -> None:
    main([*RUN, "--steps", "2", "--out", str(tmp_path / "a")])
    main([*RUN, "--steps", "1", "--lr", "1e-12", "--start-from", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    first, second = (SSLEncoder.from_pretrained(tmp_path / name) for name in "ab")
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9), name


def test_what_cannot_be_gone_on_from_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*RUN, "--steps", "1", "--start-from", "rcg/cifar10", "--out", str(tmp_path / "a")])
    assert "the weights to start from are of resnet18d" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
