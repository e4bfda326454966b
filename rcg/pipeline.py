"""RCGPipeline: noise → representation → tokens → image, and the same from given images (RCG, arXiv 2312.03701).

Every component module is imported here eagerly, because a saved pipeline names them by module path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image

from rcg.core.blocks import in_blocks, rows_of_images
from rcg.core.card import ModelKind, describe
from rcg.core.component import settle_weights
from rcg.core.components import load_any, load_model, load_scheduler
from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.core.pictures import from_pil, to_pil
from rcg.core.precision import Precision, whole_fp32
from rcg.core.rng import Noise, derive_seed
from rcg.encoders.ssl_encoder import SSLEncoder, standardize_parts
from rcg.hub import FolderPipeline
from rcg.image_gen.conditions import Guidance, GuidanceSchedule, Interval
from rcg.image_gen.families import MODELS, SCHEDULERS, TOKENIZERS, family_of, open_generator
from rcg.image_gen.protocol import ImageGenerator, Request
from rcg.rdm import protocol as rdm_protocol
from rcg.rdm.methods import MODELS as RDM_MODELS
from rcg.rdm.methods import SCHEDULERS as RDM_SCHEDULERS
from rcg.rdm.methods import method_of, open_rdm
from rcg.sampling.inputs import (
    ClassLabels,
    Generators,
    Sampling,
    Streams,
    blend,
    check_components,
    check_guidance,
    check_guided,
    check_label_counts,
    check_rdm_steps,
    resolve_batch_size,
    resolve_labels,
    resolve_representations,
    resolve_sampling,
)

OutputType = Literal["pil", "np", "pt"]
Pictures = torch.Tensor | Image.Image | Sequence[Image.Image]
StepCallback = Callable[[Any, int, int, dict[str, Any]], None]


@dataclass
class RCGPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: B PIL images, or float32 [B, H, W, 3] (numpy) or [B, 3, H, W] (torch) in [0, 1].
        representations: float32 [B, D] that the images were made from; None if the generator takes none.
        codes: what was decoded, as the generator's family has it: token ids int64 [B, h, w], or latents, or pixels.
        class_labels: int64 [B] that were used; None for a model without classes.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    representations: torch.Tensor | None
    codes: torch.Tensor
    class_labels: torch.Tensor | None = None


class RCGPipeline(FolderPipeline):
    """Unconditional image generation through self-supervised representations.

    Args:
        image_generator: representation (or class, or nothing) → tokens or pixels.
        image_scheduler: how tokens are revealed, or noise is taken away.
        tokenizer: tokens ↔ images; for generators that make tokens.
        rdm: noise → representation, by any method. Without it, representations must be given (or come from images).
        rdm_scheduler: of the RDM; needed with it.
        encoder: images → representation; needed by `encode`, `reconstruct` and `interpolate` between images.
        guiding_model: a weaker image generator (smaller, or trained for less long) of the same kind; guidance is then away
            from it (autoguidance, arXiv 2406.02507) instead of from the null condition.
        sampling: the model's own settings (see `rcg.sampling.inputs.Sampling`), used for every argument left None; for those
            that are None, too, the image scheduler's or the family's.

    Raises:
        UserError: components that do not belong together.
    """

    _optional_components = ["encoder", "rdm", "rdm_scheduler", "tokenizer", "guiding_model"]
    model_classes: ClassVar[dict[str, tuple[type[torch.nn.Module], ...]]] = {
        "encoder": (SSLEncoder,),
        "rdm": RDM_MODELS,
        "image_generator": MODELS,
        "tokenizer": TOKENIZERS,
        "guiding_model": MODELS,
    }
    scheduler_classes = SCHEDULERS + RDM_SCHEDULERS

    def __init__(
        self,
        image_generator: torch.nn.Module,
        image_scheduler: SchedulerMixin,
        tokenizer: torch.nn.Module | None = None,
        rdm: torch.nn.Module | None = None,
        rdm_scheduler: SchedulerMixin | None = None,
        encoder: SSLEncoder | None = None,
        guiding_model: torch.nn.Module | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.rdm: Any
        self.encoder: SSLEncoder | None
        self.register_modules(
            image_generator=image_generator,
            image_scheduler=image_scheduler,
            tokenizer=tokenizer,
            rdm=rdm,
            rdm_scheduler=rdm_scheduler,
            encoder=encoder,
            guiding_model=guiding_model,
        )
        generator = self.generator
        generator.check()
        check_components(self.components, generator.condition, generator.representation_dim)
        if (representation_generator := self.representation_generator) is not None:
            representation_generator.check()
        check_label_counts(self._label_counts(), self.num_classes)
        self.register_to_config(sampling=dict(resolve_sampling(sampling or {})))
        self.settings()
        for name in self.model_classes:
            if (model := getattr(self, name)) is not None:
                settle_weights(model.eval())

    @classmethod
    def from_stages(
        cls,
        generator: str | Path,
        tokenizer: str | Path | None = None,
        rdm: str | Path | None = None,
        encoder: str | Path | None = None,
        guiding_model: str | Path | torch.nn.Module | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> RCGPipeline:
        """Put finished stages together.

        Args:
            generator: folder of the image generator and its scheduler.
            tokenizer: folder of the tokenizer that it was trained with, if there is one.
            rdm: folder of the RDM and its scheduler; without one, representations must be given.
            encoder: folder of the encoder.
            guiding_model: a weaker image generator, for autoguidance, or its folder.
            sampling: see the class.

        Instead of a stage's folder, that of a pipeline or its name in the box (`rcg/cifar10`) gives the pipeline's own.

        Raises:
            UserError: a folder that holds something else, or components that do not belong together.
        """
        check_rdm_steps((sampling or {}).get("rdm_num_inference_steps"), rdm)
        return cls(
            image_generator=load_any(MODELS, generator),
            image_scheduler=load_scheduler(generator, *SCHEDULERS, part="image_scheduler"),
            tokenizer=None if tokenizer is None else load_any(TOKENIZERS, tokenizer),
            rdm=None if rdm is None else load_any(RDM_MODELS, rdm),
            rdm_scheduler=None if rdm is None else load_scheduler(rdm, *RDM_SCHEDULERS, part="rdm_scheduler"),
            encoder=None if encoder is None else load_model(SSLEncoder, encoder),
            guiding_model=load_any(MODELS, guiding_model) if isinstance(guiding_model, str | Path) else guiding_model,
            sampling=sampling,
        )

    @property
    def generator(self) -> ImageGenerator:
        """The image generator with its scheduler and tokenizer, behind the one protocol of all families."""
        return open_generator(self.image_generator, self.image_scheduler, self.tokenizer, self.guiding_model)

    @property
    def representation_generator(self) -> rdm_protocol.RepresentationGenerator | None:
        """The RDM with its scheduler, behind the one protocol of all methods; None without an RDM."""
        if self.rdm is None or self.rdm_scheduler is None:
            return None
        return open_rdm(self.rdm, self.rdm_scheduler)

    @property
    def representation_dim(self) -> int:
        """D; `UserError` for a generator that takes no representations."""
        dim = self.generator.representation_dim
        if dim is None:
            raise UserError(
                f"this image generator has condition {self.generator.condition!r} and takes no representations; use a "
                "generator trained with condition 'representation'."
            )
        return int(dim)

    @property
    def num_classes(self) -> int:
        """Classes that a call takes as `class_labels`, 0 if none."""
        return self.generator.num_classes or (int(self.rdm.config.num_classes) if self.rdm is not None else 0)

    @property
    def kind(self) -> ModelKind:
        """What the pipeline is, for its card."""
        drawing = None if self.rdm is None else method_of(self.rdm).about
        about = family_of(self.image_generator).about
        return describe(self.generator.condition, about, drawing, self.num_classes, self._label_counts() is not None)

    def _label_counts(self) -> list[int] | None:
        if self.generator.num_classes or self.rdm is None:
            return self.generator.label_counts
        counts: list[int] | None = self.rdm.config.label_counts
        return counts

    def _check_settings(self, settings: Sampling) -> None:
        generator = self.generator
        generator.check_settings(settings)
        guidance_of(settings)
        check_guidance(settings, generator.condition, generator.guidable, self.rdm)

    def settings(
        self,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        rdm_num_inference_steps: int | None = None,
        rdm_guidance_scale: float | None = None,
        guidance_schedule: GuidanceSchedule | None = None,
        guidance_interval: Interval | None = None,
        exact: bool = False,
    ) -> Sampling:
        """The settings of a call: those given, the model's own (`config.sampling`) where None, else its generator's defaults.

        With `exact`, `num_inference_steps` left None is that of the published sampler, where it has its own.

        Raises:
            UserError: a setting that this model cannot use, or how guidance acts where none is asked for.
        """
        if exact and num_inference_steps is None:
            num_inference_steps = self.generator.exact_steps
        own = {name: value for name, value in self.config.sampling.items() if value is not None}
        if rdm_num_inference_steps != own.get("rdm_num_inference_steps"):  # a model may store a number in vain
            check_rdm_steps(rdm_num_inference_steps, self.rdm)
        settings = resolve_sampling(
            self.generator.defaults() | own,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            temperature=temperature,
            rdm_num_inference_steps=rdm_num_inference_steps,
            rdm_guidance_scale=rdm_guidance_scale,
        )
        self._check_settings(settings)
        if guidance_scale is None:  # who gives 1.0 may be trying several
            check_guided(settings, {"guidance_schedule": guidance_schedule, "guidance_interval": guidance_interval})
        return settings

    def identity(self) -> str:
        """A short hash of everything that a sample depends on besides its settings: weights, configs, schedulers."""
        parts: dict[str, Any] = {
            name: model_hash(model)
            for name in ("rdm", "image_generator", "tokenizer", "guiding_model")
            if (model := getattr(self, name)) is not None
        }
        for name in ("rdm_scheduler", "image_scheduler"):
            if (scheduler := getattr(self, name)) is not None:
                config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
                parts[name] = [type(scheduler).__name__, config]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        rdm_num_inference_steps: int | None = None,
        rdm_guidance_scale: float | None = None,
        class_labels: ClassLabels | None = None,
        representations: torch.Tensor | None = None,
        temperature: float | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
        exact: bool = False,
        precision: Precision = "auto",
        guidance_schedule: GuidanceSchedule | None = None,
        guidance_interval: Interval | None = None,
    ) -> RCGPipelineOutput | tuple[Any, ...]:
        """Draw images.

        Args:
            batch_size: B; by default the number of representations, labels or generators given, else 1.
            num_inference_steps: of the image generator: steps that reveal the tokens, or of its solver.
            guidance_scale: of the image generator; 1.0 is off. Works with given representations too.
            guidance_schedule, guidance_interval: how guidance grows, and when it acts, see
                `rcg.image_gen.conditions.Guidance`.
            rdm_num_inference_steps: evaluations of the RDM.
            rdm_guidance_scale: of an RDM that knows classes or clusters; 1.0 is off.
            class_labels: for models that know classes or clusters: one, or one an image; None draws each image's, uniformly,
                or as often as the model's config has counted it (clusters).
            representations: float [B, D] or [1, D]; the RDM is skipped.
            temperature: of the Gumbel noise that decides which tokens are kept (MAGE only).
            generator: `torch.Generator`, or a list of one an image, or None for torch's global one. With a list,
                image i depends on generator i alone, whatever the batch (bit for bit on a CPU; on a GPU up to the
                rounding of its kernels); from a single one, a seed is drawn for each image, so the first images of a
                small batch are those of a large one.
            output_type: "pil", "np" (float32 [B, H, W, 3]) or "pt" (float32 [B, 3, H, W]), in [0, 1].
            exact: compute as the reference program does: every token at every step, or 250 steps (or `num_inference_steps`)
                of ancestral sampling (LDM: 200 of DDIM at eta 1; pixel-dit and edm: fp32 alone); the paper's RDM with 250 steps (or `rdm_num_inference_steps`) of DDIM at eta 1; fp32,
                on a GPU without TF32.
                By default the quick way: see `rcg.image_gen.mage.reuse`, and the pipeline's own schedulers.
            precision: "auto" (bf16 where the hardware multiplies it faster, else fp32), "bf16" or "fp32"; fp32 with
                `exact`.
            callback_on_step_end: called as `callback(pipe, step, num_inference_steps, {"codes": codes})` after each
                step of the image generator: num_inference_steps times, also where a scheduler evaluates the model more often
                (not with the step's time, as in diffusers, and what it returns plays no part).
            return_dict: False returns the tuple (images, representations, codes).

        Every number left None is the model's own (`pipe.settings()`).

        Raises:
            UserError: an argument that this model cannot use.
        """
        check_output_type(output_type)
        settings = self.settings(
            num_inference_steps,
            guidance_scale,
            temperature,
            rdm_num_inference_steps,
            rdm_guidance_scale,
            guidance_schedule,
            guidance_interval,
            exact,
        )
        batch_size = resolve_batch_size(
            batch_size, representations=representations, class_labels=class_labels, generator=generator
        )
        if representations is not None:
            representations = resolve_representations(representations, batch_size, self.representation_dim)
        streams = Streams.of(generator, batch_size, self._execution_device)
        classes = 0 if representations is not None else self.num_classes
        labels = resolve_labels(class_labels, batch_size, classes, streams.seeds, self._label_counts())
        if representations is None and self.generator.condition == "representation":
            representations = self._draw_representations(
                settings, rdm_num_inference_steps, labels, streams.rdm, exact, precision
            )
        return self._generate(
            settings,
            representations,
            labels,
            streams.image,
            output_type,
            callback_on_step_end,
            return_dict,
            exact=exact,
            precision=precision,
        )

    def _draw_representations(
        self,
        settings: Sampling,
        asked_steps: int | None,
        labels: torch.Tensor | None,
        noise: Noise,
        exact: bool,
        precision: Precision,
    ) -> torch.Tensor:
        generator = self.representation_generator
        if generator is None:
            raise UserError("this pipeline has no RDM; give representations, or load a model that has one.")
        steps = settings["rdm_num_inference_steps"]
        if exact and generator.exact_steps is not None:
            steps = asked_steps or generator.exact_steps
        request = rdm_protocol.Request(
            noise=noise,
            class_labels=labels,
            num_inference_steps=steps,
            guidance_scale=settings["rdm_guidance_scale"],
            precision=precision,
            exact=exact,
        )
        with whole_fp32() if exact else contextlib.nullcontext():
            return generator.draw(request)

    def _generate(
        self,
        settings: Sampling,
        representations: torch.Tensor | None,
        labels: torch.Tensor | None,
        noise: Noise,
        output_type: OutputType,
        callback_on_step_end: StepCallback | None,
        return_dict: bool,
        *,
        exact: bool,
        precision: Precision,
    ) -> RCGPipelineOutput | tuple[Any, ...]:
        generator, steps = self.generator, settings["num_inference_steps"]
        assert steps is not None  # its generator has a default
        if exact:
            precision = "fp32"
        with self.progress_bar(total=steps) as bar:

            def on_step(step: int, codes: torch.Tensor) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step, steps, {"codes": codes})

            request = Request(
                noise=noise,
                representations=representations,
                class_labels=labels if generator.num_classes else None,
                num_inference_steps=steps,
                temperature=settings["temperature"],
                guidance=guidance_of(settings),
                exact=exact,
                precision=precision,
                callback=on_step,
                watched=callback_on_step_end is not None,
            )
            with whole_fp32() if exact else contextlib.nullcontext():
                codes = generator.generate(request)
                images = generator.decode(codes, precision)
        result = _as_type(images, output_type)
        if not return_dict:
            return (result, representations, codes)
        return RCGPipelineOutput(result, representations, codes, labels)

    # ------------------------------------------------------------------ from images

    @torch.no_grad()
    def encode(self, images: Pictures) -> torch.Tensor:
        """Representations of images.

        Args:
            images: float [B, 3, H, W] in [0, 1], or one or more PIL images (their sizes may differ).

        Returns:
            float32 [B, D] on the encoder's device.

        Raises:
            UserError: no encoder in this pipeline, or images of another shape or range.
        """
        if self.encoder is None:
            raise UserError("this pipeline has no encoder; assemble it with one (rcg-assemble --encoder).")
        if not torch.is_tensor(images):
            pictures = list(images) if isinstance(images, Iterable) else [images]
            if wrong := [picture for picture in pictures if not isinstance(picture, Image.Image)]:
                raise UserError(f"images must be floats [B, 3, H, W] or PIL images, not {type(wrong[0]).__name__}.")
            if len({picture.size for picture in pictures}) > 1:
                return torch.cat([self.encode(picture) for picture in pictures])
            images = from_pil(pictures)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not images.numel():
            raise UserError(f"images must be floats [B, 3, H, W], not {images.dtype} {list(images.shape)}.")
        if not (float(images.min()) >= 0 and float(images.max()) <= 1):  # NaN compares false
            raise UserError("images must lie in [0, 1]; divide 8-bit ones by 255, or undo their normalisation.")
        rows = rows_of_images(self.encoder.config.image_size**2)
        return in_blocks(self.encoder, rows, images.to(self._execution_device)).float()

    def reconstruct(
        self,
        images: Pictures,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        exact: bool = False,
        precision: Precision = "auto",
        guidance_schedule: GuidanceSchedule | None = None,
        guidance_interval: Interval | None = None,
    ) -> RCGPipelineOutput | tuple[Any, ...]:
        """New images from the representations of given ones: the same content, drawn anew (RCG, section 4.3).

        Args:
            images: B images, as in `encode`.

        The other arguments, the result and the errors are those of a call and of `encode`.
        """
        check_output_type(output_type)
        dim = self.representation_dim
        return self(
            representations=self.encode(images).reshape(-1, dim),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            exact=exact,
            precision=precision,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
        )

    @torch.no_grad()
    def interpolate(
        self,
        a: torch.Tensor | Image.Image,
        b: torch.Tensor | Image.Image,
        num: int = 8,
        mode: Literal["slerp", "linear"] = "slerp",
        standardized: bool | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        exact: bool = False,
        precision: Precision = "auto",
        guidance_schedule: GuidanceSchedule | None = None,
        guidance_interval: Interval | None = None,
    ) -> RCGPipelineOutput | tuple[Any, ...]:
        """Images along the way between two representations, all from the same noise (RCG, section 4.3).

        Args:
            a, b: each a PIL image, an image tensor [3, H, W] (or [1, 3, H, W]) in [0, 1], or a representation [D]
                (or [1, D]).
            num: images, the two ends included; at least 2.
            mode: `slerp` goes along the great circle, `linear` straight.
            standardized: bring each blend, and each of its parts where the encoder gives several, back to mean 0 and standard
                deviation 1, as the encoder's output is; by default exactly when this pipeline has an encoder that standardises.
            generator: one generator (or None): every image is made from the same random numbers, so that only the
                representation changes.

        The other arguments, the result (`num` images) and the errors are those of a call and of `encode`.
        """
        check_output_type(output_type)
        settings = self.settings(
            num_inference_steps,
            guidance_scale,
            temperature,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            exact=exact,
        )
        if isinstance(generator, list | tuple):
            raise UserError("interpolate takes one generator, because all its images share their noise; give one.")
        ends = [self._representation_of(end) for end in (a, b)]
        representations = blend(ends[0], ends[1], num, mode)
        if standardized is None:
            standardized = self.encoder is not None and bool(self.encoder.config.standardize)
        if standardized:
            try:
                sizes = [self.representation_dim] if self.encoder is None else self.encoder.part_sizes
                representations = standardize_parts(representations.split(sizes, dim=1))
            except UserError:
                raise UserError(
                    "a blend of the two is constant, so that it cannot be brought to standard deviation 1; take other ends, "
                    "another mode or standardized=False."
                ) from None
        seed = derive_seed(Streams.of(generator, 1).seeds[0], 1)
        noise = Noise([seed] * num, self._execution_device)
        return self._generate(
            settings, representations, None, noise, output_type, None, return_dict, exact=exact, precision=precision
        )

    def _representation_of(self, end: torch.Tensor | Image.Image) -> torch.Tensor:
        dim = self.representation_dim
        if not torch.is_tensor(end) or end.ndim >= 3:
            image = end[None] if torch.is_tensor(end) and end.ndim == 3 else end
            representation = self.encode(image)
        else:
            representation = end.reshape(1, -1) if end.ndim == 1 else end
        return resolve_representations(representation, 1, dim)[0].to(self._execution_device)


def check_output_type(output_type: str) -> None:
    """Raise `UserError` for none of `OutputType`."""
    if output_type not in get_args(OutputType):
        raise UserError(f"output_type is {output_type!r}, but it must be 'pil', 'np' or 'pt'.")


def guidance_of(settings: Sampling) -> Guidance:
    """The guidance that settings describe; `UserError` for an interval that is none."""
    schedule, interval = settings["guidance_schedule"], settings["guidance_interval"]
    assert schedule is not None
    assert interval is not None
    return Guidance(settings["guidance_scale"], schedule, (interval[0], interval[1]))


def _as_type(images: torch.Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | torch.Tensor:
    if not torch.isfinite(images).all():
        raise UserError("the images hold NaN or infinite values; the tokenizer is damaged or its precision too low.")
    if output_type == "pil":
        return to_pil(images)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()
