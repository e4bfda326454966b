"""What the pipeline is given, checked and made uniform: components, settings, labels, representations, random streams.

A leaf: it looks at configurations only and knows no model class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_type_hints

import numpy as np
import torch

from rcg.core.errors import UserError
from rcg.core.rng import Noise, derive_seed
from rcg.core.schema import NonNegative, Share, Size, problem_of

ClassLabels = int | Sequence[int] | np.ndarray | torch.Tensor
Generators = torch.Generator | list[torch.Generator] | tuple[torch.Generator, ...]


class Sampling(TypedDict):
    """The settings a model samples with when the caller gives none; the `sampling` entry of `model_index.json`."""

    num_inference_steps: Size | None
    guidance_scale: NonNegative
    guidance_schedule: Literal["constant", "linear", "cosine"] | None
    guidance_interval: tuple[Share, Share] | None
    temperature: NonNegative | None
    rdm_num_inference_steps: Size | None
    rdm_guidance_scale: NonNegative


DEFAULT_SAMPLING: Sampling = {  # None is the default of the scheduler or of the generator's family
    "num_inference_steps": None,
    "guidance_scale": 1.0,
    "guidance_schedule": None,
    "guidance_interval": None,
    "temperature": None,
    "rdm_num_inference_steps": None,
    "rdm_guidance_scale": 1.0,
}


def resolve_sampling(stored: Mapping[str, Any], **given: Any) -> Sampling:
    """Settings in force: what is given, else what the model stores, else `DEFAULT_SAMPLING`.

    Raises:
        UserError: a name or a value that cannot be.
    """
    given = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items() if v is not None}
    chosen: dict[str, Any] = {**DEFAULT_SAMPLING, **stored, **given}
    if found := problem_of(chosen, get_type_hints(Sampling, include_extras=True), set(DEFAULT_SAMPLING)):
        raise UserError(f"the sampling settings cannot be used: {found}.")
    if chosen["guidance_interval"] is not None:
        chosen["guidance_interval"] = list(chosen["guidance_interval"])  # as JSON holds it
    return Sampling(**chosen)  # type: ignore[typeddict-item]


def check_components(components: Mapping[str, Any], condition: str, representation_dim: int | None) -> None:
    """Refuse an RDM or an encoder that does not belong to the image generator.

    Args:
        components: rdm, rdm_scheduler, encoder; each may be None.
        condition, representation_dim: what the image generator takes.

    Raises:
        UserError: naming the first two that do not fit.
    """
    rdm, rdm_scheduler, encoder = (components[name] for name in ("rdm", "rdm_scheduler", "encoder"))
    if (rdm is None) != (rdm_scheduler is None):
        present, missing = ("an rdm_scheduler", "rdm") if rdm is None else ("an rdm", "rdm_scheduler")
        raise UserError(f"the pipeline has {present} but no {missing}; give both or neither.")
    if condition != "representation":
        if rdm is not None:
            raise UserError(
                f"the image generator has condition {condition!r} and takes no representations; leave the RDM out."
            )
        return
    dims = {
        "RDM": None if rdm is None else rdm.config.representation_dim,
        "encoder": None if encoder is None else encoder.representation_dim,
    }
    for name, dim in dims.items():
        if dim is not None and dim != representation_dim:
            raise UserError(
                f"the image generator takes representations of {representation_dim} numbers, but the {name} makes "
                f"{dim}; use the {name} that it was trained with."
            )


def check_guidance(settings: Sampling, condition: str, guidable: bool, rdm: Any) -> None:
    """Refuse guidance (a scale other than 1.0) of a model that cannot be guided."""
    if settings["guidance_scale"] != 1.0 and not guidable:
        why = "has no condition" if condition == "none" else "was trained without condition dropout"
        raise UserError(
            f"guidance_scale {settings['guidance_scale']} cannot be used: this image generator {why}; leave it at 1.0."
        )
    if settings["rdm_guidance_scale"] != 1.0 and (rdm is None or rdm.null_class is None):
        why = "there is no RDM" if rdm is None else "this RDM has no null class"
        raise UserError(f"rdm_guidance_scale {settings['rdm_guidance_scale']} cannot be used: {why}; leave it at 1.0.")


def check_guided(settings: Sampling, given: Mapping[str, Any]) -> None:
    """Refuse a schedule or an interval of guidance that is off."""
    useless = [name for name, value in given.items() if value is not None]
    if useless and settings["guidance_scale"] == 1.0:
        raise UserError(
            f"{useless[0]} has no effect, as guidance is off (guidance_scale is 1.0); give another scale, too, or leave it out."
        )


def check_rdm_steps(steps: int | None, rdm: Any) -> None:
    """Refuse steps that are asked of an RDM that is not there."""
    if steps is not None and rdm is None:
        raise UserError(f"rdm_num_inference_steps {steps} cannot be used: there is no RDM; leave it out.")


def check_label_counts(counts: Sequence[int] | None, num_classes: int) -> None:
    """Refuse counts [num_classes] that classes cannot be drawn by; None is none."""
    if counts is not None and num_classes and (len(counts) != num_classes or not sum(counts)):
        raise UserError(
            f"label_counts has {len(counts)} numbers, their sum {sum(counts)}, but the model knows {num_classes} classes; "
            "give one for each, or null for all alike."
        )


def resolve_batch_size(batch_size: int | None, **given: Any) -> int:
    """The number of images: as asked, else as many as there are labels, representations or generators, else 1."""
    if batch_size is not None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}, but it must be a whole number of at least 1.")
        return int(batch_size)
    lengths = [len(v) for v in given.values() if hasattr(v, "__len__") and getattr(v, "ndim", None) != 0]
    if lengths and max(lengths) < 1:
        raise UserError("there is nothing to generate from: what was given is empty.")
    return max(lengths, default=1)


def resolve_labels(
    class_labels: ClassLabels | None,
    batch_size: int,
    num_classes: int,
    seeds: Sequence[int],
    counts: Sequence[int] | None = None,
) -> torch.Tensor | None:
    """Class labels int64 [B] on the CPU, or None for a model without classes.

    Args:
        class_labels: one for all, one for each, or None: each image's class is then drawn from its seed.
        batch_size: B.
        num_classes: classes the model knows, 0 if it takes none.
        seeds: one for each image.
        counts: [num_classes], how often each class is drawn, relative to the others; None: all alike.

    Raises:
        UserError: labels for a model without classes, out of range, not whole, or of another number.
    """
    if not num_classes:
        if class_labels is not None:
            raise UserError(
                "class_labels have no effect on this model or call, which takes no classes; leave them out."
            )
        return None
    if class_labels is None:
        ends = np.arange(1, num_classes + 1) if counts is None else np.cumsum(counts)
        drawn = [derive_seed(seed, 2) % int(ends[-1]) for seed in seeds]
        return torch.from_numpy(np.searchsorted(ends, drawn, side="right"))
    try:
        labels = torch.as_tensor(class_labels).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"class labels must be whole numbers, one for each image, not {class_labels!r:.60}.") from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"class labels must be whole numbers, not {labels.dtype}.")
    if labels.ndim == 0 or labels.shape == (1,):
        labels = labels.reshape(1).expand(batch_size)
    if labels.shape != (batch_size,):
        raise UserError(f"{list(labels.shape)} class labels were given for {batch_size} images; give one for each.")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise UserError(f"class label {int(outside[0])} is out of range: this model knows 0 to {num_classes - 1}.")
    return labels.long()


def resolve_representations(representations: torch.Tensor, batch_size: int, dim: int) -> torch.Tensor:
    """Given representations as float32 [B, D]; a single one serves for all images.

    Raises:
        UserError: another shape or dimension, or values that are not finite.
    """
    if not torch.is_tensor(representations) or representations.ndim != 2 or representations.shape[1] != dim:
        shape = list(representations.shape) if torch.is_tensor(representations) else type(representations).__name__
        raise UserError(f"representations are {shape}, but this model takes a tensor [batch, {dim}].")
    if len(representations) not in (1, batch_size):
        raise UserError(
            f"{len(representations)} representations were given for {batch_size} images; give one for each."
        )
    if not torch.isfinite(representations).all():
        raise UserError("the representations hold NaN or infinite values; compute them anew.")
    return representations.float().expand(batch_size, dim)


@dataclass
class Streams:
    """Independent random numbers of each image: one `Noise` for its representation, one for its codes.

    They are apart so that an image depends on its seed and its representation only, not on how many numbers the
    representation's sampler drew: the same generator with the same representations gives the same images.
    """

    seeds: list[int]
    rdm: Noise
    image: Noise

    @classmethod
    def of(cls, generator: Generators | None, batch_size: int, device: torch.device | str = "cpu") -> Streams:
        """Derive the streams of B images.

        Args:
            generator: a list or tuple (one an image; each is advanced by one draw), one for the whole batch (advanced by one
                draw an image; its first images are the same for every batch size), or None for torch's global one.
            batch_size: B.
            device: where the random numbers are made.

        Raises:
            UserError: a list of another length, or what is no generator.
        """
        given = generator if isinstance(generator, list | tuple) else [] if generator is None else [generator]
        if wrong := {type(g).__name__ for g in given if not isinstance(g, torch.Generator)}:
            raise UserError(
                f"a generator is {', '.join(sorted(wrong))}, but it must be a torch.Generator, such as "
                "torch.Generator().manual_seed(0), or a list of one for each image."
            )
        if isinstance(generator, list | tuple):
            if len(generator) != batch_size:
                raise UserError(f"{len(generator)} generators were given for {batch_size} images; give one for each.")
            seeds = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generator]
        else:
            where = generator.device if generator is not None else None
            seeds = [int(torch.randint(2**62, (), generator=generator, device=where)) for _ in range(batch_size)]
        return cls(seeds, *(Noise([derive_seed(seed, stream) for seed in seeds], device) for stream in (0, 1)))


def blend(a: torch.Tensor, b: torch.Tensor, num: int, mode: str) -> torch.Tensor:
    """`num` vectors from `a` to `b`, both included.

    Args:
        a, b: float [D].
        num: at least 2.
        mode: `linear`, or `slerp`: along the great circle, lengths blended linearly.

    Returns:
        float32 [num, D].

    Raises:
        UserError: an unknown mode, fewer than two steps, or opposite vectors, which no single great circle joins.
    """
    if mode not in ("slerp", "linear"):
        raise UserError(f"mode is {mode!r}, but it must be 'slerp' or 'linear'.")
    if isinstance(num, bool) or not isinstance(num, int | np.integer) or num < 2:
        raise UserError(f"num is {num!r}, but an interpolation has a whole number of images, at least 2.")
    a, b = a.double(), b.double()
    weight = torch.linspace(0, 1, num, dtype=torch.float64, device=a.device)[:, None]
    if mode == "linear":
        return ((1 - weight) * a + weight * b).float()
    length_a, length_b = a.norm(), b.norm()
    if length_a == 0 or length_b == 0:
        raise UserError("a zero vector has no direction to slerp from; use mode='linear'.")
    unit_a, unit_b = a / length_a, b / length_b
    angle = 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())
    if angle < 1e-7:
        direction = unit_a.expand(num, -1)
    elif math.pi - angle < 1e-7:
        raise UserError(
            "the two representations are opposite, so that slerp has no way between them; use mode='linear'."
        )
    else:
        direction = (torch.sin((1 - weight) * angle) * unit_a + torch.sin(weight * angle) * unit_b) / torch.sin(angle)
    return (direction * ((1 - weight) * length_a + weight * length_b)).float()
