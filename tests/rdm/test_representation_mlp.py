"""The denoiser against the reference's outputs, and its rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rcg.core.errors import UserError
from rcg.published.rdm import Weights
from rcg.rdm.representation_mlp import RepresentationMLP, at_each
from tests.rdm import golden
from tests.waiting import NoWaiting


@pytest.mark.parametrize("kind", golden.KINDS)
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_outputs_equal_the_reference(kind: str, weights: Weights) -> None:
    rdm = golden.model(kind, weights)
    with torch.no_grad():
        out = rdm(golden.tensor(kind, "x"), golden.tensor(kind, "t"), golden.labels(kind)).sample
    assert golden.relative(out, golden.tensor(kind, f"out_{weights}")) < 1e-5
    assert (
        golden.relative(golden.tensor(kind, "out_raw"), golden.tensor(kind, "out_ema")) > 1e-2
    )  # they can be told apart


@pytest.mark.parametrize("kind", golden.KINDS)
def test_time_embedding_equals_the_reference(kind: str) -> None:
    rdm, seen = golden.model(kind, "raw"), list[tuple[torch.Tensor, torch.Tensor]]()
    rdm.time_embed.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    with torch.no_grad():
        rdm(golden.tensor(kind, "x"), golden.tensor(kind, "t"), golden.labels(kind))
    assert golden.relative(seen[0][0], golden.tensor(kind, "timestep_embedding")) < 1e-6
    assert golden.relative(seen[0][1], golden.tensor(kind, "time_mlp")) < 1e-5


def test_a_timestep_that_is_a_number_does_not_make_the_device_wait() -> None:
    sample = torch.zeros(3, 6)
    for one in (7, 7.5, torch.tensor(7), torch.tensor([7, 8, 9])):
        expected = torch.as_tensor(one).expand(3)
        assert torch.equal(at_each(one, sample), expected)
        assert at_each(one, sample).dtype == expected.dtype
    with NoWaiting():
        assert at_each(7, sample.to("meta", non_blocking=True)).shape == (3,)


def test_the_papers_model_has_63_million_parameters() -> None:
    with torch.device("meta"):
        rdm = RepresentationMLP()
    count = sum(p.numel() for p in rdm.parameters())
    # time 1536·256+256 + 256²+256, input 256·1536+1536, 12 blocks, output LN and 1536·256+256
    block = 2 * (1536**2 + 1536) + 4 * 1536 + 256 * 1536 + 1536
    assert count == (1536 * 256 + 256) + (256**2 + 256) + (257 * 1536) + 12 * block + 2 * 1536 + (1536 * 256 + 256)
    assert 62e6 < count < 64e6


def test_an_unconditional_model_has_no_class_parameters_and_a_new_model_predicts_zero() -> None:
    rdm = RepresentationMLP(6, 16, 2)
    assert not [name for name, _ in rdm.named_parameters() if "context" in name or "class" in name]
    assert torch.equal(rdm(torch.randn(3, 6), 7).sample, torch.zeros(3, 6))


@pytest.mark.parametrize(("classes", "dropout"), [(0, 0.0), (5, 0.0), (5, 0.1)])
def test_save_and_load(tmp_path: Path, classes: int, dropout: float) -> None:
    rdm = RepresentationMLP(6, 16, 2, num_classes=classes, context_dim=4, class_dropout=dropout).eval()
    for parameter in rdm.parameters():
        torch.nn.init.normal_(parameter)
    rdm.save_pretrained(tmp_path)
    again = RepresentationMLP.from_pretrained(tmp_path)
    x, labels = torch.randn(3, 6), torch.tensor([0, 4, 2]) if classes else None
    assert torch.equal(
        rdm(x, torch.tensor([3, 500, 999]), labels).sample, again(x, torch.tensor([3, 500, 999]), labels)[0]
    )
    assert rdm(x, 3, labels, return_dict=False)[0].shape == (3, 6)
    assert again.null_class == (classes if dropout else None)


def test_no_label_means_the_null_class() -> None:
    rdm = RepresentationMLP(6, 16, 2, num_classes=5, context_dim=4, class_dropout=0.1)
    for parameter in rdm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 6)
    none = rdm(x, 9).sample
    assert torch.equal(none, rdm(x, 9, torch.tensor([5, 5])).sample)
    assert not torch.equal(none, rdm(x, 9, torch.tensor([4, 4])).sample)


def test_a_timestep_may_be_a_number_or_fractional() -> None:
    rdm = golden.model("uncond")
    x = torch.randn(2, 24)
    assert torch.equal(rdm(x, 40).sample, rdm(x, torch.tensor([40, 40])).sample)
    between = rdm(x, torch.tensor(40.5)).sample
    assert torch.isfinite(between).all()
    assert not torch.equal(between, rdm(x, 40).sample)


def test_mistakes_say_so() -> None:
    conditional = RepresentationMLP(6, 16, 1, num_classes=5, context_dim=4)
    x = torch.zeros(1, 6)
    with pytest.raises(UserError, match="label 5 is out of range: this model knows 0 to 4"):
        conditional(x, 0, torch.tensor([5]))
    with pytest.raises(UserError, match="label -1 is out of range"):
        conditional(x, 0, torch.tensor([-1]))
    with pytest.raises(UserError, match="whole numbers"):
        conditional(x, 0, torch.tensor([1.0]))
    with pytest.raises(UserError, match="give class_labels"):
        conditional(x, 0)
    with pytest.raises(UserError, match="unconditional"):
        RepresentationMLP(6, 16, 1)(x, 0, torch.tensor([0]))
    with pytest.raises(UserError, match=r"\[batch, 6\]"):
        RepresentationMLP(6, 16, 1)(torch.zeros(1, 5), 0)
    with pytest.raises(UserError, match="no labels to drop"):
        RepresentationMLP(6, 16, 1, class_dropout=0.1)
    with pytest.raises(UserError, match="depth is 0"):
        RepresentationMLP(6, 16, 0)


def test_compiles_into_one_graph() -> None:
    rdm = RepresentationMLP(6, 16, 2, num_classes=5, context_dim=4)
    compiled = torch.compile(rdm, backend="eager", fullgraph=True)
    x, t, labels = torch.randn(3, 6), torch.tensor([1, 2, 999]), torch.tensor([0, 4, 2])
    assert torch.equal(compiled(x, t, labels).sample, rdm(x, t, labels).sample)
