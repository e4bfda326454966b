"""An encoder: does it tell these images apart, by class where labels exist, and does it use its dimensions?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from rcg.check.findings import Part
from rcg.core.errors import UserError
from rcg.data.image_source import divide
from rcg.encoders.moco import effective_rank, spread
from rcg.eval.features import FeatureExtractor, extract
from rcg.eval.images import ImageSet
from rcg.eval.linear_probe import linear_probe
from rcg.eval.probes import knn_accuracy
from rcg.eval.spectrum import dead_dimensions, find_copies, rank_me
from rcg.recipe.look import NEAR, difference_hash

BATCH = 64
TEST_SHARE = 0.25
"""Of the labelled images that probes are tested on."""
LEAST_LABELLED = 40
THUMBNAIL = 8  # px, of the pixels that an encoder is compared with
FEW_DIMENSIONS = 8.0
"""Effective dimensions below which a representation says little."""
DEAD_SHARE, COPY_SHARE = 0.1, 0.01
AGAIN = "train the encoder for longer, or take another one (rcg-train --encoder)"
MIRRORED = 0.8
"""Share of mirrored images found again from which an encoder tells images apart."""


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of images.

    Attributes:
        representations, mirrored: float32 [N, D], of the images and of their mirror images.
        thumbnails: float32 [N, 3·8·8], small pixels of the images.
        hashes: bool [N, 128], by which equal pictures are known, see `rcg.recipe.look.difference_hash`.
        labels: int64 [N], or None.
        families: int64 [N], see `rcg.data.image_source.ImageSource.families`.
    """

    representations: np.ndarray
    mirrored: np.ndarray
    thumbnails: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray | None
    families: np.ndarray


def encode(encoder: FeatureExtractor, images: ImageSet, device: torch.device) -> Encoded:
    """Representations of images, computed once for everything that is asked of them.

    Raises:
        UserError: representations that are not finite, or that cannot be standardised: the encoder is collapsed.
    """
    small, hashes = list[torch.Tensor](), list[np.ndarray]()

    def noted() -> Iterator[torch.Tensor]:
        for batch in images.batches(BATCH):
            small.append(F.interpolate(batch.float() / 255, (THUMBNAIL, THUMBNAIL), mode="area"))
            hashes.extend(difference_hash(Image.fromarray(pixels)) for pixels in batch.permute(0, 2, 3, 1).numpy())
            yield batch

    own = extract(encoder, noted(), device=device).features
    mirrored = extract(encoder, (batch.flip(3) for batch in images.batches(BATCH)), device=device).features
    labels = None if images.source.labels is None else images.source.labels[images.indices]
    families = images.source.families()[images.indices]
    return Encoded(own, mirrored, torch.cat(small).flatten(1).numpy(), np.stack(hashes), labels, families)


def check_encoder(encoded: Encoded, *, source: str, seed: int = 0) -> Part:
    """Look at representations.

    Args:
        encoded: what `encode` made.
        source: where the encoder came from.
        seed: of the split that probes are tested on.

    Raises:
        UserError: fewer than 8 images.
    """
    x = encoded.representations
    if len(x) < 8:
        raise UserError(f"the encoder's check needs at least 8 images; there are {len(x)}.")
    part = Part("encoder", source)
    dim, tensor = x.shape[1], torch.from_numpy(x)
    part.figures = {
        "images": len(x),
        "dimensions": dim,
        "effective dimension (participation ratio)": float(effective_rank(tensor)),
        "effective rank (RankMe)": rank_me(x),
        "dead dimensions": dead_dimensions(x),
        "spread": float(spread(tensor)),
    }
    earlier = find_copies(x)
    copies = np.flatnonzero(earlier >= 0)
    differing = (encoded.hashes[copies] != encoded.hashes[earlier[copies]]).sum(axis=1)
    twins = int((differing > NEAR).sum())
    part.figures |= {"copies in representation space": len(copies), "of different pictures": twins}
    part.figures["mirrored images found again"] = found = _found_again(x, encoded.mirrored)
    _judge_space(part, len(x), twins, found)
    if encoded.labels is None:
        part.notes.append(
            "There are no labels, so no probe was made; class folders would give k-NN and a linear probe."
        )
    else:
        _probe(part, encoded, encoded.labels, seed)
    return part


def _judge_space(part: Part, count: int, twins: int, found: float) -> None:
    dim, dead = part.figures["dimensions"], part.figures["dead dimensions"]
    effective = part.figures["effective dimension (participation ratio)"]
    if effective < min(FEW_DIMENSIONS, dim / 2, count / 8):
        part.say("bad", f"the encoder's representations use only {effective:.1f} of their {dim} dimensions", AGAIN)
    else:
        part.say("good", f"the encoder's representations use about {effective:.0f} of their {dim} dimensions")
    if dead > DEAD_SHARE * dim:
        part.say("bad" if dead > dim / 2 else "doubtful", f"{dead} of the encoder's {dim} dimensions are dead", AGAIN)
    if twins > COPY_SHARE * count:
        part.say("bad", f"{twins} of {count} different pictures have the representation of another one", AGAIN)
    if found < MIRRORED:
        part.say(
            "bad" if found < MIRRORED / 2 else "doubtful",
            f"the encoder finds only {found:.0%} of mirrored images again",
            AGAIN,
        )
    else:
        part.say("good", f"the encoder finds {found:.0%} of mirrored images again")


def _found_again(representations: np.ndarray, mirrored: np.ndarray) -> float:
    """Share of mirrored images whose nearest representation by cosine is that of their own original."""
    a, b = (F.normalize(torch.from_numpy(x).double(), dim=1) for x in (mirrored, representations))
    nearest = torch.cat([(rows @ b.T).argmax(dim=1) for rows in a.split(1024)])
    return float((nearest == torch.arange(len(a))).double().mean())


def _probe(part: Part, encoded: Encoded, labels: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = divide(order, encoded.families, int(TEST_SHARE * len(labels)))
    held = len(test)
    if len(labels) < LEAST_LABELLED or len(np.unique(labels[train])) < 2:
        part.notes.append(f"Probes need at least {LEAST_LABELLED} images of 2 classes; raise --num-images.")
        return
    x = encoded.representations
    chance = float(np.bincount(labels[train]).max() / len(train))
    knn = knn_accuracy(x[train], labels[train], x[test], labels[test])
    pixels = encoded.thumbnails - encoded.thumbnails[train].mean(axis=0)
    by_pixels = knn_accuracy(pixels[train], labels[train], pixels[test], labels[test])
    probe = linear_probe(x[train], labels[train], x[test], labels[test], seed=seed)
    share = (knn * held + 2) / (held + 4)  # Agresti and Coull's, which is not sure of 0 and 1
    error = float(np.sqrt(share * (1 - share) / (held + 4)))
    part.figures |= {
        "k-NN accuracy": knn,
        "k-NN accuracy of pixels": by_pixels,
        "linear probe": probe.accuracy,
        "linear probe, learning rate": probe.learning_rate,
        "largest class": chance,
        "probe images (train, test)": [len(train), held],
        "standard error": error,
    }
    told = f"k-NN tells {knn:.0%} of {len(np.unique(labels))} classes right (± {2 * error:.0%}), a linear probe {probe.accuracy:.0%}, pixels {by_pixels:.0%}"
    best = max(knn, probe.accuracy)
    if best <= max(by_pixels, chance) + error:
        part.say("bad", f"{told}: no more than the pixels know", AGAIN)
    elif best <= max(by_pixels, chance) + 4 * error:
        part.say("doubtful", f"{told}: little more than the pixels know", AGAIN)
    else:
        part.say("good", told)
