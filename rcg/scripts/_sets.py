"""Flags of `rcg-synthesize` for labelled training sets, and the call: conditions of real images, or of an RDM → images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, NonNegative, PositiveShare, Share, Size, flag_of
from rcg.scripts._command import Settings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rcg.inversion.choices import Chooser
    from rcg.inversion.frozen import FrozenGenerator
    from rcg.inversion.proposers import Proposer
    from rcg.inversion.selection import ClassFilter, Hard
    from rcg.scripts.synthesize import Config

SOURCES = ("from_inversion", "from_images", "from_rdm")
_USED = {
    "model", "out", "guidance_scales", "num_inference_steps", "format", "batch_size", "device", "precision", "seed", "resume",
    "overwrite", "sets", "classes",
}  # fmt: skip
"""Flags of rcg-synthesize that labelled sets heed."""
GUIDANCE = 3.0
"""Of Stable Diffusion, where nothing else is asked for (arXiv 2305.15316: 2 to 4)."""


@dataclass
class SetSettings(Settings):
    """Labelled training sets: a folder for each class (or shards), with images.jsonl, which traces every image to its sources."""

    from_inversion: Path | None = None
    """Draw from the conditions that rcg-invert learned, varied by the flags below."""
    from_images: str | None = None
    """With an RCG pipeline: draw from the representations of these images, varied by the flags below."""
    from_rdm: bool = False
    """With an RCG pipeline: draw from representations that its RDM draws, of each class where it knows classes (--classes names
    them). Clusters, such as those of rcg/cifar10, are no classes: of these it draws each as often as it occurs."""
    num_images: Count | None = None
    """Images of the set, as many of each class; the images of a class take turns as sources, from its first image on whatever the
    --seed. A set that is gone on with keeps what it has beyond that."""
    noise: tuple[NonNegative, ...] = (0.1,)
    """Deviation of the noise added to a condition; each image draws one of these."""
    interpolation: tuple[Share, ...] = (0.0,)
    """Share of a partner's condition, another image's, mixed in; each image draws one of these."""
    partners: Literal["class", "any"] = "class"
    """Where partners come from: images of the same class, or any. Never the image itself."""
    unconditional: Literal["mean", "empty"] | None = None
    """What guidance of a Stable Diffusion leads away from: the mean of the learned conditions (the default), or the empty
    prompt (needs the package transformers)."""
    eta: Share | None = None
    """Noise that DDIM adds at each step of a Stable Diffusion (default: 1.0). RCG pipelines have samplers of their own."""
    rdm_num_inference_steps: Size | None = None
    """With --from-rdm: denoising steps of the representation (default: the pipeline's)."""
    rdm_guidance_scale: NonNegative | None = None
    """With --from-rdm: guidance of the RDM; 1.0 is off (default: the pipeline's)."""
    filter_data: str | None = None
    """Drop images whose representation fell out of their class, as judged by these labelled real images; others are drawn
    for them."""
    filter_encoder: str | None = None
    """Whose representations the filter compares: folder of an encoder, or of a pipeline that has one (default: --model)."""
    neighbors: Size = 10
    """Nearest real images that the filter asks."""
    agreement: PositiveShare = 0.5
    """Share of them that must be of the image's class."""
    attempts: Size = 5
    """Images drawn for a place, before it is left empty."""
    hard: Path | None = None
    """Folder of a classifier (rcg-eval --classifier-out): of several candidates for each place, the one of which it is least
    certain (by entropy) is kept."""
    candidates: Size = 4
    """Candidates that --hard chooses from."""
    shards: bool = False
    """Write WebDataset shards, KEY.png and KEY.json, instead of folders."""
    images_per_shard: Count | None = None
    """With --shards: images in each (default: 1000). A process fills whole shards."""


def check(config: Config) -> bool:
    """Whether a labelled set is asked for; `UserError` for flags that do not go together."""
    chosen = config.sets
    given = chosen.given()
    sources = [name for name in SOURCES if name in given]
    others = [name for name in ("captions", "representations") if getattr(config, name) is not None]
    if not sources:
        if given := sorted(given, key=lambda name: name == "num_images"):
            raise UserError(
                f"{flag_of(given[0])} is for labelled sets; add --from-inversion, --from-images or --from-rdm."
            )
        return False
    if len(sources + others) > 1:
        first, second = (flag_of(name) for name in (sources + others)[:2])
        raise UserError(f"{first} and {second} exclude each other; choose one.")
    _check_unused(config, sources[0])
    if chosen.num_images is None:
        raise UserError("say how many images to draw with --num-images N.")
    for name in ("noise", "interpolation"):
        if not getattr(chosen, name):
            raise UserError(f"--{name} is an empty list; give one value or more.")
    if config.format == "jpg":
        raise UserError("labelled sets are kept as PNG, whose text traces each image; leave out --format jpg.")
    return True


def _check_unused(config: Config, source: str) -> None:
    """Raise `UserError` for a flag that would do nothing."""
    chosen, given = config.sets, config.sets.given()
    for field in fields(config):
        if field.name not in (*_USED, "spreading") and getattr(config, field.name) != field.default:
            raise UserError(f"{flag_of(field.name)} has no effect with {flag_of(source)}; leave it out.")
    needs = {
        "filter_encoder": "filter_data", "neighbors": "filter_data", "agreement": "filter_data", "attempts": "filter_data",
        "candidates": "hard", "images_per_shard": "shards", "rdm_num_inference_steps": "from_rdm",
        "rdm_guidance_scale": "from_rdm", "unconditional": "from_inversion", "eta": "from_inversion",
    }  # fmt: skip
    for name, needed in needs.items():
        if name in given and needed not in given:
            raise UserError(f"{flag_of(name)} is for {flag_of(needed)}; add that or leave it out.")
    if source == "from_rdm":
        for name in ("noise", "interpolation", "partners"):
            if name in given:
                raise UserError(f"--{name} varies conditions of real images; leave it out with --from-rdm.")
    elif config.classes is not None:
        raise UserError(f"--classes has no effect with {flag_of(source)}, whose images have theirs; leave it out.")
    if config.spreading.engine == "ray" or config.spreading.part is not None:
        flag = "--engine ray" if config.spreading.engine == "ray" else "--part"
        raise UserError(f"{flag} is for images of captions; labelled sets are shared out by torchrun.")
    if "partners" in given and max(chosen.interpolation, default=0) == 0:
        raise UserError("--partners has no effect without --interpolation; add that, or leave it out.")


def _scales(config: Config, own: float) -> tuple[float, ...]:
    from rcg.synthesis.plan import parse_scales

    words = config.guidance_scales
    return (own,) if words in ((), ("own",)) else parse_scales(words)


def _generator(config: Config) -> FrozenGenerator:
    """The frozen generator: of an inversion, the very one that was inverted."""
    from rcg.inversion.opening import open_frozen
    from rcg.inversion.table import ConditionTable
    from rcg.synthesis.drawers import kind_of

    chosen, steps = config.sets, config.num_inference_steps
    if chosen.from_inversion is None:
        if kind_of(config.model) != "RCGPipeline":
            raise UserError("--from-images and --from-rdm need an RCG pipeline; give the folder of one as --model.")
        return open_frozen(config.model, steps=steps, init="encoder" if chosen.from_images is not None else "zero")
    manifest = ConditionTable(chosen.from_inversion).manifest
    other = UserError(
        f"{chosen.from_inversion} holds conditions of another generator ({manifest['model']}) than {config.model}; give that one."
    )
    if (kind_of(config.model) == "RCGPipeline") != (manifest["kind"] == "rcg"):
        raise other
    if manifest["kind"] == "rcg":
        if chosen.unconditional is not None:
            raise UserError("--unconditional has no effect with an RCG pipeline, which takes no text; leave it out.")
        made = open_frozen(config.model, steps=steps, eta=chosen.eta, init="zero")
    else:
        tokens = manifest["shape"][0]
        made = open_frozen(config.model, manifest["image_size"], tokens, steps=steps, eta=chosen.eta)
    if made.identity() != manifest["model_hash"]:
        raise other
    return made


def _chooser(config: Config, count: int, labels: np.ndarray | None, own: float) -> Chooser:
    from rcg.inversion.choices import Chooser, Variation

    chosen = config.sets
    variation = Variation(chosen.noise, chosen.interpolation, _scales(config, own), chosen.partners)
    return Chooser(count, labels, variation, config.seed)


def _from_inversion(config: Config, generator: FrozenGenerator) -> tuple[Proposer, list[str]]:
    import torch

    from rcg.inversion.proposers import FromTable
    from rcg.inversion.stable_diffusion import StableDiffusion
    from rcg.inversion.table import ConditionTable

    assert config.sets.from_inversion is not None
    table = ConditionTable(config.sets.from_inversion)
    table.require_trained()
    own = GUIDANCE
    if isinstance(generator, StableDiffusion):
        empty = config.sets.unconditional == "empty"
        generator.unconditional = generator.empty_prompt() if empty else torch.from_numpy(table.mean())
    else:
        own = _own_scale(generator)
    chooser = _chooser(config, len(table), table.labels, own)
    return FromTable(table.conditions, table.ids, table.fingerprint(), chooser), list(table.manifest["class_names"])


def _own_scale(generator: Any) -> float:
    return float(generator.pipe.settings()["guidance_scale"])


def _first() -> bool:
    from rcg.core.parts import Share as Processes

    return Processes.from_environment().rank == 0


def _from_images(config: Config, generator: Any, device: torch.device) -> tuple[Proposer, list[str]]:
    import hashlib

    from rcg.data.sources import open_source
    from rcg.inversion.proposers import FromTable
    from rcg.inversion.representations import encode_images
    from rcg.inversion.table import image_ids

    encoder = generator.pipe.encoder
    assert config.sets.from_images is not None
    source = open_source(config.sets.from_images)
    table = encode_images(encoder, source, generator.image_size, device, progress=_first()).numpy()
    digest = hashlib.sha256(f"{source.fingerprint}{source.label_digest()}".encode() + table.tobytes()).hexdigest()[:16]
    chooser = _chooser(config, len(table), source.labels, _own_scale(generator))
    plain = bool(encoder.config.standardize) and len(encoder.config.parts) == 1
    made = FromTable(table, image_ids(source), digest, chooser, standardized=plain)
    return made, list(source.class_names)


def _from_rdm(config: Config, generator: Any) -> tuple[Proposer, list[str]]:
    from rcg.core.files import model_hash
    from rcg.inversion.proposers import FromRDM
    from rcg.synthesis.prompts import read_captions

    pipe, chosen = generator.pipe, config.sets
    rdm = pipe.representation_generator
    if rdm is None:
        raise UserError(f"{config.model} has no RDM to draw representations with; give a pipeline that has one.")
    known = int(rdm.model.config.num_classes)
    if rdm.model.config.label_counts is not None:
        for name, given in (("classes", config.classes), ("filter_data", chosen.filter_data)):
            if given is not None:
                raise UserError(
                    f"{flag_of(name)} is for classes, but the RDM of {config.model} draws {known} clusters, found without labels; "
                    "leave it out, or give a pipeline whose RDM knows classes."
                )
        known = 0
    names = [str(i) for i in range(known)]
    if config.classes is not None:
        names = read_captions(config.classes)
        if len(names) != known or known == 0:
            raise UserError(
                f"{config.classes} names {len(names)} classes, but the RDM knows {known}; name these, in order."
            )
    settings = pipe.settings(
        rdm_num_inference_steps=chosen.rdm_num_inference_steps, rdm_guidance_scale=chosen.rdm_guidance_scale
    )
    made = FromRDM(
        rdm,
        model_hash(rdm.model),
        list(range(known)) if known else [None],
        config.seed,
        _scales(config, _own_scale(generator)),
        settings["rdm_num_inference_steps"],
        settings["rdm_guidance_scale"],
    )
    return made, names


def _filter(config: Config, generator: Any, names: list[str], device: torch.device) -> ClassFilter | None:
    import numpy as np

    from rcg.core.components import load_model
    from rcg.core.files import model_hash
    from rcg.data.sources import open_source
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.inversion.representations import encode_images
    from rcg.inversion.selection import ClassFilter

    chosen = config.sets
    if chosen.filter_data is None:
        return None
    if not names:
        raise UserError("--filter-data judges by classes, but these images have none; leave it out.")
    encoder = getattr(getattr(generator, "pipe", None), "encoder", None)
    if chosen.filter_encoder is not None:
        encoder = load_model(SSLEncoder, chosen.filter_encoder)
    if encoder is None:
        raise UserError(f"--filter-data needs an encoder, and {config.model} has none; give --filter-encoder DIR.")
    source = open_source(chosen.filter_data)
    if source.labels is None:
        raise UserError(
            f"--filter-data {chosen.filter_data}: its images have no classes; put each into the folder of its class."
        )
    theirs: list[str] = list(source.class_names)
    if missing := [name for name in names if name not in theirs]:
        if not all(name.isdecimal() for name in names) or len(names) != len(theirs):
            raise UserError(
                f"--filter-data {chosen.filter_data} has no class {missing[0]!r}; give images of all classes."
            )
        theirs = names  # classes that are known by number only
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number.get(theirs[label], -1) for label in source.labels], np.int64)
    found = encode_images(encoder, source, generator.image_size, device, progress=_first())
    return ClassFilter(encoder, model_hash(encoder), found, labels, chosen.neighbors, chosen.agreement)


def _hard(config: Config, generator: FrozenGenerator, device: torch.device) -> Hard | None:
    from rcg.core.components import load_model
    from rcg.core.files import model_hash
    from rcg.eval.classifier import ImageClassifier
    from rcg.inversion.selection import Hard

    if config.sets.hard is None:
        return None
    classifier = load_model(ImageClassifier, config.sets.hard)
    if (size := classifier.config.image_size) != generator.image_size:
        raise UserError(
            f"the classifier in {config.sets.hard} takes {size} px, but images of {generator.image_size} px are made."
        )
    return Hard(classifier.to(device), model_hash(classifier), config.sets.candidates)


def run(config: Config) -> None:
    """Make this process's share of a labelled set; see `rcg.inversion.engine.make_set`."""
    from diffusers.utils import logging

    from rcg.core.hardware import own_device, pick_bf16
    from rcg.core.parts import Share as Processes
    from rcg.inversion.engine import balanced, make_set
    from rcg.inversion.stores import PER_SHARD, ClassFolders, Shards

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    chosen, share = config.sets, Processes.from_environment()
    device = own_device(config.device, share)
    if share.world == 1:  # others may be at work there
        kind = Shards if chosen.shards else ClassFolders
        kind(config.out, ()).check(resume=config.resume, overwrite=config.overwrite)
    generator = _generator(config)
    generator.prepare(device, pick_bf16(config.precision, device), False)
    hard = _hard(config, generator, device)
    if chosen.from_inversion is not None:
        proposer, names = _from_inversion(config, generator)
    elif chosen.from_images is not None:
        proposer, names = _from_images(config, generator, device)
    else:
        proposer, names = _from_rdm(config, generator)
    assert chosen.num_images is not None
    identity = {"model": generator.identity()}
    if chosen.from_inversion is not None and generator.kind == "stable-diffusion":
        identity["unconditional"] = chosen.unconditional or "mean"
    store: ClassFolders | Shards
    if chosen.shards:
        store = Shards(config.out, names, share, chosen.images_per_shard or PER_SHARD, config.model)
    else:
        store = ClassFolders(config.out, names, share)
    records = make_set(
        generator,
        proposer,
        balanced(chosen.num_images, proposer.classes),
        store,
        identity=" ".join(f"{k} {v}" for k, v in identity.items()),
        class_names=names,
        keep=_filter(config, generator, names, device),
        hard=hard,
        attempts=chosen.attempts,
        batch_size=config.batch_size,
        resume=config.resume,
        overwrite=config.overwrite,
        progress=share.rank == 0,
    )
    print(f"{len(records)} images are in {config.out}.")
