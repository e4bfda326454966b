"""A latent diffusion model with cross-attention, as Stable Diffusion's, whose text is replaced by learned vectors.

Any local folder of diffusers serves that has `unet` (a `UNet2DConditionModel`), `vae` and `scheduler` in its
`model_index.json`. Its text encoder is needed for the empty prompt only.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from rcg.core.blocks import in_blocks
from rcg.core.components import check_weights, load_any, load_scheduler, read_config
from rcg.core.errors import UserError, first_line
from rcg.core.files import model_hash
from rcg.core.rng import Noise
from rcg.data.build import CacheField
from rcg.image_gen.tokenizers.autoencoder import AUTOENCODERS, LatentCodec
from rcg.inversion.frozen import Kind

Unconditional = Literal["mean", "empty"]
GOLDEN = (math.sqrt(5) - 1) / 2
START_STD = 0.02
BLOCK_LATENTS = 64 * 64
"""About so many places of latents go through the U-Net together on a CPU, see `rcg.core.blocks.in_blocks`."""


class StableDiffusion:
    """See `rcg.inversion.frozen.FrozenGenerator`.

    A condition is `num_tokens` vectors that stand where the text encoder's output stood. The loss is the mean squared error
    of the predicted noise (or velocity, or clean latents, as the scheduler's config says) over random times (arXiv
    2305.15316, §3.1). The times of an image follow the golden ratio from a random beginning, so that any stretch of steps
    has them spread evenly; noise is a hash of the image's seed and the step.

    Drawing: DDIM with `eta`, ε̂ = ε_u + s · (ε_c − ε_u) with s the guidance scale (1 is off; s − 1 is the paper's w).

    Args:
        folder: of the pipeline.
        image_size: side in pixels at which images are inverted and drawn.
        num_tokens: vectors of a condition (5 in arXiv 2305.15316).
        steps, eta: of drawing (100 and 1 there).

    Raises:
        UserError: no such pipeline, a damaged one, or one that takes more than a text as its condition.
    """

    kind: Kind = "stable-diffusion"
    default_lr = 3e-2
    beginning = "random"

    def __init__(
        self, folder: Path, image_size: int, num_tokens: int = 5, *, steps: int = 100, eta: float = 1.0
    ) -> None:
        self.folder = folder
        index = _index(folder)
        self.unet = load_unet(folder / "unet")
        self.vae = load_any(AUTOENCODERS, folder / "vae").requires_grad_(False)
        self.codec = LatentCodec(self.vae)
        scheduler = load_scheduler(folder / "scheduler")
        self.noising, self.schedule = noising_of(scheduler)
        config = self.unet.config
        self._check(config, index)
        if image_size % self.codec.factor:
            raise UserError(
                f"--image-size {image_size} is no multiple of {self.codec.factor}, by which the autoencoder shrinks images; "
                "choose one that is."
            )
        self.image_size = image_size
        self.shape: tuple[int, ...] = (num_tokens, width_of(config))
        self.steps, self.eta = steps, eta
        total = int(self.noising.config.num_train_timesteps)
        offset = int(self.schedule.get("steps_offset") or 0)
        if steps > total or (steps - 1) * (total // steps) + offset >= total:
            raise UserError(
                f"the sampler is to take {steps} steps, but the scheduler knows {total} noise levels and begins with level "
                f"{offset}; take fewer."
            )
        self.fields = {"latents": CacheField(self.vae, self.codec.encode, "float32")}
        self.dtype = torch.float32
        self.unconditional: Tensor | None = None
        """float32 [L, width] that guidance goes away from; set it before drawing with a scale other than 1."""
        side = image_size // self.codec.factor
        self.latent_shape = (self.codec.channels, side, side)

    def _check(self, config: Any, index: dict[str, Any]) -> None:
        channels = self.codec.channels
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise UserError(
                f"the U-Net in {self.folder} takes {config.in_channels} channels and the autoencoder has {channels}; give a "
                "pipeline of text to image (no inpainting, no upscaling)."
            )
        wants = {
            "class_embed_type": "a class",
            "num_class_embeds": "a class",
            "addition_embed_type": "a second embedding (as Stable Diffusion XL does)",
            "encoder_hid_dim_type": "a projected condition",
            "time_cond_proj_dim": "a guidance scale as its input",
        }
        for name, what in wants.items():
            if config.get(name) is not None:
                raise UserError(
                    f"the {index.get('_class_name')} in {self.folder} takes {what} beside the text, which this library does "
                    "not invert; give one like Stable Diffusion 1 or 2."
                )

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.unet.device

    def identity(self) -> str:
        """See the protocol."""
        schedule = {k: v for k, v in self.schedule.items() if not k.startswith("_")}
        text = json.dumps([model_hash(self.unet), model_hash(self.vae), schedule], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def prepare(self, device: torch.device, bf16: bool, checkpointing: bool) -> None:
        """See the protocol; in bf16 the U-Net's weights are, too."""
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        nn.Module.to(self.unet, device, self.dtype)  # without the warnings of diffusers' own
        self.vae.to(device)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()

    def start(self, batch: dict[str, Tensor], seeds: list[int]) -> Tensor:
        """Normal numbers of deviation 0.02: next to nothing, but different for each token."""
        return START_STD * Noise(seeds, self.device).normal(0, math.prod(self.shape)).view(len(seeds), *self.shape)

    def loss(self, batch: dict[str, Tensor], conditions: Tensor, seeds: list[int], step: int) -> Tensor:
        """See the protocol."""
        latents = batch["latents"].float()
        noise = Noise(seeds, self.device)
        total = int(self.noising.config.num_train_timesteps)
        places = (noise.uniform(1, 1)[:, 0] + step * GOLDEN) % 1.0
        times = (places * total).long().clamp_max(total - 1)
        drawn = noise.normal(2 + step, latents[0].numel()).view_as(latents)
        noisy = self.noising.add_noise(latents, drawn, times)
        kind = self.noising.config.prediction_type
        target = {"epsilon": drawn, "sample": latents}.get(kind)
        if target is None:
            target = self.noising.get_velocity(latents, drawn, times)
        predicted = self._predict(noisy, times, conditions)
        return (predicted - target).square().flatten(1).mean(dim=1).sum()

    def _predict(self, noisy: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        shown = conditions.to(self.dtype)
        predicted: Tensor = self.unet(noisy.to(self.dtype), times, encoder_hidden_states=shown).sample
        return predicted.float()

    # ------------------------------------------------------------------ drawing

    def drawing(self) -> dict[str, object]:
        """See the protocol."""
        return {"sampler": "ddim", "steps": self.steps, "eta": self.eta, "precision": str(self.dtype)}

    @torch.no_grad()
    def draw(self, conditions: Tensor, scales: list[float], seeds: list[int]) -> Tensor:
        """See the protocol. An image depends on its own condition, scale and seed alone."""
        count, device = len(conditions), self.device
        noise = Noise(seeds, device)
        size = math.prod(self.latent_shape)
        scheduler: Any = DDIMScheduler.from_config(self.schedule, clip_sample=False, timestep_spacing="leading")
        scheduler.set_timesteps(self.steps)
        pushed = torch.tensor(scales, device=device).view(-1, 1, 1, 1)
        empty = None
        if any(scale != 1.0 for scale in scales):
            if self.unconditional is None:
                raise UserError("guidance needs an unconditional embedding; set it, or take the scale 1.")
            empty = self.unconditional.to(device).expand(count, -1, -1)
        rows = BLOCK_LATENTS // math.prod(self.latent_shape[1:])
        conditions = conditions.to(device)
        latents = noise.normal(0, size).view(count, *self.latent_shape)
        for i, t in enumerate(scheduler.timesteps.tolist()):

            def at(x: Tensor, c: Tensor, t: int = t) -> Tensor:
                return self._predict(x, torch.full((len(x),), t, device=device), c)

            predicted = in_blocks(at, rows, latents, conditions)
            if empty is not None:
                predicted = torch.lerp(in_blocks(at, rows, latents, empty), predicted, pushed)
            more = noise.normal(1 + i, size).view_as(latents) if self.eta > 0 else None
            latents = scheduler.step(predicted, t, latents, eta=self.eta, variance_noise=more).prev_sample
        return in_blocks(self.codec.decode, rows, latents)

    def empty_prompt(self) -> Tensor:
        """What the pipeline's text encoder makes of no text, float32 [L, width].

        Raises:
            UserError: the package transformers or the pipeline's text encoder or tokenizer is not there.
        """
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
        except ImportError:
            raise UserError(
                "the empty prompt needs the package transformers; run: pip install transformers, or take --unconditional mean."
            ) from None
        for part in ("text_encoder", "tokenizer"):
            if not (self.folder / part).is_dir():
                raise UserError(f"{self.folder} has no {part} for the empty prompt; take --unconditional mean.")
        try:
            tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer")
            encoder = CLIPTextModel.from_pretrained(self.folder / "text_encoder", use_safetensors=True)
        except (OSError, ValueError) as e:
            reason = first_line(e)
            raise UserError(f"the text encoder in {self.folder} cannot be loaded ({reason}); fetch it again.") from None
        length = int(encoder.config.max_position_embeddings)
        ids = tokenizer("", padding="max_length", max_length=length, return_tensors="pt").input_ids
        with torch.no_grad():
            found: Tensor = encoder(ids)[0][0].float()
        return found


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is no pipeline of diffusers (it has no model_index.json); give the folder of one.")
    index = read_config(folder / "model_index.json")
    for part in ("unet", "vae", "scheduler"):
        if not isinstance(index.get(part), list) or not (folder / part).is_dir():
            raise UserError(
                f"the {index.get('_class_name')} in {folder} has no {part}; give a pipeline like Stable Diffusion 1 or 2."
            )
    return index


def load_unet(folder: Path) -> Any:
    """The U-Net in a folder, frozen, every key accounted for.

    Raises:
        UserError: another class, a configuration of which none can be made, or weights that do not fit it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; the pipeline is incomplete, fetch it again.")
    config = read_config(folder / "config.json")
    if (name := config.get("_class_name")) != UNet2DConditionModel.__name__:
        raise UserError(f"{folder} holds a {name}, but a UNet2DConditionModel is needed; give another pipeline.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (*.safetensors); fetch the pipeline again, in safetensors.")
    try:
        with init_empty_weights():
            empty = UNet2DConditionModel.from_config(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = first_line(e)
        raise UserError(f"no U-Net can be made of {folder / 'config.json'} ({reason}); fetch it again.") from None
    check_weights(empty, folder)
    unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    return unet.eval().requires_grad_(False)


def width_of(config: Any) -> int:
    """Width of the vectors that a U-Net attends to; `UserError` where its levels differ in it."""
    widths = config.encoder_hid_dim or config.cross_attention_dim
    widths = set(widths) if isinstance(widths, list | tuple) else {widths}
    if len(widths) != 1:
        raise UserError(f"the U-Net attends to vectors of several widths ({sorted(widths)}); give another pipeline.")
    return int(widths.pop())


def noising_of(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """What adds noise as a pipeline's scheduler does, and that scheduler's configuration.

    Raises:
        UserError: a scheduler without betas (of a flow, say), or of another prediction.
    """
    config = dict(scheduler.config)
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"the pipeline's {type(scheduler).__name__} has no betas, or its model predicts {kind!r}; give a pipeline like "
            "Stable Diffusion 1 or 2."
        )
    noising = DDPMScheduler.from_config(config)
    return noising, dict(noising.config)
