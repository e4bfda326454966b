"""SynCLR (arXiv 2312.17742): images of one caption attract each other, and hidden patches are predicted; a slowly following
teacher makes the targets of both.

Where the paper leaves something open, it is as in its reference program (google-research/syn-rep-learn, `SynCLR/train_pytorch`).
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rcg.core.dropout import drop_paths, silence
from rcg.core.errors import UserError
from rcg.core.together import gather_rows, rank
from rcg.encoders.augment import SynCLRView, augment, synclr_views
from rcg.encoders.dino import warmed
from rcg.encoders.heads import synclr_mlp
from rcg.encoders.ibot import PatchPrediction
from rcg.encoders.masks import MaskShape, block_masks, chosen_images, random_masks
from rcg.encoders.methods import Method, follow, momentum_at, rows_of, views_of
from rcg.encoders.moco import spread
from rcg.encoders.multi_positive import multi_positive_rows, unit_rows
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.encoders.tokens import check_plain_vit, vit_tokens

LOCAL_SHARE = 96 / 224
"""Side of a small crop as a share of a large one's (the reference program; DINO's, too)."""


def local_side(image_size: int, patch: int) -> int:
    """Side of small crops in pixels: the whole number of patches that is nearest to 96 of 224."""
    return max(1, round(LOCAL_SHARE * image_size / patch)) * patch


@dataclasses.dataclass(frozen=True)
class PatchSettings:
    """The loss on hidden patches.

    Attributes:
        weight: of the loss; 0 hides nothing (equation 4 has 1).
        probability: share of the images some of whose patches are hidden (section 3.4).
        ratio: share of their patches that are (section 3.4).
        shape: any of the patches, as SynCLR (section 3.4), or blocks, as iBOT (section 4.1).
        prototypes: K (section 3.4).
        hidden_dim: of the head.
        temperature, warmup_temperature: of the teacher from the end of its warm-up on, and at the start (section 3.4).
        warmup: share of the training in which the temperature gets there (section 3.4: 4000 iterations, of 85,000 in section 4.1).
    """

    weight: float = 1.0
    probability: float = 0.5
    ratio: float = 0.5
    shape: MaskShape = "random"
    prototypes: int = 65536
    hidden_dim: int = 2048
    temperature: float = 0.07
    warmup_temperature: float = 0.04
    warmup: float = 4000 / 85000

    def check(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if self.weight < 0 or not 0 < self.probability <= 1 or not 0 <= self.warmup <= 1:
            raise UserError(
                f"the weight of the patches is {self.weight}, which must not be negative, masks are for {self.probability} of the "
                f"images, which must lie in (0, 1], and the warm-up is {self.warmup}, which must lie in [0, 1]."
            )
        if min(self.temperature, self.warmup_temperature) <= 0 or self.prototypes < 2:
            raise UserError("the teacher's temperatures must be above 0, and there must be at least 2 prototypes.")


class SynCLR(Method):
    """Student, teacher, the student's predictor, and the heads for patches.

    The teacher is what is looked at and exported, as of DINO and iBOT (the paper does not say which one it evaluates).

    Args:
        encoder: to train, a plain ViT with a projection head without BatchNorm (type "synclr"); used as the teacher's, and
            copied for the student.
        views: recipes of large and of small views; by default the paper's at the encoder's image size.
        temperature: τ of the contrastive loss (section 3.4).
        momentum: of the teacher at the start; it rises to 1 in half a cosine (section 3.3).
        local_crops: small views of each image (section 3.4); for the student, at their own size.
        predictor_hidden_dim, predictor_layers: of the student's predictor, MoCo-v3's (section 3.4); 0 layers is none.
        drop_path: stochastic depth of the student's last block (table 12, of ViT-B).
        patches: the loss on hidden patches.

    Raises:
        UserError: an encoder that is not of this kind, or settings out of range.
    """

    name, shown = "synclr", "teacher"

    def __init__(
        self,
        encoder: SSLEncoder,
        views: tuple[SynCLRView, SynCLRView] | None = None,
        *,
        temperature: float = 0.08,
        momentum: float = 0.994,
        local_crops: int = 4,
        predictor_hidden_dim: int = 4096,
        predictor_layers: int = 2,
        drop_path: float = 0.1,
        patches: PatchSettings | None = None,
    ) -> None:
        super().__init__()
        patches = patches or PatchSettings()
        check_plain_vit(encoder, "SynCLR")
        if encoder.head is None or any(isinstance(m, _BatchNorm) for m in encoder.modules()):
            raise UserError(
                "SynCLR trains an encoder with a projection head that has no BatchNorm; give it head_layers of 1 or more and "
                "head_type 'synclr'."
            )
        if temperature <= 0:
            raise UserError(f"the temperature is {temperature}, but it must be above 0.")
        if not 0 <= momentum <= 1 or not 0 <= drop_path < 1:
            raise UserError(f"momentum {momentum} must lie in [0, 1], and drop path {drop_path} in [0, 1).")
        if min(local_crops, predictor_layers) < 0:
            raise UserError("the numbers of small crops and of the predictor's layers must not be negative.")
        patches.check()
        embed = encoder.backbone.patch_embed
        self.side = int(embed.grid_size[0])
        self.hidden = round(patches.ratio * self.side**2)
        if patches.weight and not 0 < self.hidden < self.side**2:
            raise UserError(
                f"of {self.side**2} patches, a mask ratio of {patches.ratio} hides {self.hidden}; give another one, or smaller "
                "patches."
            )
        self.local_side = local_side(encoder.config.image_size, int(embed.patch_size[0]))
        self.recipes = views or synclr_views(encoder.config.image_size, self.local_side)
        self.teacher = encoder
        self.student = copy.deepcopy(encoder)
        silence(self.teacher)
        drop_paths(self.student.backbone, drop_path)
        dim = encoder.projection_dim
        self.predictor: nn.Module = nn.Identity()
        if predictor_layers:
            self.predictor = synclr_mlp(dim, predictor_hidden_dim, dim, predictor_layers)
        self.patches: PatchPrediction | None = None
        if patches.weight:
            self.patches = PatchPrediction(encoder.backbone.embed_dim, patches.hidden_dim, patches.prototypes)
        self.teacher.requires_grad_(False)
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))
        self.settings = patches
        self.tau, self.momentum, self.local_crops = temperature, momentum, local_crops
        self._settings = {"temperature": temperature, "momentum": momentum, "local_crops": local_crops,
                          "predictor": [predictor_layers, predictor_hidden_dim], "drop_path": drop_path,
                          "patches": dataclasses.asdict(patches)}  # fmt: skip

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Views and masks of m images of each caption.

        Args:
            batch: `images` uint8 [B, m, 3, S, S], m ≥ 2, and `identities` int64 [B].

        Returns:
            `view1` … `view<m>`, large, float [B, 3, S, S] in [0, 1]; with small crops `small` [B, m · crops, 3, s, s]; with a loss
            on patches `hidden`, bool [B, m, N], and `places` int64 [M]: those that are, numbered through; `identities`.

        Raises:
            UserError: single images.
        """
        images = batch["images"]
        if images.ndim != 5 or images.shape[1] < 2:
            raise UserError(
                "SynCLR learns from at least two images of a caption; give such data, and raise --images-per-caption."
            )
        captions, count = images.shape[:2]
        flat = images.flatten(0, 1).float() / 255
        large = augment(flat, self.recipes[0]).unflatten(0, (captions, count))
        made = {f"view{i + 1}": large[:, i] for i in range(count)} | {"identities": batch["identities"]}
        if self.local_crops:
            small = augment(flat.repeat_interleave(self.local_crops, 0), self.recipes[1])
            made["small"] = small.unflatten(0, (captions, count * self.local_crops))
        if self.patches is not None:
            hidden = self.masks(captions, count)
            made["hidden"] = hidden.to(images.device, non_blocking=True)
            made["places"] = hidden.flatten().nonzero()[:, 0].to(images.device, non_blocking=True)
        return made

    def masks(self, captions: int, count: int) -> Tensor:
        """Which patches are hidden, bool [captions, count, N]: of some images `self.hidden`, of the others none."""
        shown = chosen_images(captions, count, self.settings.probability)
        if self.settings.shape == "block":
            masks = block_masks(captions * count, self.side, self.hidden)
        else:
            masks = random_masks(captions * count, self.side**2, self.hidden)
        return masks.unflatten(0, (captions, count)) & shown[:, :, None]

    def contrast(self, queries: Tensor, keys: Tensor, ids: Tensor, own: int | None) -> Tensor:
        """Equations 1 to 3, the mean over this process's queries.

        Args:
            queries: the student's [n, D], normalised here.
            keys: the teacher's of the large views of all processes, normalised, [G, D].
            ids: identities of queries and keys, int64 [n + G].
            own: query i is of the same view as key i + own, which is left out; None: all keys count.
        """
        q = unit_rows(queries)
        return multi_positive_rows(q, keys, ids[: len(q)], ids[len(q) :], 1 / self.tau, own).mean()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss (equation 4): of large views, the mean of small ones, and of hidden patches.

        A large view of the student, which sees no hidden patch, is not compared with the teacher's very same view; a small one
        is compared with all, those of its own image, too.

        Args:
            batch: as `prepare` makes it.

        Returns:
            `loss`; its parts `contrastive` and, where they are, `contrastive_small` and `patches`, with `patches_least`, the mean
            entropy of the teacher's choices, below which the last cannot fall; `feature_spread`.
        """
        large = rows_of(views_of(batch))
        ids = batch["identities"].repeat_interleave(len(large) // len(batch["identities"]))
        images, hidden, token = self.student.preprocess(large), None, None
        if self.patches is not None:
            hidden, token = batch["hidden"].flatten(0, 1), self.patches.mask_token
        with torch.no_grad():
            wanted = vit_tokens(self.teacher, images)
            keys = gather_rows(unit_rows(self.teacher.project(self.teacher.pooled(wanted))))
            key_ids = gather_rows(ids)
        tokens = vit_tokens(self.student, images, hidden, token)
        features = self.student.pooled(tokens)
        figures = {"feature_spread": spread(features)}
        queries = self.predictor(self.student.project(features))
        loss = figures["contrastive"] = self.contrast(queries, keys, torch.cat([ids, key_ids]), rank() * len(large))
        if "small" in batch:
            crops = batch["small"].flatten(0, 1)
            found = self.student.pooled(vit_tokens(self.student, self.student.preprocess(crops, self.local_side)))
            small = self.predictor(self.student.project(found))
            small_ids = ids.repeat_interleave(len(crops) // len(large))
            figures["contrastive_small"] = self.contrast(small, keys, torch.cat([small_ids, key_ids]), None)
            loss = loss + figures["contrastive_small"]
        if self.patches is not None:
            places, prefix = batch["places"], int(self.student.backbone.num_prefix_tokens)
            seen, unseen = (x[:, prefix:].flatten(0, 1)[places] for x in (wanted, tokens))
            s = self.settings
            degree = warmed(self.progress, s.warmup_temperature, s.temperature, s.warmup)
            figures["patches"], figures["patches_least"] = self.patches(unseen, seen, degree)
            loss = loss + s.weight * figures["patches"]
        return {"loss": loss, **figures}

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Move the teacher (section 3.3), and note where the training is."""
        momentum = momentum_at(progress, self.momentum)
        follow(self.teacher, self.student, momentum)
        if self.patches is not None:
            self.patches.advance(momentum)
        self.progress.fill_(progress)
