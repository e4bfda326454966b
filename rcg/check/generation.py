"""What a pipeline draws: whether the RDM's representations look like real ones, and pictures like their representations."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rcg.check.findings import Part
from rcg.core.errors import UserError
from rcg.core.rng import derive_seed, sample_generators
from rcg.eval.metrics import DEFAULT_METRICS
from rcg.eval.vectors import evaluate_representations
from rcg.pipeline import RCGPipeline
from rcg.rdm.draw import draw_many
from rcg.sampling.inputs import resolve_labels

DRAWN = 32
"""Pictures that are drawn."""
NEAR_FLOOR, FAR = 1.5, 3.0
"""Ratios to the floor of the Fréchet distance of representations, from which an RDM is doubtful, and bad."""
METRICS = tuple(m for m in DEFAULT_METRICS if m in ("fid", "prc"))
FLAT = 0.5
"""Contrast, as a share of that of real images, below which pictures are washed out."""


def check_rdm(pipe: RCGPipeline, real: np.ndarray, *, source: str, seed: int = 0) -> Part:
    """Draw representations with the pipeline's own settings, and compare them with real ones.

    Args:
        pipe: with an RDM.
        real: float32 [N, D], the encoder's.
        source: where the pipeline came from.
        seed: of what is drawn.

    Raises:
        UserError: fewer than 4 real ones, or values that are not finite.
    """
    if len(real) < 4:  # halves of them are compared
        raise UserError(f"the RDM's check needs at least 4 images; there are {len(real)}.")
    part, rdm = Part("rdm", source), pipe.representation_generator
    assert rdm is not None
    count, settings = len(real) // 2, pipe.settings()
    classes = int(pipe.rdm.config.num_classes)
    labels = resolve_labels(
        None, count, classes, [derive_seed(seed, i, 1) for i in range(count)], pipe.rdm.config.label_counts
    )
    with torch.inference_mode():
        drawn = draw_many(
            rdm,
            count,
            seed,
            labels,
            num_inference_steps=settings["rdm_num_inference_steps"],
            guidance_scale=settings["rdm_guidance_scale"],
        )
    found = evaluate_representations(
        drawn.float().cpu().numpy(), real, METRICS, seed=seed, sources={"generated": source, "reference": "data"}
    )
    distance, floor = found["metrics"]["rep_fd"], found["floor"]["rep_fd"]
    part.figures = {"representations": count, "Fréchet distance (rep_fd)": distance, "of real ones (the floor)": floor}
    part.figures |= {
        name: found["metrics"][f"{name}-representation"]
        for name in ("precision", "recall")
        if f"{name}-representation" in found["metrics"]
    }
    ratio = distance / floor if floor > 0 else float("inf")
    told = f"drawn representations are {ratio:.1f} times as far from real ones as real ones are"
    if ratio > NEAR_FLOOR:
        part.say("bad" if ratio > FAR else "doubtful", told, "train the RDM for longer, or with more steps in sampling")
    else:
        part.say("good", told)
    return part


def check_generator(
    pipe: RCGPipeline, pixels: torch.Tensor, real: np.ndarray | None, *, source: str, seed: int = 0
) -> Part:
    """Draw a few pictures with the pipeline's own settings.

    With a condition on representations and an encoder, they are made from those of real images, and encoded again: a
    picture should be nearer to the representation that it was made from than to any other.

    Args:
        pipe: the pipeline.
        pixels: uint8 [N, 3, H, W], real images.
        real: float32 [N, D], their representations, if there is an encoder.
        source: where the pipeline came from.
        seed: of what is drawn.
    """
    part = Part("image generator", source)
    by_representation = pipe.generator.condition == "representation"
    count = min(DRAWN, len(pixels))
    arguments: dict[str, Any] = {"generator": sample_generators(seed, 0, count), "output_type": "pt"}
    given = None
    if by_representation and real is not None:
        given = arguments["representations"] = torch.from_numpy(real[:count])
    elif by_representation and pipe.rdm is None:
        part.notes.append("The pipeline has no RDM and no usable encoder, so nothing could be drawn.")
        return part
    begun = time.perf_counter()
    made: Any = pipe(**arguments)
    images: torch.Tensor = made.images.cpu()  # which waits for the device
    part.figures = {"pictures": count, "seconds a picture": (time.perf_counter() - begun) / count}
    contrast = float(images.std(dim=(1, 2, 3)).mean()) / max(
        float((pixels.float() / 255).std(dim=(1, 2, 3)).mean()), 1e-9
    )
    part.figures |= {"contrast to that of real images": contrast}
    if contrast < FLAT:
        part.say(
            "bad",
            f"the generator's pictures have {contrast:.0%} of the contrast of real ones",
            "train the image generator for longer",
        )
    if given is None:
        if contrast >= FLAT:
            part.say("good", f"the generator draws a picture in {part.figures['seconds a picture']:.2g} s")
        part.notes.append("How good its pictures are, rcg-eval tells; a few do not.")
        return part
    again = pipe.encode(images).cpu()
    cosines = F.normalize(again.double(), dim=1) @ F.normalize(given.double(), dim=1).T
    own = cosines.diagonal()
    found = float((cosines.argmax(dim=1) == torch.arange(count)).double().mean())
    others = float((cosines.sum() - own.sum()) / max(count * (count - 1), 1))
    part.figures |= {"found by their representation": found, "cosine to it": float(own.mean()), "to others": others}
    told = f"{found:.0%} of {count} pictures are nearest to the representation that they were made from"
    if found < 0.5:
        chance, todo = 1 / count, "train the image generator for longer, or raise --guidance-scale"
        part.say("bad" if found < max(4 * chance, 0.2) else "doubtful", told, todo)
    else:
        part.say("good", told)
    return part
