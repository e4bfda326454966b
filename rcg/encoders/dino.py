"""DINO (arXiv 2104.14294): a student learns which of many prototypes a slowly following teacher sees in other views."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.dropout import silence
from rcg.core.errors import UserError
from rcg.core.together import everyones
from rcg.encoders.augment import ViewRecipe, default_crop_scale, moco_v3_recipes
from rcg.encoders.methods import Method, check_head, follow, momentum_at, rows_of, views_of
from rcg.encoders.moco import spread
from rcg.encoders.ssl_encoder import SSLEncoder

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9
FREEZE = 0.01
"""Share of the training during which prototypes rest: the first of 100 epochs, as in the paper."""
LOCAL_SHARE = 0.05 / 0.08
"""Least area of a local crop, relative to that of a crop of MoCo-v3."""


def dino_loss(teacher: Tensor, student: Tensor, centre: Tensor, temperature: Tensor | float) -> Tensor:
    """Cross-entropy between teacher and student (equation 3), over all pairs of a teacher's and another view.

    Args:
        teacher: scores [T, B, K] of the first T views, without gradient.
        student: scores [V, B, K] of all views, the same T first; V ≥ 2.
        centre: [K], taken from the teacher's scores.
        temperature: of the teacher.

    Returns:
        the mean over pairs and images; in float32 or better.
    """
    with torch.autocast(student.device.type, enabled=False):
        t, s = (x if x.dtype == torch.float64 else x.float() for x in (teacher, student))
        wanted = ((t - centre) / temperature).softmax(2)
        found = (s / STUDENT_TEMPERATURE).log_softmax(2)
        views = len(t)
        terms = [-(wanted[i] * found[j]).sum(1).mean() for i in range(views) for j in range(len(s)) if i != j]
        return torch.stack(terms).mean()


def dino_recipes(size: int, global_crop_scale: float = 0.4, local_crops: int = 4) -> tuple[ViewRecipe, ...]:
    """Recipes for images of `size` pixels: two of large parts, as strong as MoCo-v3's, and `local_crops` of small ones.

    Args:
        size: side of the images, to which blur and the least local crop are fitted as in `moco_v3_recipes`.
        global_crop_scale: least share of the area of a large part, and the largest of a small one.
        local_crops: how many small ones.
    """
    first, second = (dataclasses.replace(r, crop_scale=(global_crop_scale, 1.0)) for r in moco_v3_recipes(size))
    least = min(LOCAL_SHARE * default_crop_scale(size), global_crop_scale)
    local = dataclasses.replace(first, crop_scale=(least, global_crop_scale), blur=0.5)
    return first, second, *[local] * local_crops


def warmed(progress: Tensor, first: float, last: float, warmup: float) -> Tensor:
    """A teacher's temperature: from `first` to `last`, linearly, over a share `warmup` of the training.

    `progress` in [0, 1] is a scalar of the device, and so is the temperature, so that nothing waits for it.
    """
    share = (progress / warmup).clamp(max=1) if warmup else torch.ones_like(progress)
    return first + (last - first) * share


class Prototypes(nn.Module):
    """Scores of vectors: cosines with K learned directions. [B, D] → [B, K]."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim).normal_(std=0.02))

    def forward(self, vectors: Tensor, trained: Tensor | float = 1.0) -> Tensor:
        """Scores, not in bf16, which is too coarse for cosines over a temperature of 0.04.

        With `trained` 0 the directions get no gradient (it may be a tensor of the device).
        """
        with torch.autocast(vectors.device.type, enabled=False):
            weight = F.normalize(self.weight, dim=1)
            weight = weight * trained + weight.detach() * (1 - trained)
            return F.linear(F.normalize(vectors.to(weight.dtype), dim=1), weight)


class DINO(Method):
    """Student, teacher, and the prototypes of both.

    The teacher, which is the better one throughout the training (section 5.2 of the paper), is what is looked at and exported, up
    to its bottleneck: that is the representation. Crops of small parts are enlarged to the encoder's size, which is the only
    one that its backbone takes; the paper's are smaller, and cheaper.

    Args:
        encoder: to train, with a projection head that ends in the bottleneck (type "dino"); used as the teacher's, and
            copied for the student.
        prototypes: K.
        momentum: of the teacher at the start; it rises to 1 in half a cosine.
        teacher_temperature: at the end of its warm-up, and from then on.
        warmup_temperature: at the start.
        warmup: share of the training in which the temperature gets there.
        recipes: of the views, two of large parts first.

    Raises:
        UserError: no projection head, or settings out of range.
    """

    name, shown, compares = "dino", "teacher", False

    def __init__(
        self,
        encoder: SSLEncoder,
        *,
        prototypes: int = 65536,
        momentum: float = 0.996,
        teacher_temperature: float = 0.04,
        warmup_temperature: float = 0.04,
        warmup: float = 0.3,
        recipes: tuple[ViewRecipe, ...] | None = None,
    ) -> None:
        super().__init__()
        check_head(encoder, "DINO")
        if not 0 <= momentum <= 1 or not 0 <= warmup <= 1:
            raise UserError(f"momentum {momentum} and warm-up {warmup} must lie in [0, 1].")
        if min(teacher_temperature, warmup_temperature) <= 0 or prototypes < 2:
            raise UserError("the teacher's temperatures must be above 0, and there must be at least 2 prototypes.")
        self.teacher = encoder
        self.student = copy.deepcopy(encoder)
        silence(self.teacher)
        self.student_prototypes = Prototypes(encoder.projection_dim, prototypes)
        self.teacher_prototypes = copy.deepcopy(self.student_prototypes)
        for module in (self.teacher, self.teacher_prototypes):
            module.requires_grad_(False)
        self.centre: Tensor
        self.progress: Tensor
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("progress", torch.zeros(()))
        self.score_sum: Tensor  # of the teacher, over the passes since the last step, and how many they were
        self.score_count: Tensor
        self.register_buffer("score_sum", torch.zeros(prototypes), persistent=False)
        self.register_buffer("score_count", torch.zeros(()), persistent=False)
        self.momentum, self.warmup = momentum, warmup
        self.temperatures = (warmup_temperature, teacher_temperature)
        self.recipes = recipes or dino_recipes(encoder.config.image_size)
        self._settings = {"prototypes": prototypes, "momentum": momentum, "temperatures": list(self.temperatures),
                          "warmup": warmup}  # fmt: skip

    def temperature(self) -> Tensor:
        """The teacher's at this point of the training."""
        return warmed(self.progress, *self.temperatures, self.warmup)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss; the teacher's scores are remembered for the centre, which moves with the step (`advance`).

        Args:
            batch: as `prepare` makes it.

        Returns:
            `loss`; `teacher_entropy` of the teacher's mean choice as a share of the largest possible (0: it always chooses
            the same); `feature_spread`.
        """
        views = views_of(batch)
        trained = (self.progress >= FREEZE).to(self.centre.dtype)
        features, scores = [], []
        # large parts together, then small ones, as BatchNorm of the paper sees them
        for group in (views[:2], views[2:]):
            if group:
                found = self.student.features(rows_of(group))
                features.append(found)
                made = self.student_prototypes(self.student.project(found), trained)
                scores.append(made.unflatten(0, (-1, len(group))).transpose(0, 1))
        with torch.no_grad():
            own = self.teacher.project(self.teacher.features(torch.cat(views[:2])))
            targets = self.teacher_prototypes(own).unflatten(0, (2, -1))
        loss = dino_loss(targets, torch.cat(scores), self.centre, self.temperature())
        choice = ((targets - self.centre) / self.temperature()).softmax(2).mean((0, 1))
        entropy = -(choice * choice.clamp_min(1e-12).log()).sum() / torch.tensor(float(len(choice))).log()
        self._observe(targets)
        return {"loss": loss, "teacher_entropy": entropy, "feature_spread": spread(features[0])}

    @torch.no_grad()
    def _observe(self, scores: Tensor) -> None:
        """Remember the teacher's scores [T, B, K]."""
        self.score_sum += scores.sum((0, 1))
        self.score_count += scores.shape[0] * scores.shape[1]

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Move centre and teacher, and note where the training is.

        Equation 4: the centre follows the mean of the teacher's scores over views and images of the whole step.
        """
        moved = self.centre.lerp(everyones(self.score_sum) / everyones(self.score_count), 1 - CENTRE_MOMENTUM)
        self.centre.copy_(torch.where(moved.isfinite().all(), moved, self.centre))  # NaN would stay for ever
        self.score_sum.zero_()
        self.score_count.zero_()
        momentum = momentum_at(progress, self.momentum)
        follow(self.teacher, self.student, momentum)
        follow(self.teacher_prototypes, self.student_prototypes, momentum)
        self.progress.fill_(progress)
