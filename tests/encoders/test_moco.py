"""MoCo-v3's parts: loss against a hand-written one, momentum, position embedding, frozen patches, two processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.encoders.methods import momentum_at
from rcg.encoders.moco import (
    MoCoV3,
    contrastive_loss,
    effective_rank,
    initialize_vit,
    sincos_position_embedding,
    spread,
)
from rcg.encoders.ssl_encoder import SSLEncoder
from tests.forked import both

GOLDEN = Path(__file__).parents[1] / "golden/encoders/values.npz"
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
HEAD = {"head_layers": 3, "head_hidden_dim": 32, "head_dim": 16}


def vit() -> SSLEncoder:
    return SSLEncoder("vit_tiny_patch16_224", VIT, image_size=16, **HEAD)


def naive_loss(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> float:
    """InfoNCE written out with loops, in double precision."""
    total = 0.0
    for i in range(len(queries)):
        similarities = []
        for j in range(len(keys)):
            q, k = queries[i].double(), keys[j].double()
            similarities.append(float((q @ k) / (q.norm() * k.norm())) / temperature)
        total -= similarities[i] - math.log(sum(math.exp(s) for s in similarities))
    return 2 * temperature * total / len(queries)


def test_loss_matches_the_naive_one() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(6, 8), torch.randn(6, 8)
    for temperature in (0.2, 1.0):
        loss, accuracy = contrastive_loss(q, k, temperature)
        assert float(loss) == pytest.approx(naive_loss(q, k, temperature), rel=1e-5)
    nearest = torch.nn.functional.cosine_similarity(q[:, None], k[None], dim=2).argmax(1)
    assert float(accuracy) == pytest.approx(float((nearest == torch.arange(6)).float().mean()))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(contrastive_loss(q, k, 0.2)[0]) == pytest.approx(naive_loss(q, k, 0.2), rel=1e-5)


def test_an_image_that_is_there_twice_is_no_negative_of_itself() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(4, 8), torch.randn(4, 8)
    distinct = contrastive_loss(q, k, 0.2)
    assert [float(x) for x in contrastive_loss(q, k, 0.2, torch.tensor([7, 2, 9, 4]))] == [float(x) for x in distinct]
    loss, _ = contrastive_loss(q, k, 0.2, torch.tensor([7, 2, 7, 4]))
    cosines = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2
    seen = {0: [0, 1, 3], 1: [1, 0, 2, 3], 2: [2, 1, 3], 3: [3, 0, 1, 2]}  # the own key first
    terms = [F.cross_entropy(cosines[i, keys], torch.tensor(0)) for i, keys in seen.items()]
    assert float(loss) == pytest.approx(0.4 * float(torch.stack(terms).mean()), rel=1e-5)
    moco = MoCoV3(vit(), predictor_hidden_dim=20).train()
    batch = moco.prepare(
        {"images": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), "indices": torch.arange(4)}
    )
    assert batch["indices"].tolist() == [0, 1, 2, 3]


def test_forward_is_the_symmetric_loss_of_the_two_encoders() -> None:
    torch.manual_seed(0)
    moco = MoCoV3(vit(), predictor_hidden_dim=20).train()
    with torch.no_grad():
        for p in moco.momentum_encoder.parameters():
            p.add_(torch.randn_like(p) * 0.05)  # so that it matters which encoder makes the keys
    batch = {"view1": torch.rand(6, 3, 16, 16), "view2": torch.rand(6, 3, 16, 16)}
    out = moco(batch)
    out["loss"].backward()

    def projections(encoder: SSLEncoder, view: str) -> torch.Tensor:
        return encoder.head(encoder.backbone.forward_features(encoder.preprocess(batch[view]))[:, 0])

    with torch.no_grad():
        q1, q2 = (moco.predictor(projections(moco.base, v)) for v in ("view1", "view2"))
        k1, k2 = (projections(moco.momentum_encoder, v) for v in ("view1", "view2"))
    expected = naive_loss(q1, k2, 0.2) + naive_loss(q2, k1, 0.2)
    assert float(out["loss"].detach()) == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(naive_loss(q1, k1, 0.2) + naive_loss(q2, k2, 0.2), rel=1e-3)
    assert all(p.grad is None for p in moco.momentum_encoder.parameters())
    without = {n for n, p in moco.named_parameters() if p.grad is None and not n.startswith("momentum_encoder.")}
    assert without == {
        "base.backbone.pos_embed",
        "base.backbone.patch_embed.proj.weight",
        "base.backbone.patch_embed.proj.bias",
    }


def test_momentum_schedule() -> None:
    assert momentum_at(0.0, 0.99) == pytest.approx(0.99)
    assert momentum_at(0.5, 0.99) == pytest.approx(0.995)
    assert momentum_at(1.0, 0.99) == 1.0
    official = [1.0 - 0.5 * (1.0 + math.cos(math.pi * e / 300)) * (1.0 - 0.99) for e in range(301)]
    assert [momentum_at(e / 300, 0.99) for e in range(301)] == pytest.approx(official)


def test_momentum_update_averages_parameters_only() -> None:
    torch.manual_seed(0)
    moco = MoCoV3(vit())
    before = {k: v.clone() for k, v in moco.momentum_encoder.state_dict().items()}
    with torch.no_grad():
        for p in moco.base.parameters():
            if p.requires_grad:
                p.add_(1.0)
    moco.base.head[1].running_mean.add_(5.0)
    moco.advance(0.5)
    frozen = {"backbone.pos_embed", "backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    parameters = dict(moco.momentum_encoder.named_parameters())
    for name, value in moco.momentum_encoder.state_dict().items():
        moved = 0.005 if name in parameters and name not in frozen else 0.0
        torch.testing.assert_close(value.double(), before[name].double() + moved, atol=1e-6, rtol=0)


def test_position_embedding_is_the_references() -> None:
    with np.load(GOLDEN) as file:
        golden = torch.from_numpy(file["pos_embed"])
    torch.testing.assert_close(sincos_position_embedding(32, 14), golden, atol=1e-6, rtol=0)
    assert (sincos_position_embedding(32, 14)[0, 0] == 0).all()
    with pytest.raises(UserError, match="multiple of 4"):
        sincos_position_embedding(30, 4)


def test_initial_vit_has_fixed_positions_and_frozen_random_patches() -> None:
    encoder = vit()
    initialize_vit(encoder)
    backbone = encoder.backbone
    assert torch.equal(backbone.pos_embed, sincos_position_embedding(24, 4))
    assert not backbone.pos_embed.requires_grad
    assert not backbone.patch_embed.proj.weight.requires_grad
    bound = math.sqrt(6 / (3 * 16 + 24))
    assert 0.9 * bound < float(backbone.patch_embed.proj.weight.detach().abs().max()) <= bound
    qkv = backbone.blocks[0].attn.qkv.weight.detach()
    assert 0.9 * math.sqrt(6 / 48) < float(qkv.abs().max()) <= math.sqrt(6 / 48)
    assert float(backbone.cls_token.detach().abs().max()) < 1e-4
    initialize_vit(encoder, freeze_patches=False)
    assert backbone.patch_embed.proj.weight.requires_grad
    assert not backbone.pos_embed.requires_grad


def test_positions_follow_the_grid_of_patches() -> None:
    # 3 x 3 patches behind 5 other tokens: 9 - 5 is a square, too
    registers = VIT | {"patch_size": 5, "reg_tokens": 4, "no_embed_class": True}
    encoder = SSLEncoder("vit_tiny_patch16_224", registers, image_size=16, **HEAD)
    initialize_vit(encoder)
    assert torch.equal(encoder.backbone.pos_embed, sincos_position_embedding(24, 3, prefix=0))
    small = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
    hiera = SSLEncoder("hiera_tiny_224", small, pool="timm", **HEAD)
    initialize_vit(hiera)
    assert torch.equal(hiera.backbone.pos_embed, sincos_position_embedding(16, 56, prefix=0))


@pytest.mark.parametrize(
    ("arch", "changes"), [("vit_tiny_patch16_224", {"patch_size": [2, 8]}), ("samvit_base_patch16", {})]
)
def test_other_position_embeddings_are_refused(arch: str, changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="no vector for each patch of a square; choose a plain ViT or a CNN"):
        MoCoV3(SSLEncoder(arch, VIT | changes, image_size=16, pool="timm", **HEAD))


def test_cnn_is_trained_whole() -> None:
    encoder = SSLEncoder("resnet10t", image_size=32, pool="timm", **HEAD)
    moco = MoCoV3(encoder, predictor_hidden_dim=16).train()
    assert all(p.requires_grad for p in moco.base.parameters())
    out = moco({"view1": torch.rand(4, 3, 32, 32), "view2": torch.rand(4, 3, 32, 32)})
    out["loss"].backward()
    assert all(p.grad is not None for p in moco.base.parameters())


def test_heads_have_the_official_layout() -> None:
    moco = MoCoV3(vit(), predictor_hidden_dim=20)
    shapes = {k: tuple(v.shape) for k, v in moco.predictor.state_dict().items() if v.ndim}
    assert shapes == {
        "0.weight": (20, 16),
        **{f"1.{n}": (20,) for n in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": (16, 20),
        **{f"4.{n}": (16,) for n in ("running_mean", "running_var")},
    }
    assert isinstance(moco.base.head[2], nn.ReLU)


def test_signs_of_collapse() -> None:
    torch.manual_seed(0)
    healthy = torch.randn(500, 16)
    assert float(spread(healthy)) == pytest.approx(1.0, abs=0.02)
    assert float(spread(torch.ones(50, 16) + 1e-4 * torch.randn(50, 16))) < 1e-3
    assert 14 < float(effective_rank(healthy)) <= 16
    assert float(effective_rank(torch.randn(500, 1) * torch.randn(1, 16))) == pytest.approx(1.0)
    wide = torch.randn(10, 40)
    assert float(effective_rank(wide)) == pytest.approx(float(effective_rank(wide.repeat(5, 1))), rel=1e-6)


def test_unusable_settings_say_so() -> None:
    with pytest.raises(UserError, match="projection head"):
        MoCoV3(SSLEncoder("vit_tiny_patch16_224", VIT, image_size=16))
    with pytest.raises(UserError, match="temperature"):
        MoCoV3(vit(), temperature=0.0)
    with pytest.raises(UserError, match="momentum"):
        MoCoV3(vit(), momentum=1.5)


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    inputs = torch.load(f"{folder}/inputs.pt")
    q = inputs["q"][rank * 3 : rank * 3 + 3].requires_grad_()
    loss, _ = contrastive_loss(q, inputs["k"][rank * 3 : rank * 3 + 3], 0.2)
    loss.backward()
    torch.save({"loss": loss.detach(), "grad": q.grad}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_the_loss_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8)
    torch.save({"q": q.detach(), "k": k}, tmp_path / "inputs.pt")
    loss, _ = contrastive_loss(q, k, 0.2)
    loss.backward()
    both(_one_of_two, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert float((parts[0]["loss"] + parts[1]["loss"]) / 2) == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(torch.cat([p["grad"] for p in parts]) / 2, q.grad)
