"""The multi-positive loss: the reference's values, loops in float64, two processes, SimCLR and CLIP as special cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from rcg.encoders import multi_positive
from rcg.encoders.multi_positive import image_text_loss, multi_positive_loss, multi_positive_rows
from tests.forked import both

GOLDEN = Path(__file__).parents[1] / "golden/encoders/stablerep.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {k: torch.from_numpy(file[k]) for k in file}


def with_gradient(features: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    features = features.clone().requires_grad_()
    loss = multi_positive_loss(features, labels, temperature)
    loss.backward()
    assert features.grad is not None
    return loss.detach(), features.grad


def naive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The mean over rows, written out in float64, differentiable."""
    f = features.double()
    f = f / f.norm(dim=1, keepdim=True)
    rows = []
    for i in range(len(f)):
        others = [j for j in range(len(f)) if j != i]
        total = torch.stack([(f[i] @ f[j] / temperature).exp() for j in others]).sum()
        same = [j for j in others if labels[j] == labels[i]]
        terms = [-(f[i] @ f[j] / temperature - total.log()) / len(same) for j in same]
        rows.append(torch.stack(terms).sum() if terms else f.new_zeros(()))
    return torch.stack(rows).mean()


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_the_references_values(golden: dict[str, Tensor], temperature: float) -> None:
    loss, gradient = with_gradient(golden["feats"], golden["labels"], temperature)
    torch.testing.assert_close(loss, golden[f"w1_rank0_T{temperature}_loss"], rtol=1e-5, atol=0)
    expected = golden[f"w1_rank0_T{temperature}_grad"]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_the_positives_are_those_of_this_batch(golden: dict[str, Tensor], temperature: float) -> None:
    """The reference keeps the mask of its first batch; the right value is that of a fresh module."""
    multi_positive_loss(golden["feats"], golden["labels"], temperature)
    again = multi_positive_loss(golden["feats"], golden["labels2"], temperature)
    torch.testing.assert_close(again, golden[f"w1_rank0_T{temperature}_labels2_fresh_module"], rtol=1e-5, atol=0)
    assert abs(float(again - golden[f"w1_rank0_T{temperature}_labels2_same_module"])) > 0.05


def test_loops_in_float64() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(11, 7, dtype=torch.float64), torch.tensor([3, 3, 9, 1, 1, 1, 9, 4, 3, 7, 1])
    loss, gradient = with_gradient(features, labels, 0.3)
    wanted = features.clone().requires_grad_()
    expected = naive(wanted, labels, 0.3)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, wanted.grad, rtol=1e-10, atol=1e-14)
    alone = torch.zeros(2, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda f: multi_positive_loss(f, alone, 0.5), features[:2].clone().requires_grad_())


def test_the_learned_scale_has_its_gradient() -> None:
    torch.manual_seed(1)
    rows, columns = (F.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (4, 6))
    ids, others = torch.tensor([0, 1, 2, 8]), torch.tensor([1, 0, 2, 1, 5, 0])

    def function(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return multi_positive_rows(x, y, ids, others, scale)

    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (rows.requires_grad_(), columns.requires_grad_(), scale))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    features, labels = torch.randn(23, 8, dtype=torch.float64), torch.randint(0, 6, (23,))
    whole = with_gradient(features, labels, 0.1)
    monkeypatch.setattr(multi_positive, "ROWS", 5)
    for part, all_at_once in zip(with_gradient(features, labels, 0.1), whole, strict=True):
        torch.testing.assert_close(part, all_at_once, rtol=1e-12, atol=1e-14)


def test_no_matrix_outlives_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        multi_positive_loss(torch.randn(200, 4, requires_grad=True), torch.arange(200) // 4, 0.1)
    assert max(kept) <= 200 * 4


def test_bf16_features_are_worked_on_in_float32() -> None:
    torch.manual_seed(3)
    features, labels = torch.randn(16, 32).bfloat16(), torch.arange(16) // 4
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = with_gradient(features, labels, 0.05)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(naive(features, labels, 0.05)), rel=1e-5)
    assert gradient.isfinite().all()
    same = torch.ones(6, 8).bfloat16()  # a collapsed encoder
    loss, gradient = with_gradient(same, torch.arange(6) // 2, 0.01)
    assert float(loss) == pytest.approx(math.log(5), rel=1e-4)
    assert gradient.isfinite().all()


def test_rows_without_a_positive() -> None:
    loss, gradient = with_gradient(torch.randn(4, 8), torch.arange(4), 0.1)
    assert float(loss) == 0
    assert not gradient.any()
    assert float(with_gradient(torch.randn(1, 8), torch.zeros(1, dtype=torch.int64), 0.1)[0]) == 0


def test_two_crops_are_simclr() -> None:
    """NT-Xent (arXiv 2002.05709, equation 1), written out; lightly's, where it is installed."""
    torch.manual_seed(4)
    a, b = torch.randn(6, 16), torch.randn(6, 16)
    ours = float(multi_positive_loss(torch.cat([a, b]), torch.arange(6).repeat(2), 0.5))
    z = F.normalize(torch.cat([a, b]).double(), dim=1)
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(12).roll(6))
    assert ours == pytest.approx(float(expected), rel=1e-5)
    loss = pytest.importorskip("lightly.loss.ntx_ent_loss")
    assert ours == pytest.approx(float(loss.NTXentLoss(temperature=0.5)(a, b)), rel=1e-5)


def test_one_image_a_caption_is_clip() -> None:
    torch.manual_seed(5)
    images, texts, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(12.0)
    to_text, to_image = image_text_loss(images, torch.arange(5), texts, torch.arange(5), scale)
    logits = 12 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    torch.testing.assert_close(to_text, F.cross_entropy(logits, torch.arange(5)))
    torch.testing.assert_close(to_image, F.cross_entropy(logits.T, torch.arange(5)))


def _meet(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


def _one_of_two(rank: int, folder: str) -> None:
    """The golden batch's half; then a linear encoder whose averaged gradients must be those of one process."""
    torch.set_num_threads(1)
    _meet(rank, folder)
    with np.load(GOLDEN) as file:
        golden = {k: torch.from_numpy(file[k]) for k in file}
    half = slice(6 * rank, 6 * rank + 6)
    for temperature in (0.1, 0.2):
        name = f"w2_rank{rank}_T{temperature}"
        loss, gradient = with_gradient(golden["feats"][half], golden["labels"][half], temperature)
        torch.testing.assert_close(loss, golden[f"{name}_loss"], rtol=1e-5, atol=0)
        assert (gradient - golden[f"{name}_grad"]).norm() <= 1e-5 * golden[f"{name}_grad"].norm()
        fresh = multi_positive_loss(golden["feats"][half], golden["labels2"][half], temperature)
        torch.testing.assert_close(fresh, golden[f"{name}_labels2_fresh_module"], rtol=1e-5, atol=0)
    x, t, ids = joint_batch()
    half = slice(4 * rank, 4 * rank + 4)
    _, gradients = linear_model(x[half], t[half], ids[half])
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save([g / 2 for g in gradients], f"{folder}/gradients{rank}.pt")
    dist.destroy_process_group()


def joint_batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(6)
    x, t = (torch.randn(8, 5, generator=g, dtype=torch.float64) for _ in range(2))
    return x, t, torch.tensor([0, 1, 0, 2, 2, 1, 3, 0])


def linear_model(x: Tensor, t: Tensor, ids: Tensor) -> tuple[torch.nn.Module, list[Tensor]]:
    torch.manual_seed(7)
    model = torch.nn.ParameterList([torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)])
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    to_text, to_image = image_text_loss(x @ model[0], ids, t @ model[1], ids, scale.exp())
    (multi_positive_loss(x @ model[0], ids, 0.2) + 0.5 * (to_text + to_image)).backward()
    return model, [p.grad for p in (*model, scale) if p.grad is not None]


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    both(_one_of_two, str(tmp_path))
    _, expected = linear_model(*joint_batch())
    for rank in range(2):
        for found, wanted in zip(torch.load(tmp_path / f"gradients{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
