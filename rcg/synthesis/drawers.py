"""What makes the images: any text-to-image pipeline of diffusers, or an RCG pipeline."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from PIL import Image
from torch import nn

from rcg.core.errors import UserError, first_line
from rcg.core.pictures import to_pil
from rcg.core.precision import Precision
from rcg.core.rng import Noise, derive_seed
from rcg.core.shipped import local_folder
from rcg.pipeline import RCGPipeline
from rcg.rdm.protocol import Request
from rcg.sampling.inputs import Sampling, resolve_labels
from rcg.synthesis.plan import Picture
from rcg.synthesis.prompts import Prompt

DENOISERS, TOLD = ("unet", "transformer"), ("time_cond_proj_dim", "guidance_embeds")
"""Parts that may be told the guidance scale, and what of their configurations says so; others are not guided below 1."""
ASKED = ("init_noise_sigma", "scale_model_input", "order")
"""What pipelines may ask of their scheduler beside its steps."""


class Drawer(Protocol):
    """Makes images of one guidance scale at a time; each follows from its prompt, seed and scale alone."""

    at_once: int
    """Images in one call."""
    least: float
    """Lowest guidance scale that it heeds."""

    def identity(self) -> dict[str, Any]:
        """All that the images depend on beside prompts, seeds and scales (JSON values)."""
        ...

    def draw(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[Image.Image | None]:
        """The images, all of one scale, and a prompt for each; None for one that the pipeline's safety checker refuses."""
        ...


def kind_of(model: str) -> str:
    """Class name of the pipeline in a folder, or of a name in the box.

    Raises:
        UserError: it is no folder of a pipeline.
    """
    place = local_folder(model) or Path(model)
    try:
        return str(json.loads((place / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{model} is no folder of a pipeline (with a model_index.json); fetch one (hf download REPO --local-dir DIR) "
            "and give that."
        ) from None


class TextToImage:
    """A diffusers pipeline.

    On a CPU images are made one by one, since kernels round differently at other batch sizes; on a GPU `batch_size` at a
    time, which may change last bits. Guided and unguided passes always go through the network together.

    Args:
        model: its folder.
        device: where to compute.
        bf16: weights and arithmetic in bf16; otherwise float32.
        batch_size: images in a call, on a GPU.
        steps: denoising steps; None is the pipeline's default.
        scheduler: name of another of diffusers' schedulers, such as `DPMSolverMultistepScheduler` or `LCMScheduler`.
        resolution: side of the images made, in pixels; None is the pipeline's default.
        negative_prompt: what guidance leads away from; None is the empty caption.

    Raises:
        UserError: the folder holds no text-to-image pipeline that can be loaded, or there is no such scheduler, or it does not fit.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        *,
        bf16: bool = False,
        batch_size: int = 8,
        steps: int | None = None,
        scheduler: str | None = None,
        resolution: int | None = None,
        negative_prompt: str | None = None,
    ) -> None:
        kind = kind_of(model)
        folder = local_folder(model) or Path(model)
        index = json.loads((folder / "model_index.json").read_text())
        needs = {value[0] for value in index.values() if isinstance(value, list) and value}
        if "transformers" in needs and importlib.util.find_spec("transformers") is None:
            raise UserError(f"{kind} needs the package transformers, which is missing; run: pip install transformers.")
        another = None if scheduler is None else _scheduler(scheduler)
        try:
            dtype = torch.bfloat16 if bf16 else torch.float32
            self.pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
        except (ImportError, OSError, ValueError, AttributeError, RuntimeError) as e:
            reason = first_line(e, 200)
            raise UserError(f"the pipeline in {model} cannot be loaded ({reason}); fetch it again.") from None
        self.accepts = set(inspect.signature(self.pipe.__call__).parameters)
        if not {"prompt", "generator", "num_inference_steps"} <= self.accepts:
            raise UserError(f"{kind} makes no images from a text alone; give a text-to-image pipeline.")
        if another is not None:
            self.pipe.scheduler = _fitted(another, self.pipe.scheduler, steps)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.to(device)
        configs = [
            dict(getattr(part, "config", None) or {}) for part in (getattr(self.pipe, n, None) for n in DENOISERS)
        ]
        told = any(config.get(name) for config in configs for name in TOLD)
        self.least = 0.0 if told else 1.0
        self.at_once = 1 if device.type == "cpu" else batch_size
        self.settings: dict[str, Any] = {
            name: value
            for name, value in {
                "num_inference_steps": steps,
                "height": resolution,
                "width": resolution,
                "negative_prompt": negative_prompt,
            }.items()
            if value is not None
        }
        if unknown := sorted(self.settings.keys() - self.accepts):
            raise UserError(f"{kind} takes no {unknown[0].replace('_', ' ')}; leave that flag out.")
        self.bf16 = bf16

    def identity(self) -> dict[str, Any]:
        """Weights, scheduler, settings and arithmetic."""
        parts = {k: _weights_hash(v) for k, v in sorted(self.pipe.components.items()) if isinstance(v, nn.Module)}
        kept = {k: v for k, v in dict(self.pipe.scheduler.config).items() if not k.startswith("_")}
        return {
            "pipeline": type(self.pipe).__name__,
            "weights": parts,
            "scheduler": {"class": type(self.pipe.scheduler).__name__, **json.loads(json.dumps(kept, default=str))},
            "bf16": self.bf16,
            **self.settings,
        }

    def draw(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[Image.Image | None]:
        """See `Drawer.draw`.

        Raises:
            UserError: the pipeline refuses its settings, or is not guided.
        """
        scale = pictures[0].scale
        settings = dict(self.settings)
        if "negative_prompt" in settings:
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(pictures)
        if scale is not None:
            if "guidance_scale" not in self.accepts:
                raise UserError(f"{type(self.pipe).__name__} takes no guidance scale; add --guidance-scales own.")
            settings["guidance_scale"] = scale
        try:
            out = self.pipe(
                prompt=[prompt.text for prompt in prompts],
                generator=[torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
                output_type="pil",
                **settings,
            )
        except ValueError as e:
            raise UserError(f"{type(self.pipe).__name__} refuses its settings: {first_line(e)}") from None
        flagged = getattr(out, "nsfw_content_detected", None) or [False] * len(pictures)
        return [None if bad else image.convert("RGB") for image, bad in zip(out.images, flagged, strict=True)]


def _weights_hash(module: nn.Module) -> str:
    """A short SHA-256 over class and weights; configurations of transformers are not as those of diffusers."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _scheduler(name: str) -> Any:
    found = getattr(diffusers, name, None)
    try:
        usable = isinstance(found, type) and hasattr(found, "from_config") and hasattr(found, "set_timesteps")
    except ImportError as e:
        raise UserError(f"{first_line(e)}.") from None
    if not usable:
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "DDIMScheduler, LCMScheduler"
        raise UserError(f"diffusers has no scheduler {name!r}; near names: {near}.")
    return found


def _fitted(kind: Any, own: Any, steps: int | None) -> Any:
    """A scheduler of another kind in the place of a pipeline's own, after a step of one like it.

    Raises:
        UserError: it cannot do what the pipeline asks of its own.
    """
    x = torch.zeros(1, 4, 8, 8)
    try:
        trial = kind.from_config(own.config)
        if missing := [name for name in ASKED if hasattr(own, name) and not hasattr(trial, name)]:
            raise TypeError(f"it has no {missing[0]}")
        trial.set_timesteps(steps or 50, **({"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}))
        trial.step(x, trial.timesteps[0], x, return_dict=False)
        return kind.from_config(own.config)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        known = ", ".join([*(other.__name__ for other in own.compatibles), type(own).__name__][:3])
        raise UserError(
            f"{kind.__name__} does not fit this pipeline and its steps ({first_line(e, 200)}); take another, such as {known}."
        ) from None


class RCGImages:
    """An RCG pipeline: representations from its RDM, and several images of each.

    The class of each that a class-conditional RDM draws follows from its name: by the counts of the RDM, or all alike.

    Args:
        pipe: an `RCGPipeline` with an RDM.
        settings: arguments of its call, resolved (`pipe.settings`).
        seed: of the representations.
        batch_size: images in a call; it does not change them on a CPU.
        precision: arithmetic.

    Raises:
        UserError: the pipeline has no RDM.
    """

    def __init__(
        self, pipe: RCGPipeline, settings: Sampling, seed: int, batch_size: int, precision: Precision = "fp32"
    ) -> None:
        if pipe.representation_generator is None:
            raise UserError("the pipeline has no RDM, so that there are no representations; give one that has.")
        self.pipe, self.settings, self.seed, self.at_once, self.precision = pipe, settings, seed, batch_size, precision
        self.least = 0.0
        self._drawn: dict[str, torch.Tensor] = {}
        self._counts: list[int] | None = pipe.rdm.config.label_counts if pipe.num_classes else None

    def identity(self) -> dict[str, Any]:
        """The pipeline and how it samples."""
        known = {} if self._counts is None else {"label_counts": self._counts}
        return {"pipeline": self.pipe.identity(), "precision": self.precision, **known, **self.settings}

    def _representations(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """float32 [B, D]: the same for every image of a prompt."""
        new = list({p.name: p for p in prompts if p.name not in self._drawn}.values())
        if new:
            self._drawn = {p.name: self._drawn[p.name] for p in prompts if p.name in self._drawn}
            generator = self.pipe.representation_generator
            assert generator is not None
            device, classes = generator.model.device, self.pipe.num_classes
            seeds = [derive_seed(self.seed, p.number) for p in new]
            alike = [p.number % classes for p in new] if classes and self._counts is None else None
            labels = resolve_labels(alike, len(new), classes, seeds, self._counts)
            request = Request(
                noise=Noise(seeds, device),
                class_labels=None if labels is None else labels.to(device),
                num_inference_steps=self.settings["rdm_num_inference_steps"],
                guidance_scale=self.settings["rdm_guidance_scale"],
                precision=self.precision,
            )
            self._drawn |= dict(zip([p.name for p in new], generator.draw(request), strict=True))
        return torch.stack([self._drawn[p.name] for p in prompts])

    def draw(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[Image.Image | None]:
        """See `Drawer.draw`."""
        settings: dict[str, Any] = dict(self.settings)
        if pictures[0].scale is not None:
            settings["guidance_scale"] = pictures[0].scale
        out = self.pipe(
            representations=self._representations(prompts),
            generator=[torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
            output_type="pt",
            precision=self.precision,
            **settings,
        )
        assert not isinstance(out, tuple)
        return [*to_pil(torch.as_tensor(out.images))]
