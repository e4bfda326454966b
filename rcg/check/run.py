"""`check`: the data, and the models that are named, one part after the other. What `rcg-check` does, for Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcg.check.data import SECONDS, check_data
from rcg.check.encoder import check_encoder, encode
from rcg.check.findings import Part
from rcg.check.generation import DRAWN, check_generator, check_rdm
from rcg.check.tokenizer import check_tokenizer
from rcg.core.components import component_class, load_model
from rcg.core.durations import in_words
from rcg.core.errors import UserError
from rcg.core.hardware import pick_device
from rcg.core.pictures import spread
from rcg.core.rng import sample_generators
from rcg.core.shipped import local_folder
from rcg.data.images import to_unit
from rcg.data.sources import ImageSource, open_source
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.features import FeatureExtractor
from rcg.eval.images import ImageSet
from rcg.image_gen.families import MODELS
from rcg.image_gen.tokenizers.codec import TOKENIZERS, codec_of
from rcg.pipeline import RCGPipeline
from rcg.rdm.methods import MODELS as RDM_MODELS
from rcg.recipe.judging import of_encoder, open_features
from rcg.recipe.look import FEW_IMAGES
from rcg.sampling.inputs import check_components

IMAGES = 2000
PROBING = 5.0
"""Seconds that probes take, about."""
LARGEST = 256
"""Side in pixels to which images of differing sizes are framed at most, where no model says otherwise."""
TIMED = 8
"""Pictures that tell how long a pipeline draws; a single one may take a CPU as long (`rcg.core.blocks`)."""


class Models:
    """What is to be checked: a pipeline, or a tokenizer or an encoder by itself, or both.

    Args:
        places: folders of components or of a pipeline (one at most), or a name in the box.

    Raises:
        UserError: a place that holds none of these, or two of one kind.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self.pipeline: RCGPipeline | None = None
        self.encoder: SSLEncoder | None = None
        self.tokenizer: torch.nn.Module | None = None
        self.sources: dict[str, str] = {}
        for place in places:
            self._open(place)
        if self.pipeline is not None and self.pipeline.encoder is None and self.encoder is not None:
            fit = {"rdm": None, "rdm_scheduler": None, "encoder": self.encoder}
            generator = self.pipeline.generator
            check_components(fit, generator.condition, generator.representation_dim)
            self.pipeline.register_modules(encoder=self.encoder)  # its pictures are encoded again

    def _open(self, place: str) -> None:
        folder = local_folder(place)
        if folder is not None and not (folder / "model_index.json").is_file():
            self._open_component(place, folder)
            return
        if folder is None and not _may_be_repository(place):
            raise UserError(
                f"--model {place}: there is no such folder; give that of a pipeline, a tokenizer or an encoder."
            )
        self._take("pipeline", RCGPipeline.from_pretrained(place), place)
        assert self.pipeline is not None
        self.pipeline.set_progress_bar_config(disable=True)
        for name in ("encoder", "tokenizer"):
            if (model := getattr(self.pipeline, name)) is not None:
                self._take(name, model, place)

    def _open_component(self, place: str, folder: Path) -> None:
        named = component_class(folder)
        classes: tuple[type[torch.nn.Module], ...] = (SSLEncoder, *TOKENIZERS)
        cls = next((c for c in classes if c.__name__ == named), None)
        if cls is None and named in {c.__name__ for c in (*MODELS, *RDM_MODELS)}:
            raise UserError(
                f"--model {place} holds a {named}, which cannot be checked by itself; put a pipeline together with "
                "rcg-assemble and give that."
            )
        if cls is None:
            what = "holds no model" if named is None else f"holds a {named}"
            raise UserError(f"--model {place} {what}; give the folder of a pipeline, a tokenizer or an encoder.")
        self._take("encoder" if cls is SSLEncoder else "tokenizer", load_model(cls, folder), place)

    def _take(self, name: str, model: Any, place: str) -> None:
        if getattr(self, name) is not None:
            raise UserError(f"--model {place}: there is a second {name}; check one after the other.")
        setattr(self, name, model)
        self.sources[name] = place

    def to(self, device: torch.device) -> None:
        """Move all of them."""
        for model in (self.pipeline, self.encoder, self.tokenizer):
            if model is not None:
                model.to(device)


def _may_be_repository(place: str) -> bool:
    return place.count("/") == 1 and not place.startswith((".", "/", "~")) and not Path(place).exists()


def check(
    data: str | Path,
    models: Sequence[str] = (),
    *,
    num_images: int = IMAGES,
    image_size: int | None = None,
    extractor: str | None = None,
    extractor_weights: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Part]:
    """Look at data, and at what models make of it.

    Args:
        data: a source of images, see `rcg.data.sources.open_source`.
        models: see `Models`.
        num_images: that models look at, drawn by the seed.
        image_size: side in pixels to which images are framed; by default the model's own where images differ in size.
        extractor: in whose features reconstructions are compared, see `rcg.recipe.judging.open_features`; by default the
            encoder among the models.
        extractor_weights: its weights file.
        seed: of whatever is drawn.
        device: "auto", "cpu" or "cuda".
        say: called with sentences about what goes on.

    Raises:
        UserError: something given cannot be used.
    """
    where = pick_device(device)
    if extractor is None and extractor_weights is not None:
        raise UserError("--extractor-weights belongs to an --extractor; name it, such as inception-768.")
    chosen = Models(models)
    if extractor is not None and chosen.tokenizer is None:
        raise UserError(
            "--extractor judges a tokenizer's reconstructions, but there is none among --model; leave it out."
        )
    judge = None
    if extractor is not None and (extractor != "encoder" or chosen.encoder is None):
        judge = open_features(extractor, extractor_weights, chosen.encoder)
    elif extractor_weights is not None:
        raise UserError("--extractor encoder brings its weights along; leave out --extractor-weights.")
    source = open_source(data)
    chosen.to(where)
    own, fault = _as_extractor(chosen.encoder)
    judge = judge or own
    sets = {name: _frame(source, chosen, name, image_size, num_images, seed) for name in _wanted(chosen)}
    say(f"This will take about {in_words(_seconds(source, chosen, sets, judge, own, where))}.")
    parts = [check_data(source)]
    encoded = None
    if own is not None:
        try:
            encoded = encode(own, sets["encoder"], where)
        except UserError as e:
            fault = str(e)
            judge = None if judge is own else judge
    if encoded is not None:
        place, found = chosen.sources["encoder"], encoded
        parts.append(_attempted("encoder", place, lambda: check_encoder(found, source=place, seed=seed)))
    elif chosen.encoder is not None:  # collapsed: which is just what this shall find out
        part = Part("encoder", chosen.sources["encoder"], notes=[fault])
        part.say("bad", "the encoder makes no usable representations of these images", "take or train another encoder")
        parts.append(part)
    if (tokenizer := chosen.tokenizer) is not None:
        maps = None
        if (
            encoded is not None
            and chosen.encoder is not None
            and hasattr(chosen.encoder.backbone, "forward_intermediates")
        ):
            maps = chosen.encoder

        def tokenized() -> Part:
            return check_tokenizer(
                tokenizer,
                sets["tokenizer"],
                source=chosen.sources["tokenizer"],
                device=where,
                extractor=judge,
                maps=maps,
                seed=seed,
                blind=chosen.encoder is not None and judge is None,
            )

        parts.append(_attempted("tokenizer", chosen.sources["tokenizer"], tokenized))
    if (pipe := chosen.pipeline) is not None:
        name, real = chosen.sources["pipeline"], None if encoded is None else encoded.representations
        if pipe.rdm is not None and real is not None:
            parts.append(_attempted("rdm", name, lambda: check_rdm(pipe, real, source=name, seed=seed)))
        elif pipe.rdm is not None:
            part = Part("rdm", name, notes=["Without an encoder there are no real representations to compare with."])
            parts.append(part)
        pictures = sets.get("encoder", sets["pipeline"])
        rows = spread(len(pictures), DRAWN)
        pixels, theirs = pictures.pick(rows.tolist()), None if real is None else real[rows]
        parts.append(
            _attempted("image generator", name, lambda: check_generator(pipe, pixels, theirs, source=name, seed=seed))
        )
    return parts


def _attempted(name: str, source: str, look: Callable[[], Part]) -> Part:
    """A part, or, where it cannot be looked at, why: what was found of others is not lost."""
    try:
        return look()
    except UserError as e:
        part = Part(name, source, notes=[str(e)])
        part.say("doubtful", f"the {name} could not be checked")
        return part


def _as_extractor(encoder: SSLEncoder | None) -> tuple[ModuleExtractor | None, str]:
    """An encoder as an extractor; None where there is none, or, with the reason, where it makes no representations."""
    if encoder is None:
        return None, ""
    try:
        return of_encoder(encoder), ""
    except UserError as e:
        return None, str(e)


def _wanted(models: Models) -> list[str]:
    return [name for name in ("encoder", "tokenizer", "pipeline") if getattr(models, name) is not None]


def _frame(source: ImageSource, models: Models, name: str, image_size: int | None, count: int, seed: int) -> ImageSet:
    """The images that a model looks at, in a size that it can take."""
    own, factor = None, 1
    if name == "encoder" and models.encoder is not None:
        own = int(models.encoder.config.image_size)
    elif name == "tokenizer" and models.tokenizer is not None:
        codec = codec_of(models.tokenizer)
        own, factor = codec.image_size, codec.factor
    first = (int(source.sizes[0][0]), int(source.sizes[0][1]))
    alike = bool((source.sizes == source.sizes[0]).all()) and first[0] == first[1]
    size = image_size
    if size is None and not (alike and first[0] % factor == 0 and (name != "tokenizer" or own in (None, first[0]))):
        size = own or min(int(np.median(source.sizes.min(axis=1))), LARGEST)
        size = max(size // factor, 1) * factor
    if size is not None and size % factor:
        raise UserError(
            f"--image-size {size} is not a multiple of {factor}, by which the tokenizer shrinks; choose one."
        )
    return ImageSet(source, "data", image_size=size, limit=count, seed=seed)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes on a device."""
    begun = time.perf_counter()
    with torch.no_grad(), suppress(UserError):  # what cannot be computed is told by the check itself
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _seconds(
    source: ImageSource,
    models: Models,
    sets: dict[str, ImageSet],
    judge: FeatureExtractor | None,
    encoder: FeatureExtractor | None,
    device: torch.device,
) -> float:
    """How long the check will take, by what the first few images take."""
    seconds = SECONDS if len(source) > FEW_IMAGES else 1.0

    def per_image(call: Callable[[torch.Tensor], Any], images: ImageSet) -> float:
        few = next(iter(images.batches(16))).to(device)
        timed(lambda: call(few), device)
        return timed(lambda: call(few), device) / len(few)

    if encoder is not None:
        seconds += 2 * len(sets["encoder"]) * per_image(encoder.to(device).eval(), sets["encoder"]) + PROBING
    if models.tokenizer is not None:
        codec, images = codec_of(models.tokenizer), sets["tokenizer"]
        seconds += len(images) * per_image(lambda x: codec.decode(codec.encode(to_unit(x))), images)
        for network in (judge, encoder):  # the latter for the perceptual distance
            if network is not None:
                seconds += 2 * len(images) * per_image(network.to(device).eval(), images)
    if (pipe := models.pipeline) is not None and (pipe.rdm is not None or pipe.generator.condition != "representation"):
        some = timed(lambda: pipe(generator=sample_generators(0, 0, TIMED), output_type="pt"), device)
        seconds += some * DRAWN / TIMED
    return seconds
