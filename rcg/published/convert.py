"""Published weight files → components and pipelines of this library, every key accounted for.

What a file is, is told by its keys (`identify`). Each kind has one reader, in the room of the model it becomes; this
module puts what several files hold together, and checks that they belong together: RDM, MAGE and LDM files of RCG carry
the frozen encoder (and the tokenizer) they were trained with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg import __version__
from rcg.core.errors import UserError, first_line
from rcg.core.files import atomic_folder, write_json
from rcg.core.state_dicts import Conversion, read_checkpoint, some, tensors_within, without_wrapper
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.ldm.generator import default_scheduler as ldm_scheduler
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.pipeline import RCGPipeline
from rcg.published.adm import convert_adm
from rcg.published.dit import convert_dit
from rcg.published.encoders import FORMATS, convert_contents, detect_format, encoder_from_state
from rcg.published.latent_vq import CARRIED, convert_latent_vq, names_of
from rcg.published.ldm import convert_ldm
from rcg.published.mage import convert_mage
from rcg.published.options import Options
from rcg.published.rdm import convert_official_rdm
from rcg.published.vqgan import MAGE_PREFIX, convert_vqgan
from rcg.rdm.schedule import fast_scheduler

COMPONENTS = {
    "rdm": "rdm",
    **dict.fromkeys(("mage", "dit", "adm", "ldm"), "image_generator"),
    **dict.fromkeys(("vqgan", "latent-vq"), "tokenizer"),
    **dict.fromkeys(FORMATS, "encoder"),
}
KINDS = tuple(COMPONENTS)
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "rdm": lambda config: fast_scheduler(),
    "mage": lambda config: MaskGITScheduler(mask_token_id=config.mask_token_id),
    "dit": lambda config: default_scheduler(),
    "adm": lambda config: default_scheduler(),
    "ldm": lambda config: ldm_scheduler(),
}
"""What belongs to a component, by its kind and its model's config."""
WHOLE = {"mage": "tokenizer", "ldm": "tokenizer", "adm": None}
"""Generators whose files make pipelines, and the component that such a pipeline needs and the file carries."""
SIZES = {768: "b", 1024: "l", 1280: "h"}  # of MAGE, by width
OF_ENCODERS = ("encoder_num_heads", "head")
CHOICES: dict[str, tuple[str, ...]] = {
    "rdm": ("weights",),
    "mage": ("generator_num_heads", "generator_decoder_num_heads"),
    "dit": ("weights", "generator_num_heads"),
    **dict.fromkeys(("adm", "ldm"), ("weights", "generator_image_size")),
    "latent-vq": ("generator_image_size",),
    "vqgan": (),
    **dict.fromkeys(FORMATS, OF_ENCODERS),
}
"""The `Options` that files of a kind offer."""
REPORT = "conversion.json"
EMBEDDED = {"encoder": ("pretrained_encoder.",), "tokenizer": (MAGE_PREFIX, CARRIED)}


@dataclass
class Converted:
    """What was made of published files: a single component, or a pipeline if a generator of `WHOLE` was among them."""

    files: list[Path]
    parts: dict[str, Conversion[Any]]
    """Component → how it was read."""
    sources: dict[str, Path]
    """Component → the file it came from."""
    pipe: RCGPipeline | None = None
    notes: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The whole account as plain JSON: what became of every key of every file."""
        return {
            "rcg_version": __version__,
            "files": [fingerprint(path) for path in self.files],
            "components": {
                name: {
                    "file": self.sources[name].name,
                    "kind": part.kind,
                    "parameters": part.parameters,
                    "loaded": part.loaded,
                    "dropped": part.dropped,
                    "unexpected": {},
                    "notes": part.notes,
                }
                for name, part in self.parts.items()
            },
            "notes": self.notes,
        }

    def summary(self) -> str:
        """The same in a few lines for a terminal."""
        lines: list[str] = []
        for name, part in self.parts.items():
            reasons: dict[str, list[str]] = {}
            for key, reason in part.dropped.items():
                reasons.setdefault(reason, []).append(key)
            lines.append(f"{name}: {part.kind}, {part.parameters / 1e6:.1f} M parameters, from {self.sources[name]}")
            lines.append(f"  {len(part.loaded)} keys loaded, {len(part.dropped)} left out, none unexpected")
            lines += [f"  left out: {some(keys)}: {reason}" for reason, keys in reasons.items()]
            lines += [f"  note: {note}" for note in part.notes]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def save(self, folder: Path) -> None:
        """Write a loadable folder with `REPORT` in it, in one move.

        A component lies there as the training commands leave it: config, safetensors and, where there is one, scheduler.
        """
        with atomic_folder(folder) as temporary:
            if self.pipe is not None:
                self.pipe.save_pretrained(temporary)
            else:
                (part,) = self.parts.values()
                part.model.save_pretrained(temporary)
                if part.kind in SCHEDULERS:
                    SCHEDULERS[part.kind](part.model.config).save_pretrained(temporary)
            write_json(temporary / REPORT, self.report())


def state_in(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: those under its usual container, else those at its top level; no wrapper's prefix."""
    return without_wrapper(tensors_within(contents))[0]


def identify(contents: Mapping[str, Any]) -> str | None:
    """What a checkpoint is, by its keys: a name in `KINDS`, or None."""
    state = state_in(contents)
    if any(key.startswith(("model.diffusion_model.res_blocks.", "model.diffusion_model.input_proj.")) for key in state):
        return "rdm"
    if "model.diffusion_model.input_blocks.0.0.weight" in state:
        return "ldm"
    if {"input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight"} <= state.keys():
        return "adm"
    if "token_emb.word_embeddings.weight" in state:
        return "mage"
    if {"x_embedder.proj.weight", "final_layer.linear.weight", "rep_embedder.weight"} <= state.keys():
        return "dit"
    if {"quantize.embedding.weight", "quant_conv.weight"} <= state.keys():
        return "latent-vq"
    if "quantize.embedding.weight" in state:
        return "vqgan"
    return detect_format(contents)


@dataclass(frozen=True)
class PublishedFile:
    """A file of a known kind, opened."""

    path: Path
    kind: str
    """A name in `KINDS`."""
    contents: Mapping[str, Any]

    @property
    def component(self) -> str:
        """The pipeline's component that the file is about."""
        return COMPONENTS[self.kind]

    @property
    def choices(self) -> tuple[str, ...]:
        """The `Options` that it offers."""
        one_set = self.kind == "adm" and "model" not in self.contents  # guided-diffusion's
        return tuple(name for name in CHOICES[self.kind] if not (one_set and name == "weights"))

    def carried(self, part: str) -> dict[str, Tensor]:
        """The weights of the encoder or tokenizer that a file carries along, under their own names."""
        state, prefixes = state_in(self.contents), EMBEDDED[part]
        return {k.removeprefix(p): v for k, v in state.items() for p in prefixes if k.startswith(p)}


def open_file(path: Path) -> PublishedFile:
    """Read a file (its tensors are memory-mapped) and tell what it is.

    Raises:
        UserError: the file cannot be read, or is of no known kind.
    """
    contents = read_checkpoint(path)
    kind = identify(contents)
    if kind is None:
        held = some(state_in(contents)) or some(map(str, contents)) or "nothing"
        raise UserError(
            f"{path} holds {held} and is no published checkpoint of a known kind ({', '.join(KINDS)}); rcg-inspect says "
            "more."
        )
    return PublishedFile(path, kind, contents)


def convert(file: PublishedFile, options: Options | None = None) -> Conversion[Any]:
    """Read a published file into the component it is about.

    Raises:
        UserError: keys missing, unexpected or of the wrong shape; choices that this kind does not offer.
    """
    options = options or Options()
    options.refuse_others(file.choices, f"{file.path}, which is of kind {file.kind}")
    return _read(file, options)


def _read(file: PublishedFile, options: Options) -> Conversion[Any]:
    try:
        return _convert(file, options)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as e:  # of sizes read off odd tensors
        reason = first_line(e, 120)
        raise UserError(
            f"{file.path} looks like {file.kind}, but its tensors are not those of one ({reason}); fetch it again."
        ) from e


def _convert(file: PublishedFile, options: Options) -> Conversion[Any]:
    source, weights = str(file.path), options.weights or "ema"
    if file.kind == "rdm":
        return convert_official_rdm(file.contents, weights, source)
    if file.kind == "mage":
        return convert_mage(
            file.contents,
            source,
            num_heads=options.generator_num_heads,
            decoder_num_heads=options.generator_decoder_num_heads,
        )
    if file.kind == "dit":
        return convert_dit(file.contents, weights, source, num_heads=options.generator_num_heads)
    if file.kind == "adm":
        return convert_adm(file.contents, source, weights, options.generator_image_size)
    if file.kind == "ldm":
        return convert_ldm(file.contents, source, weights, options.generator_image_size)
    if file.component == "tokenizer":
        return _tokenizer(file, options)
    return convert_contents(
        file.contents,
        source,
        format=file.kind,
        num_heads=options.encoder_num_heads,
        head=options.head or "projection",
    )


def _tokenizer(file: PublishedFile, options: Options) -> Conversion[Any]:
    """Read a tokenizer out of its own file, or out of a generator's that carries it."""
    if file.kind in ("vqgan", "mage"):
        return convert_vqgan(file.contents, str(file.path))
    return convert_latent_vq(file.contents, str(file.path), options.generator_image_size)


def convert_files(
    paths: Sequence[Path],
    options: Options | None = None,
    *,
    sampling: Mapping[str, Any] | None = None,
    size: Literal["b", "l", "h"] | None = None,
) -> Converted:
    """Read published files, in any order: a MAGE, LDM or ADM file, alone or with others, into a pipeline; another one alone,
    into the component it is about.

    Args:
        paths: the files.
        options, sampling, size: see `convert_pipeline`; the last two are for a pipeline only.

    Raises:
        UserError: see `open_file`, `convert` and `convert_pipeline`.
    """
    options, files = options or Options(), [open_file(path) for path in paths]
    if len(files) > 1 or files[0].kind in WHOLE:
        return convert_pipeline(files, options, sampling=sampling, size=size)
    (file,) = files
    if sampling or size:
        raise UserError(
            f"{file.path} is a single {file.component}, which has no sampling settings and no size; add the file of a "
            "MAGE, LDM or ADM, or leave --config and these flags out."
        )
    return Converted([file.path], {file.component: convert(file, options)}, {file.component: file.path})


def convert_pipeline(
    files: Sequence[PublishedFile],
    options: Options | None = None,
    *,
    sampling: Mapping[str, Any] | None = None,
    size: Literal["b", "l", "h"] | None = None,
) -> Converted:
    """Put published files together to a pipeline.

    Args:
        files: one MAGE, LDM or ADM file, and at most one RDM, encoder and tokenizer file. Encoder and tokenizer may be left
            out: MAGE and LDM files carry both (an ADM needs no tokenizer, and its file carries no encoder). Given all the
            same, they must equal those that generator and RDM were trained with.
        options: choices.
        sampling: the model's default settings (see `rcg.sampling.inputs.Sampling`).
        size: refuse a MAGE of another size.

    Raises:
        UserError: two files of one kind, no generator's file, or files that do not belong together.
    """
    options = options or Options()
    given: dict[str, PublishedFile] = {}
    for file in files:
        if (other := given.get(file.component)) is not None:
            raise UserError(
                f"{other.path} ({other.kind}) and {file.path} ({file.kind}) are both the {file.component}; give one."
            )
        given[file.component] = file
    generator = given.get("image_generator")
    if generator is not None and generator.kind not in WHOLE:
        raise UserError(
            f"{generator.path} holds a {generator.kind} generator, whose tokenizer is no published file of its own kind; "
            "convert one file at a time, and put them together with rcg-assemble."
        )
    if generator is None:
        raise UserError(
            f"none of {', '.join(str(f.path) for f in files)} is a MAGE, LDM or ADM generator, without which there is no "
            "pipeline; add its file, or convert one file at a time."
        )
    parts = {"image_generator": _read(generator, options)}
    sources = {name: file.path for name, file in given.items()}
    config, name = parts["image_generator"].model.config, generator.kind.upper()
    article = "a" if name == "MAGE" else "an"
    if size is not None and (name != "MAGE" or SIZES.get(config.width) != size):
        width = config.get("width")
        found = f"{name}-{SIZES[width].upper()}" if width in SIZES else f"{name} of width {width}" if width else name
        raise UserError(
            f"{generator.path} holds {article} {found}, but size {size} was asked for; give the file or preset that fits."
        )
    if "rdm" not in given and (sampling or {}).get("rdm_num_inference_steps") is not None:
        raise UserError(
            "rdm_num_inference_steps cannot be used: there is no RDM among the files; add one or leave it out."
        )
    takes_representations = config.condition == "representation"
    if not takes_representations and (stray := [str(sources[n]) for n in ("rdm", "encoder") if n in given]):
        raise UserError(
            f"{generator.path} holds {article} {name} with condition {config.condition!r}, which takes no representations; "
            f"leave out {' and '.join(stray)}."
        )
    carried = generator.carried("encoder") if takes_representations and "encoder" not in given else {}
    offered = [*(name for file in files for name in file.choices), *(OF_ENCODERS if carried else ())]
    options.refuse_others(offered, "any of " + ", ".join(f"{file.path} ({file.kind})" for file in files))
    parts |= {name: _read(file, options) for name, file in given.items() if name != "image_generator"}
    if (needed := WHOLE[generator.kind]) is not None and needed not in parts:
        parts[needed], sources[needed] = _tokenizer(generator, options), generator.path
    if carried:
        parts["encoder"] = encoder_from_state(
            carried,
            f"the encoder in {generator.path}",
            num_heads=options.encoder_num_heads,
            head=options.head or "projection",
        )
        sources["encoder"] = generator.path
    notes = [
        note
        for part in EMBEDDED
        if part in parts
        for file in given.values()
        if file.component in ("rdm", "image_generator") and file.path != sources[part]
        for note in _verify(file, part, parts[part], sources[part])
    ]
    if takes_representations and "rdm" not in parts:
        able = "reconstruct images" if "encoder" in parts else "use representations that it is given"
        notes.append(f"there is no RDM among the files: the pipeline can {able}, but not draw new ones.")
    pipe = RCGPipeline(
        image_generator=parts["image_generator"].model,
        image_scheduler=SCHEDULERS[generator.kind](config),
        tokenizer=parts["tokenizer"].model if "tokenizer" in parts else None,
        rdm=parts["rdm"].model if "rdm" in parts else None,
        rdm_scheduler=fast_scheduler() if "rdm" in parts else None,
        encoder=parts["encoder"].model if "encoder" in parts else None,
        sampling=dict(sampling or {}),
    )
    return Converted([file.path for file in files], parts, sources, pipe, notes)


def _verify(trainee: PublishedFile, part: str, chosen: Conversion[Any], source: Path) -> list[str]:
    """Compare the encoder or tokenizer that a file carries with the one that goes into the pipeline.

    Returns:
        A sentence on what was found; none if the file carries no such thing.

    Raises:
        UserError: they differ, so that `trainee` was trained with another one.
    """
    own = {name.removeprefix("backbone."): tensor for name, tensor in chosen.model.state_dict().items()}
    # A mapping of its own, which ends here: what is only compared need not stay in memory.
    fresh = PublishedFile(trainee.path, trainee.kind, read_checkpoint(trainee.path)).carried(part)
    names = {key: key.replace("head.mlp.", "head.") for key in fresh}  # DINO's head
    if chosen.kind == "latent-vq":
        names = names_of(fresh)
    carried = {name: fresh[key] for key, name in names.items() if name in own}
    for name, theirs in carried.items():
        ours = own[name].to(theirs.dtype)  # an attention's matrices are 1×1 convolutions in a latent-vq file
        if theirs.numel() != ours.numel() or not torch.equal(theirs.reshape(ours.shape), ours):
            raise UserError(
                f"{trainee.path} was trained with another {part} than the one in {source} ({name} differs); give the "
                f"{part} it was trained with."
            )
    if not carried:
        return []
    return [
        f"the {part} in {source} is the one that {trainee.path} was trained with ({len(carried)} tensors are equal)."
    ]


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size in bytes and SHA-256 of a file: where weights come from."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
