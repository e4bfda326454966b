"""BYOL, DINO and MAE: their losses against loops and lightly's (where it is installed), and what moves when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from rcg.core.draws import drawing_for
from rcg.core.errors import UserError
from rcg.encoders.byol import BYOL, prediction_loss
from rcg.encoders.dino import DINO, Prototypes, dino_loss, dino_recipes
from rcg.encoders.mae import MAE, patches_of, reconstruction_loss
from rcg.encoders.recipes import RECIPES, BYOLRecipe, DINORecipe, MAERecipe
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.tokens import check_patches
from tests.forked import both

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
HEADS: dict[str, dict[str, Any]] = {
    "byol": {"head_layers": 2, "head_hidden_dim": 32, "head_dim": 16, "head_type": "stablerep"},
    "dino": {"head_layers": 3, "head_hidden_dim": 32, "head_dim": 16, "head_type": "dino"},
    "mae": {},
}


def new_encoder(method: str, **more: Any) -> SSLEncoder:
    torch.manual_seed(0)
    return SSLEncoder(**{"arch": "vit_tiny_patch16_224", "arch_kwargs": VIT, "image_size": 16, **HEADS[method], **more})


def images(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_byols_loss() -> None:
    torch.manual_seed(0)
    p, t = torch.randn(5, 7), torch.randn(5, 7)
    expected = sum(
        float(((a / a.norm() - b / b.norm()) ** 2).sum()) for a, b in zip(p.double(), t.double(), strict=True)
    )
    assert float(prediction_loss(p, t)) == pytest.approx(expected / 5)
    lightly = pytest.importorskip("lightly.loss.negative_cosine_similarity")
    assert float(prediction_loss(p, t)) == pytest.approx(2 + 2 * float(lightly.NegativeCosineSimilarity()(p, t)))


def test_byol_predicts_what_the_slow_copy_makes_of_the_other_view() -> None:
    byol = BYOLRecipe().objective(new_encoder("byol"), 16).train()
    batch = byol.prepare({"images": images()})
    with torch.no_grad():
        z = [byol.target.project(byol.target.features(batch[v])) for v in ("view1", "view2")]
    q = [byol.predictor(byol.online.project(byol.online.features(batch[v]))) for v in ("view1", "view2")]
    loss = byol(batch)["loss"]
    torch.testing.assert_close(loss, prediction_loss(q[0], z[1]) + prediction_loss(q[1], z[0]))
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in byol.parameters())
    before = byol.target.backbone.cls_token.clone()
    with torch.no_grad():
        byol.online.backbone.cls_token += 1
    byol.advance(0.5)
    momentum = 1 - 0.004 * (1 + math.cos(math.pi / 2)) / 2
    torch.testing.assert_close(byol.target.backbone.cls_token, before + 1 - momentum)
    byol.advance(1.0)
    torch.testing.assert_close(byol.target.backbone.cls_token, before + 1 - momentum)


@pytest.mark.parametrize("views", [2, 5])
def test_dinos_loss(views: int) -> None:
    torch.manual_seed(0)
    teacher, student, centre = torch.randn(2, 4, 9), torch.randn(views, 4, 9), torch.randn(9) / 3
    terms = []
    for i in range(2):
        for j in range(views):
            if i != j:
                p = ((teacher[i].double() - centre) / 0.05).softmax(1)
                terms += [-(p[b] * (student[j][b].double() / 0.1).log_softmax(0)).sum() for b in range(4)]
    found = dino_loss(teacher, student, centre, 0.05)
    assert float(found) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)
    lightly = pytest.importorskip("lightly.loss.dino_loss")
    theirs = lightly.DINOLoss(output_dim=9, teacher_temp=0.05, warmup_teacher_temp_epochs=0, center_momentum=0.9)
    theirs.center.copy_(centre)
    assert float(found) == pytest.approx(float(theirs(list(teacher), list(student), teacher_temp=0.05)), rel=1e-5)


def test_the_centre_follows_the_teachers_scores_as_lightlys_does() -> None:
    dino = DINO(new_encoder("dino"), prototypes=9)
    torch.manual_seed(0)
    scores = [torch.randn(2, 4, 9) for _ in range(3)]
    for some in scores:
        dino._observe(some)
        dino.advance(0.0)
    expected = torch.zeros(9)
    for some in scores:
        expected = 0.9 * expected + 0.1 * some.reshape(8, 9).mean(0)
    torch.testing.assert_close(dino.centre, expected)
    dino._observe(torch.full((2, 4, 9), torch.nan))
    dino.advance(0.0)
    torch.testing.assert_close(dino.centre, expected)
    lightly = pytest.importorskip("lightly.loss.dino_loss")
    theirs = lightly.DINOLoss(output_dim=9)
    for some in scores:
        theirs.update_center(some)
    torch.testing.assert_close(theirs.center.flatten(), expected)


def test_the_centre_moves_once_a_step_however_many_passes_it_has() -> None:
    def centres(cuts: list[slice]) -> list[torch.Tensor]:
        dino = DINO(new_encoder("dino"), prototypes=9).train()
        found = []
        for step in range(2):
            views = torch.rand(3, 5, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            for rows in cuts:
                dino({f"view{i}": view[rows] for i, view in enumerate(views, 1)})
                assert torch.equal(dino.centre, found[-1] if found else torch.zeros(9))
            dino.advance(0.0)
            found.append(dino.centre.clone())
        return found

    for whole, parts in zip(centres([slice(5)]), centres([slice(3), slice(3, 5)]), strict=True):
        assert whole.any()
        torch.testing.assert_close(parts, whole)


def test_prototypes_are_a_weight_normalised_layer() -> None:
    torch.manual_seed(0)
    ours = Prototypes(6, 10)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 10, bias=False))
    theirs.parametrizations.weight.original0.data.fill_(1)
    theirs.parametrizations.weight.original1.data.copy_(ours.weight.data)
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(F.normalize(x, dim=1)))


def test_dinos_parts() -> None:
    """The temperature rises, prototypes rest at first, the teacher follows and is what is exported."""
    recipe = DINORecipe(prototypes=12, local_crops=2, teacher_temperature=0.07, warmup_temperature=0.03)
    dino = recipe.objective(new_encoder("dino"), 16).train()
    assert dino.encoder is dino.teacher
    batch = dino.prepare({"images": images()})
    assert set(batch) == {"view1", "view2", "view3", "view4"}
    out = dino(batch)
    out["loss"].backward()
    assert 0 <= float(out["teacher_entropy"]) <= 1.00001
    assert not dino.student_prototypes.weight.grad.any()
    assert all((p.grad is not None) == p.requires_grad for p in dino.parameters())
    assert float(dino.temperature()) == pytest.approx(0.03)
    dino.advance(0.15)
    assert dino.centre.any()
    assert float(dino.temperature()) == pytest.approx(0.05)
    dino.zero_grad()
    dino(batch)["loss"].backward()
    assert dino.student_prototypes.weight.grad.any()
    dino.advance(0.6)
    assert float(dino.temperature()) == pytest.approx(0.07)
    with torch.no_grad():
        dino.student.backbone.cls_token += 1
    before = dino.teacher.backbone.cls_token.clone()
    dino.advance(0.0)
    torch.testing.assert_close(dino.teacher.backbone.cls_token, before + 0.004)
    large, _, small = dino_recipes(224, local_crops=1)
    assert (large.crop_scale, small.crop_scale) == ((0.4, 1.0), (pytest.approx(0.05), 0.4))
    assert len(dino_recipes(32, local_crops=0)) == 2


def dino_step(rows: slice) -> tuple[DINO, list[torch.Tensor]]:
    """Gradients of some of the images, at the second of two steps, so that the centre counts."""
    dino = DINO(new_encoder("dino"), prototypes=8).double().train()
    dino.progress.fill_(0.5)
    g = torch.Generator().manual_seed(2)
    for _ in range(2):
        dino.zero_grad()
        batch = {f"view{i}": torch.rand(4, 3, 16, 16, generator=g, dtype=torch.float64)[rows] for i in (1, 2, 3)}
        dino(batch)["loss"].backward()
        dino.advance(0.5)
    return dino, [p.grad for p in dino.parameters() if p.grad is not None]


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dino, gradients = dino_step(slice(2 * rank, 2 * rank + 2))
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save([dino.centre, *(g / 2 for g in gradients)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_dinos_gradients_of_one(tmp_path: Path) -> None:
    both(_one_of_two, str(tmp_path))
    dino, gradients = dino_step(slice(None))
    for rank in range(2):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt"), [dino.centre, *gradients], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_patches_and_their_loss() -> None:
    torch.manual_seed(0)
    x, painted = torch.rand(2, 3, 8, 8), torch.randn(2, 4, 48)
    found = patches_of(x, 4)
    assert torch.equal(found[1, 2].unflatten(0, (4, 4, 3)), x[1, :, 4:, :4].permute(1, 2, 0))
    hidden = torch.tensor([[True, False, True, False], [False, True, True, False]])
    errors, plain = [], []
    for b in range(2):
        for n in range(4):
            if hidden[b, n]:
                t = found[b, n].double()
                plain += [float(((painted[b, n] - t) ** 2).mean())]
                t = (t - t.mean()) / (t.var() + 1e-6).sqrt()
                errors += [float(((painted[b, n] - t) ** 2).mean())]
    assert float(reconstruction_loss(painted, found, hidden)) == pytest.approx(sum(errors) / 4, rel=1e-5)
    assert float(reconstruction_loss(painted, found, hidden, False)) == pytest.approx(sum(plain) / 4, rel=1e-5)
    utils = pytest.importorskip("lightly.models.utils")
    assert torch.equal(utils.patchify(x, 4), found)


def test_mae_sees_the_visible_patches_alone() -> None:
    mae = MAERecipe(decoder_width=32, decoder_depth=1).objective(new_encoder("mae"), 16).train()
    batch = mae.prepare({"images": images()})
    assert (mae.visible, mae.patches) == (4, 16)
    pixels, visible = mae.model.preprocess(batch["view1"]), batch["order"][:, :4]
    tokens = mae.encode(pixels, visible)
    assert tokens.shape == (6, 5, 32)
    everything = mae.encode(pixels, torch.arange(16).expand(6, -1))
    torch.testing.assert_close(everything, mae.model.backbone.forward_features(pixels))
    other = pixels.clone()
    for row, order in zip(other, batch["order"], strict=True):
        for n in order[4:].tolist():
            row[:, n // 4 * 4 : n // 4 * 4 + 4, n % 4 * 4 : n % 4 * 4 + 4] = 0
    torch.testing.assert_close(mae.encode(other, visible), tokens)
    out = mae(batch)
    out["loss"].backward()
    assert all((p.grad is not None) == p.requires_grad for p in mae.parameters())


def test_which_patches_mae_hides_follows_from_the_sample() -> None:
    mae = MAERecipe(decoder_width=32, decoder_depth=1).objective(new_encoder("mae"), 16).train()
    seeds = np.arange(3, 9, dtype=np.uint64) * np.uint64(2**40)

    def order(rows: slice) -> torch.Tensor:
        with drawing_for(seeds[rows], rows.start, 6, 0):
            return mae.prepare({"images": images()[rows]})["order"]

    whole = order(slice(0, 6))
    assert torch.equal(torch.cat([order(slice(0, 2)), order(slice(2, 6))]), whole)
    assert len({tuple(row.tolist()) for row in whole}) == 6


def test_mae_puts_patches_back_in_their_places() -> None:
    mae = MAE(new_encoder("mae"), RECIPES["mae"]().objective(new_encoder("mae"), 16).recipes[0], decoder_width=32,
              decoder_depth=1)  # fmt: skip
    mae.blocks, mae.norm, mae.paint = torch.nn.Sequential(), torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    mae.embed = torch.nn.Identity()  # type: ignore[assignment]
    mae.positions.zero_()
    order = torch.rand(2, 16).argsort(1)
    tokens = torch.randn(2, 5, 32)
    out = mae.decode(tokens, order)
    for row, places, given in zip(out, order, tokens, strict=True):
        torch.testing.assert_close(row[places[:4]], given[1:])
        torch.testing.assert_close(row[places[4:]], mae.mask_token[0].expand(12, -1))


@pytest.mark.parametrize("method", ["byol", "dino", "mae"])
def test_a_short_training_lowers_the_loss(method: str) -> None:
    recipe: Any = {
        "byol": BYOLRecipe(momentum=0.9),
        "dino": DINORecipe(prototypes=16, local_crops=0, momentum=1.0),
        "mae": MAERecipe(decoder_width=32, decoder_depth=1),
    }[method]
    objective = recipe.objective(new_encoder(method), 16).train()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3, weight_decay=0)
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(32, 3, 3, 3, generator=g), (16, 16), mode="bilinear")
    losses = []
    for step in range(40 if method == "dino" else 0):  # the teacher rests, and its centre settles
        torch.manual_seed(step)
        objective(objective.prepare({"images": (smooth * 255).to(torch.uint8)}))
        objective.advance(0.0)
    for step in range(60):
        torch.manual_seed(step)
        out = objective(objective.prepare({"images": (smooth * 255).to(torch.uint8)}))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        objective.advance(0.02 + step / 1000)
        losses.append(float(out["loss"].detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_unusable_settings_say_so() -> None:
    bare = new_encoder("mae")
    with pytest.raises(UserError, match="BYOL trains an encoder with a projection head"):
        BYOL(bare)
    with pytest.raises(UserError, match="DINO trains an encoder with a projection head"):
        DINO(bare)
    with pytest.raises(UserError, match="momentum is 2"):
        BYOL(new_encoder("byol"), momentum=2)
    with pytest.raises(UserError, match="must lie in"):
        DINO(new_encoder("dino"), warmup=2)
    with pytest.raises(UserError, match="temperatures must be above 0"):
        DINO(new_encoder("dino"), teacher_temperature=0)
    view = MAERecipe().objective(bare, 16).recipes[0]
    with pytest.raises(UserError, match="set --head-layers 0"):
        MAE(new_encoder("byol"), view)
    with pytest.raises(UserError, match="leaves 16 visible"):
        MAE(bare, view, mask_ratio=0.01)
    with pytest.raises(UserError, match="multiple of 32"):
        MAE(bare, view, decoder_width=20)
    cnn = SSLEncoder("resnet10t", image_size=32, pool="timm")
    with pytest.raises(UserError, match="a plain ViT, which resnet10t is not"):
        MAE(cnn, view)
    with pytest.raises(UserError, match="a plain ViT, which eva02_tiny_patch14_224 is not"):
        MAE(new_encoder("mae", arch="eva02_tiny_patch14_224", arch_kwargs={**VIT, "num_heads": 4}, pool="timm"), view)
    with pytest.raises(UserError, match="a norm after pooling"):
        MAE(new_encoder("mae", arch_kwargs={**VIT, "global_pool": "avg"}, pool="timm"), view)
    with pytest.raises(UserError, match=r'pools by attention, .* \'{"global_pool": "avg", "fc_norm": false}\''):
        MAE(new_encoder("mae", arch="vit_base_patch16_siglip_224", arch_kwargs=VIT, pool="timm"), view)
    hybrid = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    with pytest.raises(UserError, match="a plain ViT, which vit_tiny_r_s16_p8_224 is not"):
        MAE(SSLEncoder("vit_tiny_r_s16_p8_224", hybrid), view)
    odd = new_encoder("mae", arch_kwargs={**VIT, "patch_size": 5})
    with pytest.raises(UserError, match=r"patches of 5 px, which do not divide 16 px; .* such as 20"):
        MAE(odd, view)
    with pytest.raises(UserError, match="patches of 5 px"):
        check_patches(odd)
