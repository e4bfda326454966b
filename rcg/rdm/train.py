"""Training the representation diffusion model, from cached representations or from images through a frozen encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import model_hash
from rcg.core.rng import derive_seed, sample_seeds
from rcg.data.cache import Cache, is_cache
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.eval.frechet import frechet_distance
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.sampling import sample_representations
from rcg.rdm.schedule import PREDICTION_TYPES, TRAIN_STEPS, PredictionType, alphas_cumprod, fast_scheduler
from rcg.training.stage import Batch, BatchDataset, Frozen, Stage
from rcg.training.subset import Subset, hold_out

EVAL_SAMPLES = 5000
PREVIEW_POINTS = 1000


class RDMObjective(nn.Module):
    """The denoising loss: x_t = √ᾱ_t·x0 + √(1-ᾱ_t)·ε, t uniform, mean squared error on the prediction target.

    Args:
        rdm: the denoiser, trained here.
        prediction_type: `sample` (x0, the paper's), `epsilon`, or `v_prediction` (√ᾱ·ε - √(1-ᾱ)·x0).
    """

    def __init__(self, rdm: RepresentationMLP, prediction_type: PredictionType = "sample") -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction_type is {prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}.")
        self.rdm = rdm
        self.prediction_type: PredictionType = prediction_type
        alphas = alphas_cumprod()
        self.signal: Tensor
        self.noise: Tensor
        self.register_buffer("signal", alphas.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - alphas).sqrt().float(), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`{"loss": scalar}` of a batch with "representations" [B, D] (and "labels" [B] if class-conditional)."""
        x0 = batch["representations"].float()
        t = torch.randint(TRAIN_STEPS, (len(x0),), device=x0.device)
        labels = None
        if self.rdm.config.num_classes:
            labels = batch["labels"]
            if self.rdm.null_class is not None:
                dropped = torch.rand(len(x0), device=x0.device) < self.rdm.config.class_dropout
                labels = torch.where(dropped, self.rdm.null_class, labels)
        return {"loss": self.loss(x0, t, torch.randn_like(x0), labels).mean()}

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t [B, D] from clean x0 [B, D], steps t int64 [B] and standard normal noise [B, D]."""
        return self.signal[t, None] * x0 + self.noise[t, None] * noise

    def loss(self, x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of each sample [B], at given steps and noise."""
        if self.prediction_type == "sample":
            target = x0
        elif self.prediction_type == "epsilon":
            target = noise
        else:
            target = self.signal[t, None] * noise - self.noise[t, None] * x0
        prediction = self.rdm(self.diffuse(x0, t, noise), t, labels).sample
        return (prediction.float() - target).square().mean(dim=1)


def hold_out_share(dataset: BatchDataset, share: float, most: int = 2 * EVAL_SAMPLES) -> tuple[Subset, Subset]:
    """Split a data set at random, but always alike, into a part to train on and one (at most `most`) to judge by.

    Raises:
        UserError: a share that leaves either part with fewer than 4 samples.
    """
    size = len(dataset)
    held = min(most, round(size * share))
    if not 0 < share < 1 or held < 4 or size - held < 4:
        raise UserError(
            f"holding out a share of {share} of {size} samples leaves too few; set --held-out-share 0 or add data."
        )
    kept, chosen = hold_out(size, held, most=1.0)
    return Subset(dataset, kept), Subset(dataset, chosen)


class RDMData(NamedTuple):
    """What a representation model is trained on, as `RDMStage` takes it."""

    dataset: BatchDataset
    heldout: BatchDataset | None
    encoder: nn.Module | None
    """That is to run on every step; None where its work is in a cache."""
    representation_dim: int
    num_classes: int
    """0 without classes."""


def open_data(
    data: str | Path,
    encoder: Any = None,
    *,
    size: int | None = None,
    val_data: str | Path | None = None,
    held_out_share: float = 0.05,
    class_conditional: bool = False,
) -> RDMData:
    """Open the data of a run, checked against the encoder and each other.

    Args:
        data: a cache with representations, or a source of images, which needs an encoder.
        encoder: the frozen `SSLEncoder`, or None.
        size: with images: side of the random crops that the encoder sees; None is the encoder's own size.
        val_data: a cache or source to judge by.
        held_out_share: without `val_data`: share of `data` that is judged by; 0 judges by the training data.
        class_conditional: whether the classes of the data are to be used.

    Raises:
        UserError: images without an encoder, a cache of another encoder, sets that do not go together, no classes.
    """
    whole = _open_one(data, encoder, size)
    if class_conditional and whole.labels is None:
        raise UserError(f"{data} has no class labels; leave --class-conditional out, or give labelled data.")
    dataset: BatchDataset = whole
    heldout: BatchDataset | None = None
    if val_data is not None:
        heldout = _open_one(val_data, encoder, size)
        if isinstance(whole, Cache) != isinstance(heldout, Cache):
            raise UserError(
                "--data and --val-data must both be caches or both be images; make a cache of the other with rcg-cache."
            )
        hashes = {
            d.manifest["fields"]["representations"]["model_hash"] for d in (whole, heldout) if isinstance(d, Cache)
        }
        if len(hashes) > 1:
            raise UserError(
                f"the representations in {val_data} were computed by another encoder than those in {data}; "
                "make its cache anew with the same encoder."
            )
        if class_conditional and heldout.class_names != whole.class_names:
            raise UserError(f"{val_data} does not have the classes of {data}; give one that has.")
    elif held_out_share:
        dataset, heldout = hold_out_share(whole, held_out_share)
    if isinstance(whole, Cache):
        encoder, dim = None, whole.fields["representations"][0]
    else:
        dim = encoder.representation_dim
    return RDMData(dataset, heldout, encoder, dim, whole.num_classes if class_conditional else 0)


def _open_one(spec: str | Path, encoder: Any, size: int | None) -> Cache | ImageDataset:
    if is_cache(spec):
        cache = Cache(spec, ["representations"])
        cache.require("representations", encoder)
        return cache
    if encoder is None:
        if not Path(spec).is_dir():
            open_source(spec)  # says what is wrong with it, unless it is a built-in set
        raise UserError(
            f"{spec} is not a cache, and images need an encoder: add --encoder DIR, or compute a cache first with rcg-cache."
        )
    return ImageDataset(open_source(spec), size or int(encoder.config.image_size), "crop_flip")


class RDMStage(Stage):
    """Training of a `RepresentationMLP`.

    Args:
        rdm: the model.
        dataset: gives "representations" (a cache), or "images" (uint8) when there is an `encoder`.
        heldout: like `dataset`, samples not trained on, to judge by; the training data itself if None.
        encoder: frozen, images [B, 3, S, S] in [0, 1] → [B, D]; only with images.
        prediction_type: the training target.
        eval_samples: representations drawn for the Fréchet distance (fewer if there are fewer to compare with).
    """

    name: ClassVar[str] = "rdm"

    def __init__(
        self,
        rdm: RepresentationMLP,
        dataset: BatchDataset,
        *,
        heldout: BatchDataset | None = None,
        encoder: nn.Module | None = None,
        prediction_type: PredictionType = "sample",
        eval_samples: int = EVAL_SAMPLES,
    ) -> None:
        self.rdm = rdm
        self.dataset = dataset
        self.heldout = dataset if heldout is None else heldout
        self.encoder = None if encoder is None else Frozen(encoder)
        self.objective = RDMObjective(rdm, prediction_type)
        self.objectives = {"rdm": self.objective}
        self.eval_samples = eval_samples
        self._real: tuple[Tensor, Tensor | None] | None = None
        if len(self.heldout) < 4:
            raise UserError(
                f"{len(self.heldout)} samples are too few to judge a representation model by; give at least 4."
            )

    def param_groups(self, objective: str, weight_decay: float) -> list[dict[str, Any]]:
        """One group: in the reference, weight decay hits every parameter."""
        return [{"params": list(self.objective.parameters()), "weight_decay": weight_decay}]

    def ema_modules(self) -> dict[str, nn.Module]:
        """The whole model, its class embedding included."""
        return {"rdm": self.rdm}

    def to(self, device: torch.device) -> None:
        """Move the encoder."""
        if self.encoder is not None:
            self.encoder.module.to(device)

    def prepare(self, batch: Batch) -> Batch:
        """Encode images, if images are what the data set gives."""
        if self.encoder is None:
            return batch
        images = to_unit(batch["images"])
        rest = {k: v for k, v in batch.items() if k != "images"}
        return {"representations": self.encoder.module(images), **rest}

    def identity(self) -> dict[str, Any]:
        """Model, target and encoder: what a resumed run must find unchanged."""
        config = {k: v for k, v in self.rdm.config.items() if not k.startswith("_")}
        identity: dict[str, Any] = {"rdm": config, "prediction_type": self.objective.prediction_type}
        if self.encoder is not None:
            identity["encoder"] = model_hash(self.encoder.module)
        return identity

    # ------------------------------------------------------------------ judging

    def _real_samples(self) -> tuple[Tensor, Tensor | None]:
        """Real representations [2n, D] and their labels: a fixed random choice from the held-out data, read once."""
        if self._real is None:
            device = self.rdm.device
            size = len(self.heldout)
            n = min(self.eval_samples, size // 2)
            chosen = np.random.default_rng(derive_seed(size, 6)).permutation(size)[: 2 * n].astype(np.int64)
            seeds = sample_seeds(0, np.zeros_like(chosen), chosen)
            parts: list[Batch] = []
            with torch.no_grad():
                for i in range(0, 2 * n, 256):
                    batch = self.heldout.batch(chosen[i : i + 256], seeds[i : i + 256])
                    parts.append(self.prepare({k: v.to(device) for k, v in batch.items()}))
            labels = torch.cat([p["labels"] for p in parts]) if self.rdm.config.num_classes else None
            self._real = torch.cat([p["representations"] for p in parts]).float(), labels
        return self._real

    def _draw(self, count: int, labels: Tensor | None, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        out: list[Tensor] = []
        for i in range(0, count, 1024):
            some = None if labels is None else labels[i : i + 1024]
            out.append(
                sample_representations(
                    self.rdm,
                    fast_scheduler(self.objective.prediction_type),
                    min(1024, count - i),
                    class_labels=some,
                    generator=generator,
                    row_block=None,
                )
            )
        return torch.cat(out)

    @torch.no_grad()
    def evaluate(self, seed: int) -> dict[str, float]:
        """Fréchet distance of sampled to real representations beside its floor, and the loss at fixed steps and noise.

        `rep_fd` compares n samples with one half of the held-out representations, `rep_fd_floor` the other half with
        the same one: at equal n they can be set side by side, and a perfect model reaches the floor.
        """
        real, labels = self._real_samples()
        n = len(real) // 2
        reference, other = real[:n].cpu().numpy(), real[n:].cpu().numpy()
        sampled = self._draw(n, None if labels is None else labels[n:], seed)
        if not torch.isfinite(sampled).all():
            raise UserError("the sampled representations are not finite; lower --lr.")
        return {
            "rep_fd": frechet_distance(sampled.cpu().numpy(), reference),
            "rep_fd_floor": frechet_distance(other, reference),
            "val_loss": self._fixed_loss(real, labels),
        }

    def _fixed_loss(self, real: Tensor, labels: Tensor | None) -> float:
        """The loss at steps spread evenly over the schedule and always the same noise."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(real.shape, generator=generator).to(real.device)
        t = ((torch.arange(len(real), device=real.device) + 0.5) * TRAIN_STEPS / len(real)).long()
        total = 0.0
        for i in range(0, len(real), 1024):
            part = slice(i, i + 1024)
            loss = self.objective.loss(real[part], t[part], noise[part], None if labels is None else labels[part])
            total += float(loss.double().sum())
        return total / len(real)

    @torch.no_grad()
    def preview(self, seed: int) -> Image.Image | None:
        """Real (grey) and sampled (red) representations on the first two principal axes of the real ones."""
        real, labels = self._real_samples()
        n = min(len(real), PREVIEW_POINTS)
        sampled = self._draw(n, None if labels is None else labels[:n], seed).double().cpu()
        real = real.double().cpu()
        mean = real.mean(dim=0)
        axes = torch.linalg.svd(real - mean, full_matrices=False).Vh[:2]
        return scatter([((real[:n] - mean) @ axes.T, (120, 120, 120)), ((sampled - mean) @ axes.T, (220, 30, 30))])

    def export(self, folder: Path) -> None:
        """Write config.json, safetensors and the scheduler_config.json of the few-step default."""
        self.rdm.save_pretrained(folder)
        fast_scheduler(self.objective.prediction_type).save_pretrained(folder)


def scatter(groups: list[tuple[Tensor, tuple[int, int, int]]], size: int = 384) -> Image.Image:
    """A scatter plot of point sets ([N, 1 or 2], RGB colour) on white, scaled to the first set."""
    first = groups[0][0]
    centre, reach = first.mean(dim=0), 1.25 * (first - first.mean(dim=0)).abs().max().clamp(min=1e-9)
    picture = Image.new("RGB", (size, size), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for points, colour in groups:
        places = ((points - centre) / reach * 0.5 + 0.5) * size
        for place in places:
            x, y = (float(place[0]), float(place[-1]))
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)
    return picture
