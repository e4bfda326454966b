"""SynCLR: its losses against loops, its masks, what its teacher does, and what several processes compute."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from rcg.core.draws import drawing_for
from rcg.core.dropout import Dropout, DropPath, drop_paths
from rcg.core.errors import UserError
from rcg.encoders.augment import augment, synclr_views
from rcg.encoders.ibot import patch_entropy, patch_loss, sinkhorn
from rcg.encoders.masks import block_masks, chosen_images, random_masks
from rcg.encoders.multi_positive import multi_positive_rows
from rcg.encoders.recipes import SynCLRRecipe
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.stablerep import MultiPositive
from rcg.encoders.synclr import PatchSettings, SynCLR, local_side
from rcg.encoders.tokens import vit_tokens
from rcg.scripts.train_encoder import main
from tests.forked import both

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
HEAD = {"head_layers": 3, "head_hidden_dim": 32, "head_dim": 16, "head_type": "synclr"}
TINY = {"prototypes": 12, "patch_hidden_dim": 16}


def new_encoder(**more: Any) -> SSLEncoder:
    torch.manual_seed(0)
    return SSLEncoder(**{"arch": "vit_tiny_patch16_224", "arch_kwargs": VIT, "image_size": 16, **HEAD, **more})


def made(**more: Any) -> SynCLR:
    return SynCLRRecipe(**{**TINY, **more}).objective(new_encoder(), 16).train()


def grouped(captions: int = 4, count: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (captions, count, 3, 16, 16), generator=g, dtype=torch.uint8)
    return {"images": images, "identities": torch.tensor([5, 2, 5, 7, 9, 3])[:captions]}


# ---------------------------------------------------------------- losses against loops


def sinkhorn_loop(scores: torch.Tensor, temperature: float, steps: int = 3) -> torch.Tensor:
    """As it is written down: a matrix of K prototypes and B patches, in all 1, each prototype 1 / K, each patch 1 / B."""
    count, prototypes = scores.shape
    q = [[math.exp(float(scores[i, k]) / temperature) for i in range(count)] for k in range(prototypes)]
    whole = sum(map(sum, q))
    q = [[x / whole for x in row] for row in q]
    for _ in range(steps):
        q = [[x / sum(row) / prototypes for x in row] for row in q]
        columns = [sum(q[k][i] for k in range(prototypes)) for i in range(count)]
        q = [[q[k][i] / columns[i] / count for i in range(count)] for k in range(prototypes)]
    return torch.tensor([[q[k][i] * count for k in range(prototypes)] for i in range(count)], dtype=torch.float64)


def cross_entropy_loop(targets: torch.Tensor, scores: torch.Tensor) -> float:
    terms = []
    for t, s in zip(targets.double().tolist(), scores.double().tolist(), strict=True):
        norm = math.log(sum(math.exp(x / 0.1) for x in s))
        terms.append(-sum(p * (x / 0.1 - norm) for p, x in zip(t, s, strict=True)))
    return sum(terms) / len(terms)


def test_sinkhorn_and_the_loss_of_patches() -> None:
    torch.manual_seed(0)
    teacher, student = (torch.randn(2, 7, 5, dtype=torch.float64).clamp(-1, 1)).unbind()
    q = sinkhorn(teacher, 0.06)
    torch.testing.assert_close(q, sinkhorn_loop(teacher, 0.06))
    torch.testing.assert_close(q.sum(1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(sinkhorn(teacher, 0.06, 2000).sum(0), torch.full((5,), 7 / 5, dtype=torch.float64))
    assert float(patch_loss(q, student)) == pytest.approx(cross_entropy_loop(q, student))
    assert float(patch_entropy(q)) == pytest.approx(-sum(p * math.log(p) for p in q.flatten().tolist() if p > 0) / 7)
    low = sinkhorn((teacher * 0.001 + 0.9).float(), torch.tensor(0.0005))  # of float32, too
    torch.testing.assert_close(low.double(), sinkhorn_loop(teacher * 0.001, 0.0005), rtol=0.02, atol=1e-4)
    nothing = torch.zeros(0, 5, requires_grad=True)
    loss = patch_loss(sinkhorn(nothing.detach(), 0.04), nothing)
    loss.backward()
    assert float(loss.detach()) == 0


def contrastive_loop(
    q: torch.Tensor, k: torch.Tensor, q_ids: list[int], k_ids: list[int], own: bool, temperature: float
) -> float:
    """Equations 1 to 3, query by query and key by key."""
    terms = []
    for i, a in enumerate(q.double()):
        others = [j for j in range(len(k)) if not (own and i == j)]
        cosines = {j: float(a @ k[j].double() / a.norm() / k[j].double().norm()) / temperature for j in others}
        norm = math.log(sum(map(math.exp, cosines.values())))
        match = [j for j in others if k_ids[j] == q_ids[i]]
        terms.append(-sum(cosines[j] - norm for j in match) / len(match))
    return sum(terms) / len(terms)


def test_the_whole_loss_is_that_of_loops() -> None:
    objective = made(local_crops=2, drop_path=0.0, patch_weight=0.7, warmup_temperature=0.05).double().train()
    with torch.no_grad():
        for parameter in objective.student.parameters():  # no longer the teacher
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = objective.prepare(grouped())
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    out = {k: v.detach() for k, v in objective(batch).items()}
    large = torch.stack([batch[f"view{i}"] for i in (1, 2, 3, 4)], 1)
    ids = [i for i in batch["identities"].tolist() for _ in range(4)]
    keys, queries, small, wanted, found = [], [], [], [], []
    student, teacher, patches = objective.student, objective.teacher, objective.patches
    assert patches is not None
    for b in range(4):
        for m in range(4):
            image = student.preprocess(large[b, m][None])
            seen = vit_tokens(teacher, image)
            keys.append(teacher.project(seen[:, 0])[0])
            hidden = batch["hidden"][b, m][None]
            tokens = vit_tokens(student, image, hidden, patches.mask_token)
            queries.append(objective.predictor(student.project(tokens[:, 0]))[0])
            for n in hidden[0].nonzero().flatten().tolist():
                wanted.append(patches.teacher(seen[0, 1 + n][None])[0])
                found.append(patches.student(tokens[0, 1 + n][None])[0])
            for crop in batch["small"][b, 2 * m : 2 * m + 2]:
                tokens = vit_tokens(student, student.preprocess(crop[None], 8))
                small.append(objective.predictor(student.project(tokens[:, 0]))[0])
    k = torch.stack(keys)
    assert len(wanted) == 4 * 2 * 8  # half of the images, half of their patches
    first = contrastive_loop(torch.stack(queries).detach(), k, ids, ids, True, 0.08)
    second = contrastive_loop(torch.stack(small).detach(), k, [i for i in ids for _ in range(2)], ids, False, 0.08)
    targets = sinkhorn_loop(torch.stack(wanted), 0.05)
    third = cross_entropy_loop(targets, torch.stack(found).detach())
    assert float(out["contrastive"]) == pytest.approx(first, rel=1e-9)
    assert float(out["contrastive_small"]) == pytest.approx(second, rel=1e-9)
    assert float(out["patches"]) == pytest.approx(third, rel=1e-9)
    assert float(out["loss"]) == pytest.approx(first + second + 0.7 * third, rel=1e-9)


def test_without_patches_it_is_stablereps_loss() -> None:
    """Weight 0, no small crops, no predictor, and a teacher that is the student still: the multi-positive loss of one encoder,
    whose keys get no gradient."""
    objective = made(patch_weight=0.0, local_crops=0, predictor_layers=0, drop_path=0.0).double().train()
    assert objective.patches is None
    assert "hidden" not in objective.prepare(grouped())
    plain = MultiPositive(new_encoder(), objective.recipes[0], temperature=0.08).double().train()
    batch = objective.prepare(grouped())
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    out, expected = objective(batch), plain(batch)["loss"]
    torch.testing.assert_close(out["loss"], expected, rtol=1e-12, atol=0)
    out["loss"].backward()
    z = F.normalize(plain.model(torch.cat([batch[f"view{i}"] for i in (1, 2, 3, 4)])), dim=1)  # LayerNorm: standardised
    ids = batch["identities"].repeat(4)
    multi_positive_rows(z, z.detach(), ids, ids, 1 / 0.08, 0).mean().backward()
    for found, wanted in zip(objective.student.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-12)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(("side", "hidden"), [(14, 98), (14, 20), (8, 32), (4, 8), (3, 8), (2, 1)])
def test_masks_hide_their_share(side: int, hidden: int) -> None:
    torch.manual_seed(0)
    for masks in (random_masks(300, side**2, hidden), block_masks(300, side, hidden)):
        assert masks.shape == (300, side**2)
        assert (masks.sum(1) == hidden).all()
        assert masks.any(0).double().mean() > 0.95  # every patch now and then, though blocks seldom reach the corners
        assert not masks.all(0).any()


def pieces(mask: torch.Tensor) -> list[int]:
    """Sizes of the connected parts of a mask [side, side]."""
    left = {tuple(p) for p in mask.nonzero().tolist()}
    sizes = []
    while left:
        edge, size = [left.pop()], 1
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge += near
            size += len(near)
        sizes.append(size)
    return sizes


def test_blocks_are_contiguous() -> None:
    torch.manual_seed(0)
    blocks = [pieces(m.view(14, 14)) for m in block_masks(200, 14, 98)]
    scattered = [pieces(m.view(14, 14)) for m in random_masks(200, 196, 98)]
    assert min(min(sizes) for sizes in blocks) >= 4
    assert sum(map(len, blocks)) / 200 < 3 < 12 < sum(map(len, scattered)) / 200
    widest = [int(m.view(14, 14).any(0).sum()) for m in block_masks(200, 14, 40)]
    assert len(set(widest)) > 4  # their shapes differ


def test_half_of_the_images_of_each_caption_are_masked() -> None:
    torch.manual_seed(0)
    assert (chosen_images(50, 4, 0.5).sum(1) == 2).all()
    odd = chosen_images(2000, 3, 0.5).sum(1)
    assert set(odd.tolist()) == {1, 2}
    assert float(odd.double().mean()) == pytest.approx(1.5, abs=0.05)
    assert chosen_images(5, 3, 1.0).all()


@pytest.mark.parametrize("shape", ["random", "block"])
def test_views_and_masks_follow_from_the_sample_alone(shape: Any) -> None:
    objective, batch = made(mask_shape=shape), grouped()
    seeds = np.arange(4, dtype=np.uint64) * np.uint64(2**40 + 7)

    def some(rows: slice) -> dict[str, torch.Tensor]:
        with drawing_for(seeds[rows], rows.start, 4, 0):
            return objective.prepare({k: v[rows] for k, v in batch.items()})

    whole, parts = some(slice(0, 4)), [some(slice(0, 1)), some(slice(1, 4))]
    for key in whole.keys() - {"places"}:
        assert torch.equal(whole[key], torch.cat([part[key] for part in parts])), key
    assert torch.equal(whole["places"], whole["hidden"].flatten().nonzero()[:, 0])
    assert not torch.equal(whole["hidden"][0], whole["hidden"][1])


# ---------------------------------------------------------------- parts


def test_tokens_are_the_backbones_and_hidden_patches_are_not_seen() -> None:
    encoder = new_encoder().double()
    images = encoder.preprocess(torch.rand(3, 3, 16, 16, dtype=torch.float64))
    assert torch.equal(vit_tokens(encoder, images), encoder.backbone.forward_features(images))
    hidden = random_masks(3, 16, 6)
    token = torch.randn(1, 1, 32, dtype=torch.float64)
    other = images.clone()
    for row, mask in zip(other, hidden.view(3, 4, 4), strict=True):
        row[:, mask.repeat_interleave(4, 0).repeat_interleave(4, 1)] = 7
    assert torch.equal(vit_tokens(encoder, images, hidden, token), vit_tokens(encoder, other, hidden, token))
    assert not torch.equal(vit_tokens(encoder, images, hidden, token), vit_tokens(encoder, images))
    flexible = new_encoder(arch_kwargs={**VIT, "dynamic_img_size": True}).double()
    small = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(vit_tokens(encoder, small), flexible.backbone.forward_features(small))
    no_class = {**VIT, "no_embed_class": True, "reg_tokens": 2}
    encoder, flexible = (new_encoder(arch_kwargs=no_class | more) for more in ({}, {"dynamic_img_size": True}))
    for size in (8, 16):
        x = torch.rand(2, 3, size, size)
        torch.testing.assert_close(vit_tokens(encoder, x), flexible.backbone.forward_features(x))


def test_the_teacher_follows_and_gets_no_gradient() -> None:
    objective = made()
    assert objective.encoder is objective.teacher
    dropping = SynCLRRecipe(**TINY).objective(new_encoder(arch_kwargs={**VIT, "proj_drop_rate": 0.3}), 16)
    rates = [[m.p for m in x.modules() if isinstance(m, Dropout)] for x in (dropping.student, dropping.teacher)]
    assert any(rates[0])
    assert not any(rates[1])
    objective(objective.prepare(grouped()))["loss"].backward()
    assert [n for n, p in objective.named_parameters() if (p.grad is not None) != p.requires_grad] == []
    still = [n.split(".")[0] for n, p in objective.named_parameters() if not p.requires_grad]
    assert set(still) == {"teacher", "patches"}
    assert objective.patches is not None
    assert not any(p.requires_grad for p in objective.patches.teacher.parameters())
    pairs = [(objective.teacher, objective.student), (objective.patches.teacher, objective.patches.student)]
    before = [[p.clone() for p in slow.parameters()] for slow, _ in pairs]
    with torch.no_grad():
        for _, fast in pairs:
            for p in fast.parameters():
                p += 1
    for progress in (0.25, 1.0):  # from 0.994 to 1 in half a cosine
        momentum = 1 - 0.006 * (1 + math.cos(math.pi * progress)) / 2
        objective.advance(progress)
        for (slow, fast), first in zip(pairs, before, strict=True):
            for p, q, b in zip(slow.parameters(), fast.parameters(), first, strict=True):
                torch.testing.assert_close(p, b.lerp(q, 1 - momentum), rtol=1e-5, atol=1e-6)
        before = [[p.clone() for p in slow.parameters()] for slow, _ in pairs]
    assert float(objective.progress) == 1


def test_a_batch_that_is_not_finite_leaves_nothing_behind() -> None:
    objective = made()
    batch = objective.prepare(grouped())
    out = objective(batch | {"view1": torch.full_like(batch["view1"], torch.nan)})
    assert not bool(out["loss"].isfinite())
    objective.advance(0.5)
    assert all(bool(v.isfinite().all()) for v in objective.state_dict().values())
    assert bool(objective(batch)["loss"].isfinite())


def test_bf16_computes_nearly_the_same() -> None:
    objective = made(drop_path=0.0)
    batch = objective.prepare(grouped())
    exact = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(batch)
        found["loss"].backward()
    assert found["loss"].dtype == torch.float32
    for key in ("contrastive", "contrastive_small", "patches"):
        assert float(found[key].detach()) == pytest.approx(float(exact[key].detach()), rel=0.03)
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.requires_grad)


def test_stochastic_depth() -> None:
    objective = made(drop_path=0.3)
    rates = [b.drop_path1.p for b in objective.student.backbone.blocks]
    assert rates == [0.0, 0.3]
    assert isinstance(objective.student.backbone.blocks[1].drop_path2, DropPath)
    assert not isinstance(objective.teacher.backbone.blocks[1].drop_path2, DropPath)
    module = DropPath(0.3).train()
    torch.manual_seed(0)
    rows = module(torch.ones(4000, 2, 3))
    assert rows.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (rows.flatten(1).std(1) == 0).all()
    assert float((rows[:, 0, 0] == 0).double().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(module.eval()(rows), rows)
    with drawing_for(np.arange(4, dtype=np.uint64), 0, 4, 0):
        whole = module.train()(torch.ones(8, 2))
    with drawing_for(np.arange(2, 4, dtype=np.uint64), 2, 4, 0):
        assert torch.equal(module(torch.ones(4, 2)), whole[4:])
    drop_paths(torch.nn.Linear(2, 2), 0.5)  # nothing to do


def test_small_views_have_a_size_of_their_own() -> None:
    assert [local_side(*sizes) for sizes in ((224, 16), (32, 4), (16, 4), (16, 16))] == [96, 12, 8, 16]
    large, small = synclr_views(224, 96)
    assert (large.crop_scale, small.crop_scale) == ((0.32, 1.0), (0.08, 0.32))
    assert synclr_views(32, 12)[1].crop_scale == (0.2, 0.32)
    images = torch.linspace(0, 1, 24).expand(64, 3, 24, 24)
    views = augment(images, synclr_views(24, 9)[1])
    assert views.shape == (64, 3, 9, 9)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    plain = {
        "jitter": 0.0,
        "grey": 0.0,
        "downsample": 0.0,
        "blur": 0.0,
        "other_blur": 0.0,
        "other_solarize": 1.0,
        "flip": 0.0,
    }
    torch.manual_seed(0)
    views = augment(images / 3 + 0.6, type(large)(crop_scale=(0.2, 0.3), side=12, **plain))  # type: ignore[arg-type]
    slope = views[:, 0, 0].diff(dim=1).mean(1) * 3 * 12  # what a crop covers of the ramp
    turned = views.amax((1, 2, 3)) < 0.5
    assert torch.equal(turned, slope < 0)
    assert 16 < int(turned.sum()) < 48  # the second recipe, by lot
    assert 0.35 < float(slope.abs().min()) <= float(slope.abs().max()) < 0.75


def test_a_short_training_lowers_both_losses() -> None:
    objective = made(momentum=0.9, local_crops=1, drop_path=0.0)
    plain = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "other_blur": 0.0, "other_solarize": 0.0}
    large, small = (dataclasses.replace(view, **plain) for view in objective.recipes)  # type: ignore[arg-type]
    objective.recipes = (large, small)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3, weight_decay=0)
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(8, 3, 3, 3, generator=g), (16, 16), mode="bilinear")[:, None]
    images = (smooth + 0.1 * torch.rand(8, 4, 3, 16, 16, generator=g)).clamp(0, 1)
    batch = {"images": (images * 255).to(torch.uint8), "identities": torch.arange(8)}
    figures: dict[str, list[float]] = {"contrastive": [], "contrastive_small": [], "patches": [], "patches_least": []}
    for step in range(50):
        torch.manual_seed(step)
        out = objective(objective.prepare(batch))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        objective.advance(0.05 + step / 1000)
        for key, values in figures.items():
            values.append(float(out[key].detach()))
    first, last = ({k: np.mean(v[part]) for k, v in figures.items()} for part in (slice(0, 8), slice(-8, None)))
    assert last["contrastive"] < 0.9 * first["contrastive"]
    assert last["contrastive_small"] < 0.9 * first["contrastive_small"]
    assert last["patches"] - last["patches_least"] < 0.6 * (first["patches"] - first["patches_least"])


# ---------------------------------------------------------------- processes


def step_of(rows: slice) -> tuple[SynCLR, list[torch.Tensor]]:
    """Losses and gradients of some of the captions; the first two have more hidden patches than the others."""
    objective = made(local_crops=1, drop_path=0.0).double().train()
    objective.progress.fill_(0.5)
    with torch.no_grad():
        g = torch.Generator().manual_seed(4)
        for parameter in objective.student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))
    g = torch.Generator().manual_seed(2)
    batch = {f"view{i}": torch.rand(4, 3, 16, 16, generator=g, dtype=torch.float64) for i in (1, 2)}
    batch["small"] = torch.rand(4, 2, 3, 8, 8, generator=g, dtype=torch.float64)
    hidden = torch.rand(4, 2, 16, generator=g) < torch.tensor([0.6, 0.6, 0.3, 0.2])[:, None, None]
    batch |= {"identities": torch.tensor([1, 2, 1, 3]), "hidden": hidden}
    own = {k: v[rows] for k, v in batch.items()}
    own["places"] = own["hidden"].flatten().nonzero()[:, 0]
    out = objective(own)
    out["loss"].backward()
    losses = [out[k].detach() for k in ("loss", "contrastive", "contrastive_small", "patches")]
    return objective, [*losses, *(p.grad for p in objective.parameters() if p.grad is not None)]


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _, found = step_of(slice(2 * rank, 2 * rank + 2))
    for value in found:
        dist.all_reduce(value)
    torch.save([value / 2 for value in found], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_the_gradients_of_one(tmp_path: Path) -> None:
    both(_one_of_two, str(tmp_path))
    _, expected = step_of(slice(None))
    for rank in range(2):
        for found, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- what cannot be


def test_unusable_settings_say_so() -> None:
    encoder = new_encoder()
    with pytest.raises(UserError, match="SynCLR hides patches of a plain ViT, which resnet10t is not; use --arch vit"):
        SynCLR(SSLEncoder("resnet10t", image_size=32, pool="timm", head_layers=1))
    with pytest.raises(UserError, match="which swin_tiny_patch4_window7_224 is not"):
        SynCLR(SSLEncoder("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": [1, 1, 1, 1]}, pool="timm"))
    with pytest.raises(UserError, match="has no BatchNorm"):
        SynCLR(new_encoder(head_type="stablerep"))
    with pytest.raises(UserError, match="has no BatchNorm"):
        SynCLR(new_encoder(head_layers=0))
    with pytest.raises(UserError, match="temperature is 0"):
        SynCLR(encoder, temperature=0)
    with pytest.raises(UserError, match="momentum 2"):
        SynCLR(encoder, momentum=2)
    with pytest.raises(UserError, match="must not be negative"):
        SynCLR(encoder, local_crops=-1)
    with pytest.raises(UserError, match=r"a mask ratio of 0\.01 hides 0"):
        SynCLR(encoder, patches=PatchSettings(ratio=0.01))
    with pytest.raises(UserError, match=r"masks are for 0\.0 of the images"):
        SynCLR(encoder, patches=PatchSettings(probability=0.0))
    with pytest.raises(UserError, match="at least 2 prototypes"):
        SynCLR(encoder, patches=PatchSettings(prototypes=1))
    with pytest.raises(UserError, match="at least two images of a caption"):
        made().prepare({"images": grouped()["images"][:, 0], "indices": torch.arange(4)})


def test_the_command_says_it_before_it_opens_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "synclr", "--arch", "resnet10t", "--steps", "1", "--data", str(tmp_path / "none")]
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--out", str(tmp_path / "o")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "SynCLR hides patches of a plain ViT, which resnet10t is not; use --arch vit." in said
