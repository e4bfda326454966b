"""A classifier trained by one fixed recipe: what a training set is worth, real or generated, is what it learns from it."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import timm
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.component import Settled
from rcg.core.errors import UserError, first_line
from rcg.core.rng import derive_seed
from rcg.core.schema import Size, check_arguments

Stem = Literal["timm", "half", "small"]
"""How a ResNet begins: as timm makes it (7×7, stride 2, pooled: made for 224 px); 3×3 with stride 2; or 3×3 with stride 1, as
ResNets for 32 px do. The last two are not pooled."""
SMALL = 64
"""Pixels: below, a ResNet's stem is "small" where nothing else is asked for."""
TEST_ROWS = 250
"""Images classified together."""
_INIT, _SPLIT, _ORDER, _VIEWS = 1, 2, 3, 4
"""Names of random streams."""


class ImageClassifier(Settled, ModelMixin, ConfigMixin):
    """Images in [0, 1] → logits: any model of timm behind ImageNet's normalisation.

    Args:
        arch: a timm model name.
        class_names: of the outputs, in order.
        image_size: side in pixels of the images that it takes.
        arch_kwargs: overrides for `timm.create_model`, such as channels.
        stem: see `Stem`; anything but "timm" is for ResNets.

    Raises:
        UserError: the architecture, its overrides or its stem cannot be had.
    """

    @register_to_config
    def __init__(
        self,
        arch: str,
        class_names: Sequence[str],
        image_size: Size,
        arch_kwargs: dict[str, Any] | None = None,
        stem: Stem = "timm",
    ) -> None:
        super().__init__()
        check_arguments(self)
        if len(class_names) < 2:
            raise UserError(f"a classifier needs two classes at least, but there are {len(class_names)}.")
        self.network = _network(arch, len(class_names), dict(arch_kwargs or {}), image_size)
        if stem != "timm":
            _shorten_stem(self.network, arch, 2 if stem == "half" else 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, S, S] in [0, 1] → logits float32 [B, classes]; S is `image_size`."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise UserError(f"this classifier takes images [B, 3, {size}, {size}], not {list(images.shape)}.")
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.network(x)).float()

    @torch.no_grad()
    def check(self) -> None:
        """Raise `UserError` if the network cannot take images of this size, as many of timm's cannot take small ones."""
        config, training = self.config, self.training
        try:
            found = self.eval()(torch.zeros(1, 3, config.image_size, config.image_size, device=self.mean.device))
            if found.shape != (1, len(config.class_names)):
                raise ValueError(f"it gives {list(found.shape)} numbers")
        except UNBUILT as e:
            raise UserError(
                f"timm's {config.arch!r} cannot take images of {config.image_size} px ({first_line(e, 100)}); choose another "
                "--classifier, other --classifier-kwargs or a larger --image-size."
            ) from None
        finally:
            self.train(training)


UNBUILT = (RuntimeError, TypeError, AssertionError, ValueError, ArithmeticError, AttributeError, LookupError)
"""What networks of timm raise that do not fit their arguments or an image's size."""


def _network(arch: str, classes: int, arch_kwargs: dict[str, Any], image_size: int) -> Any:
    if not timm.is_model(arch.partition(".")[0]):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3)
        hint = f"near names: {', '.join(near)}" if near else "timm.list_models() names them all"
        raise UserError(f"timm has no architecture {arch!r}; {hint}.")
    try:
        model: Any = timm.create_model(arch, pretrained=False, num_classes=classes, **arch_kwargs)
        built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if built_for and tuple(built_for) != (image_size,) * 2 and "img_size" not in arch_kwargs:
            model = timm.create_model(arch, pretrained=False, num_classes=classes, img_size=image_size, **arch_kwargs)
    except UNBUILT as e:
        raise UserError(
            f"timm's {arch!r} cannot be built for {image_size} px with {arch_kwargs} ({first_line(e)}); choose another "
            "--classifier or other --classifier-kwargs."
        ) from None
    return model


def is_resnet(arch: str) -> bool:
    """Whether an architecture has the stem that can be shortened; one that timm has not has none."""
    name = arch.partition(".")[0]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=2) if timm.is_model(name) else None
    return _has_stem(model)


def _has_stem(model: Any) -> bool:
    return all(hasattr(model, name) for name in ("conv1", "bn1", "maxpool"))


def _shorten_stem(model: Any, arch: str, stride: int) -> None:
    if not _has_stem(model):
        raise UserError(f"--classifier-stem is for ResNets, but {arch} is none; leave it out.")
    width = model.bn1.num_features
    model.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


@dataclass(frozen=True)
class Recipe:
    """How every classifier is trained: SGD with Nesterov's momentum, a warm-up, half a cosine; random crops and flips.

    A number of steps, not of epochs: sets of all sizes are given the same compute.

    Attributes:
        arch, arch_kwargs, stem: see `ImageClassifier`.
        steps: of the optimiser.
        batch_size: images in a step (all of the set, if it has fewer).
        lr: highest learning rate, for any batch size.
        momentum, weight_decay, label_smoothing: as everywhere; biases and norms are not decayed.
        warmup: share of the steps.
        pad: pixels by which images are widened (mirrored) for the random crop, as a share of their side.
        held_out: share of each class of the training images by which the best of the states is chosen.
        checks: how often that is done, at even distances; the last is at the last step.
    """

    arch: str = "resnet18"
    arch_kwargs: dict[str, Any] | None = None
    stem: Stem = "timm"
    steps: int = 2000
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    warmup: float = 0.05
    pad: float = 0.125
    held_out: float = 0.1
    checks: int = 10


@dataclass(frozen=True)
class Pictures:
    """Labelled images, by number.

    Attributes:
        pixels: numbers int64 [B] → uint8 [B, 3, S, S].
        labels: int64 [N].
    """

    pixels: Callable[[np.ndarray], Tensor]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Trained:
    """A classifier, and how it was chosen.

    Attributes:
        model: in evaluation mode, at the state that was best on held-out training images.
        validation: its accuracy on these, in [0, 1].
        best_step: after how many steps that was.
        validated_on: how many they were.
    """

    model: ImageClassifier
    validation: float
    best_step: int
    validated_on: int


def hold_out(labels: np.ndarray, share: float, seed: int, among: np.ndarray | None = None) -> np.ndarray:
    """Numbers of the images by which a state is chosen: of each class a share, but one at least, and never all.

    Args:
        labels: int64 [N].
        share: of each class.
        seed: of the draw.
        among: bool [N], which may be held out; None: any.

    Raises:
        UserError: a class has a single image, which cannot serve for both.
    """
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(
                f"class number {label} has a single training image, but one must be held out to choose a state by; give two "
                "images of each class at least."
            )
        able = rows if among is None else rows[among[rows]]
        count = min(max(1, round(share * len(able))), len(rows) - 1, len(able))
        order = np.random.default_rng(derive_seed(seed, _SPLIT, int(label))).permutation(able)
        found.append(order[:count])
    return np.sort(np.concatenate(found))


def train_classifier(
    pictures: Pictures,
    class_names: Sequence[str],
    image_size: int,
    recipe: Recipe,
    seed: int,
    *,
    validate_on: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    on_step: Callable[[], object] = lambda: None,
) -> Trained:
    """Train a classifier; the state is chosen by held-out training images, never by the test images.

    Args:
        pictures: to learn from.
        class_names: of the labels.
        image_size: side of the images, in pixels.
        recipe: see `Recipe`.
        seed: of weights, split, order and views.
        validate_on: bool [N], the images that may be held out (the real ones of a mixed set); None: any.
        device, bf16: where and how to compute.
        on_step: called after each step.

    Raises:
        UserError: a class with one image, or a loss that is not finite.
    """
    device = torch.device(device)
    held = hold_out(pictures.labels, recipe.held_out, seed, validate_on)
    kept = np.setdiff1d(np.arange(len(pictures)), held)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, _INIT))
        model = ImageClassifier(recipe.arch, list(class_names), image_size, recipe.arch_kwargs, recipe.stem)
        model.check()
    nn.Module.to(model, device)
    nn.Module.to(model.network, memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.SGD(_groups(model, recipe.weight_decay), recipe.lr, recipe.momentum, nesterov=True)
    checks = {max(1, round(recipe.steps * (i + 1) / recipe.checks)) for i in range(recipe.checks)}
    best: tuple[float, int, dict[str, Tensor]] | None = None
    order = _Order(kept, min(recipe.batch_size, len(kept)), seed)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _rate(step, recipe)
        rows = order.batch(step)
        images = views(pictures.pixels(rows), derive_seed(seed, _VIEWS, step), recipe.pad).to(device)
        with _low(device, bf16):
            logits = model(images.float() / 255)
        target = torch.from_numpy(pictures.labels[rows]).to(device)
        loss = F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step + 1 in checks:
            if not bool(torch.isfinite(loss)):
                raise UserError(f"the classifier's loss is not finite after {step + 1} steps; lower --classifier-lr.")
            found = accuracy(model, pictures, held, device=device, bf16=bf16)
            if best is None or found >= best[0]:
                best = found, step + 1, copy.deepcopy(model.state_dict())
            model.train()
        on_step()
    assert best is not None
    model.load_state_dict(best[2])
    return Trained(model.eval(), best[0], best[1], len(held))


def accuracy(
    model: ImageClassifier,
    pictures: Pictures,
    rows: np.ndarray | None = None,
    *,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> float:
    """The share of images (all, or these rows) that are classified rightly, in [0, 1]; leaves the model in eval mode."""
    rows = np.arange(len(pictures)) if rows is None else rows
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), TEST_ROWS):
            part = rows[start : start + TEST_ROWS]
            with _low(torch.device(device), bf16):
                logits = model(pictures.pixels(part).to(device).float() / 255)
            right += int((logits.argmax(1).cpu() == torch.from_numpy(pictures.labels[part])).sum())
    return right / len(rows)


def views(images: Tensor, seed: int, pad: float) -> Tensor:
    """Random crops of mirrored-out images, half of them flipped: uint8 [B, 3, S, S] → the same.

    Args:
        images: uint8 [B, 3, S, S].
        seed: of the whole batch.
        pad: width of the margin, as a share of S.
    """
    count, _, height, width = images.shape
    margin = min(round(pad * height), height - 1)
    rng = np.random.default_rng(seed)
    tops, lefts = rng.integers(0, 2 * margin + 1, (2, count))
    flipped = rng.random(count) < 0.5
    wide = F.pad(images.float(), (margin,) * 4, mode="reflect").to(torch.uint8) if margin else images
    places = torch.arange(width)
    columns = torch.stack([places + left for left in lefts.tolist()])
    turned = torch.from_numpy(flipped)
    columns[turned] = columns[turned].flip(1)
    rows = torch.stack([torch.arange(height) + top for top in tops.tolist()])
    index = torch.arange(count)[:, None, None]
    return wide.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _Order:
    """Which images are in which step: one random order after the other, of whole batches."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.per_epoch = len(rows) // batch_size
        self._epoch, self._order = -1, rows

    def batch(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            shuffled = np.random.default_rng(derive_seed(self.seed, _ORDER, epoch)).permutation(self.rows)
            self._epoch, self._order = epoch, shuffled
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _rate(step: int, recipe: Recipe) -> float:
    warmup = recipe.warmup * recipe.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, recipe.steps - warmup)))


def _low(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
