"""Muon beside AdamW: which weights are whose, a step against the definition, resuming, skipped steps, refusals."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rcg.core.errors import UserError
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.training.loop import train
from rcg.training.optimizers import MATRIX_RATE, Muon, ObjectiveOptimizer, hidden_weights
from rcg.training.stage import Batch
from tests.training.stages import RegressionStage
from tests.training.test_loop import Poisoned, StopAt, assert_equal_runs, config


class Blocks(nn.Module):
    """Two residual blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, batch: Batch) -> Batch:
        x = self.first(batch["x"])
        for block in self.blocks:
            x = x + block(x).relu()
        return {"loss": (self.last(x) - batch["y"]).square().mean()}


def with_blocks(stage: RegressionStage) -> RegressionStage:
    torch.manual_seed(0)
    stage.objectives = {"o0": Blocks()}
    stage.ema_modules = lambda: {"net": stage.objectives["o0"]}  # type: ignore[method-assign]
    return stage


def test_only_matrices_inside_blocks_are_hidden() -> None:
    model = PixelDiT(image_size=8, width=16, depth=2, num_heads=2, condition="none")
    names = {id(p): name for name, p in model.named_parameters()}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert {names[id(p)] for p in hidden_weights(model).values()} == expected


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_may_change(name: Any) -> None:
    """Of the groups that have one, and of no others."""
    ends = []
    for decay, factor in ((0.2, 1.0), (0.1, 2.0)):
        torch.manual_seed(0)
        model = Blocks()
        weights = list(model.parameters())
        groups = [{"params": weights[::2], "weight_decay": decay}, {"params": weights[1::2], "weight_decay": 0.0}]
        optimizer = ObjectiveOptimizer(model, groups, name, (0.9, 0.95))
        for _ in range(3):
            model({"x": torch.ones(4, 6), "y": torch.ones(4, 1)})["loss"].backward()
            optimizer.step(0.1, torch.tensor(True), factor)
        ends.append([w.detach().clone() for w in weights])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_step_of_muon_goes_as_far_in_all_directions() -> None:
    torch.manual_seed(0)
    model = Blocks().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = ObjectiveOptimizer(
        model, [{"params": list(model.parameters()), "weight_decay": 0.0}], "muon", (0.9, 0.95)
    )
    model({"x": torch.randn(20, 6).double(), "y": torch.randn(20, 1).double()})["loss"].backward()
    directions = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step(0.01, torch.tensor(True))
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()) / 0.01
        if name.startswith("blocks") and parameter.ndim == 2:  # about 1 in all directions, but the gradient's least
            given = torch.linalg.svdvals(directions[name])
            large = given > 0.05 * given.norm()  # five iterations bring these to 1, but not all the small ones
            sizes = torch.linalg.svdvals(moved)[large] / (MATRIX_RATE * 0.2 * 8**0.5)
            assert len(sizes) > 3
            assert sizes.min() > 0.5
            assert sizes.max() < 1.5
            assert float((moved * directions[name]).sum()) > 0
        else:  # AdamW's first step
            torch.testing.assert_close(moved, directions[name].sign(), rtol=1e-3, atol=1e-3)
        assert parameter.grad is None


def test_interrupted_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    train(with_blocks(RegressionStage()), config(tmp_path / "whole", optimizer="muon"))
    with pytest.raises(KeyboardInterrupt):
        train(with_blocks(StopAt(11, signal.SIGTERM)), config(tmp_path / "cut", optimizer="muon"))
    with pytest.raises(UserError, match="--optimizer muon → adamw"):
        train(with_blocks(RegressionStage()), config(tmp_path / "cut", resume=True))
    train(with_blocks(RegressionStage()), config(tmp_path / "cut", optimizer="muon", resume=True))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_skipped_step_leaves_all_as_it_is(tmp_path: Path) -> None:
    states = []
    for steps in (6, 7):
        stage, out = with_blocks(Poisoned({7})), tmp_path / str(steps)
        train(stage, config(out, steps=steps, optimizer="muon", lr_schedule="constant"))
        states.append(load_file(max((out / "training/checkpoints").iterdir()) / "state.safetensors"))
    kept = [key for key in states[0] if key.startswith(("model.", "optimizer."))]
    assert len([key for key in kept if key.endswith("momentum_buffer")]) == 2
    assert all(torch.equal(states[0][key], states[1][key]) for key in kept)


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no linear layers or convolutions in blocks"):
        train(RegressionStage(), config(tmp_path, optimizer="muon"))


def test_muon_equals_pytorchs_on_matrices_and_takes_convolutions_as_such() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in [(6, 4), (4, 12), (6, 4), (5, 3, 2, 2)]]
    ours = Muon([{"params": [w.detach().clone().requires_grad_() for w in weights], "weight_decay": 0.1, "lr": 0.02}])
    flat = [nn.Parameter(w.detach().flatten(1).clone()) for w in weights]
    theirs: torch.optim.Optimizer | None = None
    if hasattr(torch.optim, "Muon"):  # since 2.9
        theirs = torch.optim.Muon(flat, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, other in zip(ours.param_groups[0]["params"], flat, strict=True):
            gradient = torch.randn(other.shape)
            mine.grad, other.grad = gradient.view(mine.shape).clone(), gradient
        ours.step(torch.tensor(True))
        if theirs is not None:
            theirs.step()
    for mine, other, start in zip(ours.param_groups[0]["params"], flat, weights, strict=True):
        step = (mine - start).detach().flatten(1)
        assert 0.005 < float(step.square().mean().sqrt()) < 0.02  # three steps of 0.2 x 0.02
        if theirs is not None:
            assert float((mine - other.view(mine.shape)).detach().norm() / step.norm()) < 0.02


def test_which_weights_of_a_resnet_and_of_a_pixel_transformer_are_hidden() -> None:
    resnet = SSLEncoder("resnet18", image_size=32, pool="avg", arch_kwargs={"channels": [4, 4, 4, 4]})
    names = set(hidden_weights(resnet))
    assert "backbone.layer1.0.conv1.weight" in names
    assert "backbone.layer2.0.downsample.0.weight" in names
    assert not any("head" in name or name == "backbone.conv1.weight" for name in names)
    pixel_dit = PixelDiT(
        image_size=8, patch_size=4, width=16, depth=1, num_heads=2, condition="none", conv_channels=[4, 8]
    )
    names = set(hidden_weights(pixel_dit))
    assert {"levels.0.before.conv1.weight", "levels.1.down.weight", "blocks.0.attn.qkv.weight"} <= names
    assert not any("modulation" in name or name.startswith(("head", "patch_embed")) for name in names)
