"""What is this file or folder? Kind, size, parameters, averaged weights or not, and what to run next. Nothing is executed."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcg.core.components import check_pipeline_folder, component_class, read_config, weight_headers
from rcg.core.errors import UserError
from rcg.core.state_dicts import read_checkpoint, some
from rcg.data.layout import is_cache, read_manifest
from rcg.image_gen.families import FAMILIES, TOKENIZERS
from rcg.published.convert import COMPONENTS, EMBEDDED, WHOLE, PublishedFile, convert, identify, state_in
from rcg.published.dit import EMA as AVERAGED
from rcg.published.options import Options
from rcg.published.rdm import EMA
from rcg.rdm.methods import MODELS as RDMS

NAMES = {
    "mocov3": "a MoCo-v3 encoder",
    "dino": "a DINO encoder",
    "ibot": "an iBOT encoder",
    "deit": "a DeiT encoder (supervised)",
    "stablerep": "a StableRep encoder",
    "stablerep+": "a StableRep+ encoder",
    "rdm": "an RDM (representation diffusion model) of RCG",
    "mage": "a MAGE image generator of RCG",
    "dit": "a DiT image generator of RCG",
    "adm": "an ADM image generator of RCG or of guided-diffusion",
    "ldm": "an LDM image generator of RCG",
    "vqgan": "a MaskGIT VQGAN tokenizer",
    "latent-vq": "a VQ autoencoder of latent diffusion",
}
NEXT_OF_CLASS = {
    "SSLEncoder": "rcg-cache --data IMAGES --image-size SIZE --encoder {path} --out CACHE",
    **{c.__name__: "rcg-cache --data IMAGES --image-size SIZE --tokenizer {path} --out CACHE" for c in TOKENIZERS},
    **{c.__name__: "rcg-assemble --rdm {path} --generator DIR --tokenizer DIR --out MODEL" for c in RDMS},
    **{
        family.model.__name__: f"rcg-assemble --generator {{path}}{{rdm}}{' --tokenizer DIR' * bool(family.tokenizers)} --out MODEL"
        for family in FAMILIES.values()
    },
}
OUT_OF_COMPONENT = {"encoder": "encoder", "image_generator": "generator", "tokenizer": "tokenizer"}


@dataclass
class Inspection:
    """What was found; every field is plain JSON."""

    path: str
    what: str
    """A phrase: `a MAGE image generator of RCG`."""
    kind: str | None = None
    """A name in `rcg.published.convert.KINDS`, the class of a component, `pipeline`, `cache`, `run`, or None."""
    bytes: int = 0
    tensors: int = 0
    parameters: int | None = None
    """Of the model itself, without what its file carries along; None if it cannot be told."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """Number of tensors by dtype."""
    ema: bool | None = None
    """Whether averaged weights are in the file; None where the kind has none."""
    details: dict[str, Any] = field(default_factory=dict)
    """Sizes and settings, by name."""
    carries: list[str] = field(default_factory=list)
    """Other parts in the same file: encoder, tokenizer, optimizer, epoch, …"""
    problem: str | None = None
    """Why it cannot be used as it is."""
    next: str | None = None
    """The command to run next."""

    def add_weights(self, folder: Path) -> int:
        """Count a folder's safetensors in, from their headers; returns how many values they hold."""
        headers = weight_headers(folder)
        values = sum(math.prod(shape) for shape, _ in headers.values())
        self.bytes += sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        self.tensors += len(headers)
        self.dtypes = dict(Counter(self.dtypes) + Counter(dtype for _, dtype in headers.values()))
        self.parameters = (self.parameters or 0) + values
        return values

    def text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.path}: {self.what}", f"  size        {self.bytes / 2**20:.1f} MiB, {self.tensors} tensors"]
        if self.parameters is not None:
            lines.append(f"  parameters  {self.parameters:,} ({self.parameters / 1e6:.1f} M)")
        if self.dtypes:
            lines.append(f"  dtypes      {', '.join(f'{name} x{n}' for name, n in self.dtypes.items())}")
        if self.ema is not None:
            lines.append(f"  EMA         {'present' if self.ema else 'absent'}")
        lines += [f"  {name:<11} {value}" for name, value in self.details.items()]
        if self.carries:
            lines.append(f"  carries     {', '.join(self.carries)}")
        if self.problem:
            lines.append(f"  problem     {self.problem}")
        if self.next:
            lines.append(f"  next        {self.next}")
        return "\n".join(lines)


def inspect_path(path: Path) -> Inspection:
    """Look at a file or folder.

    Raises:
        UserError: it is not there, or cannot be read as weights at all.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; give the path of a checkpoint.")
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Inspection:
    if path.suffix == ".safetensors" and component_class(path.parent) is not None:
        return _folder(path.parent)
    contents = read_checkpoint(path)
    state = state_in(contents)
    kind = identify(contents)
    found = Inspection(
        path=str(path),
        what=NAMES.get(kind or "", "no checkpoint of a kind that this library knows"),
        kind=kind,
        bytes=path.stat().st_size,
        tensors=len(state),
        dtypes=dict(Counter(str(v.dtype).removeprefix("torch.") for v in state.values())),
        carries=[name for name, prefixes in EMBEDDED.items() if any(k.startswith(prefixes) for k in state)],
    )
    if "epoch" in contents:
        found.details["epoch"] = contents["epoch"]
    beside = {name: contents.get(name) for name in ("optimizer", "scaler", "student")}
    found.carries += [name for name, held in beside.items() if isinstance(held, Mapping) and held]
    if kind is None:
        found.details["first keys"] = some(state) or some(map(str, contents)) or "none"
        if any("Conv2d_1a_3x3" in key for key in state):
            found.what = "an Inception-v3 classifier"
            found.next = f"rcg-eval … --extractor-weights {shlex.quote(str(path))}"
        return found
    options, file = Options(), shlex.quote(str(path))
    if kind in ("rdm", "dit", "ldm") or (kind == "adm" and "model" in contents):  # guided-diffusion's are averaged
        found.ema = any(key.startswith(EMA) for key in state) or isinstance(contents.get(AVERAGED), Mapping)
        options.weights = "ema" if found.ema else "raw"
    try:
        conversion = convert(PublishedFile(path, kind, contents), options)
    except UserError as e:
        found.problem = str(e)
        return found
    found.parameters = conversion.parameters
    found.details |= _sizes(dict(conversion.model.config))
    found.carries += [f"note: {note}" for note in conversion.notes]
    if kind in WHOLE:
        config, flags = conversion.model.config, " --weights raw" if found.ema is False else ""
        preset = {768: " --config rcg-b", 1024: " --config rcg-l"}.get(config.get("width"), "")
        others = f" RDM_FILE{'' if 'encoder' in found.carries else ' ENCODER_FILE'}"
        words = f"{preset}{flags} {file}{others}" if config.condition == "representation" else f"{flags} {file}"
        found.next = f"rcg-convert{words} --out MODEL"
    elif kind == "rdm":
        flags = "" if found.ema else " --weights raw"
        found.next = f"rcg-convert{flags} {file} MAGE_FILE --out MODEL"
    else:
        flags = " --weights raw" if found.ema is False else ""
        found.next = f"rcg-convert{flags} {file} --out {OUT_OF_COMPONENT[COMPONENTS[kind]]}"
    return found


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a component that say how large it is and what it takes."""
    names = ("condition", "representation_dim", "num_classes", "width", "depth", "num_heads", "decoder_depth", "grid_size",
             "num_codes", "code_dim", "levels", "image_size", "sample_size", "patch_size", "learn_sigma", "base_channels", "channel_multipliers", "latent_channels",
             "scaling_factor", "arch", "head_type", "head_layers", "prediction_type")  # fmt: skip
    sizes = {name: config[name] for name in names if config.get(name) is not None}
    return sizes | dict(config.get("arch_kwargs") or {})


def _incomplete(path: Path) -> str | None:
    """What a pipeline lacks that is to be loaded; None for nothing."""
    from rcg.pipeline import RCGPipeline  # all families, which files need not

    try:
        check_pipeline_folder(path, RCGPipeline, RCGPipeline.model_classes, RCGPipeline.scheduler_classes)
    except UserError as e:
        return str(e)
    return None


def _folder(path: Path) -> Inspection:
    if (path / "model_index.json").is_file():
        index = read_config(path / "model_index.json")
        cls = index.get("_class_name")
        found = Inspection(str(path), f"a pipeline ({cls})", "pipeline")
        for name, entry in index.items():
            if not isinstance(entry, list):
                continue
            if len(entry) != 2:
                raise UserError(f"{path / 'model_index.json'}: {name!r} names no library and class; fetch it again.")
            if entry[1] is not None:
                values = found.add_weights(path / name)
                found.details[name] = f"{entry[1]}" + (f", {values / 1e6:.1f} M values" if values else "")
        if cls == "RCGPipeline":
            found.details["sampling"] = index.get("sampling")
            found.problem = _incomplete(path)
            if found.problem is None and (
                "rdm" in found.details or _condition(path / "image_generator") != "representation"
            ):
                found.next = f"rcg-sample --model {shlex.quote(str(path))} --out samples"
        elif "text_encoder" in found.details:
            found.next = f"rcg-synthesize --model {shlex.quote(str(path))} --captions FILE --out SHARDS"
        return found
    if (cls := component_class(path)) is not None:
        found = Inspection(str(path), f"a finished {cls}", cls)
        found.add_weights(path)
        if (path / "config.json").is_file():
            found.details = _sizes(read_config(path / "config.json"))
        rdm = " --rdm DIR" * (found.details.get("condition") == "representation")
        found.next = NEXT_OF_CLASS.get(cls, "").format(path=shlex.quote(str(path)), rdm=rdm) or None
        return found
    if is_cache(path):
        manifest = read_manifest(path)
        found = Inspection(str(path), "a cache of representations or tokens", "cache")
        found.bytes = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        found.details = {
            "images": manifest["source"]["count"],
            "views": manifest["transform"]["views"],
            "fields": ", ".join(manifest["fields"]),
        }
        words = "rdm"
        if "representations" not in manifest["fields"]:
            arch, family = next(one for one in FAMILIES.items() if one[1].field in manifest["fields"])
            words = f"generator --arch {arch} --condition none{' --tokenizer DIR' * bool(family.tokenizers)}"
        found.next = f"rcg-train-{words} --data {shlex.quote(str(path))} --out RUN"
        return found
    if (path / "training").is_dir():
        steps = sorted(p.name for p in (path / "training" / "checkpoints").glob("step-*"))
        found = Inspection(str(path), "an unfinished training run", "run")
        found.details = {"checkpoints": ", ".join(steps) or "none"}
        found.next = "the command that began it, with --resume"
        return found
    names = sorted(p.name for p in path.iterdir())
    raise UserError(
        f"{path} holds {some(names) or 'nothing'}, and neither weights nor a cache; give a checkpoint's path."
    )


def _condition(folder: Path) -> Any:
    """What the image generator in a folder takes."""
    file = folder / "config.json"
    return read_config(file).get("condition") if file.is_file() else None


def as_json(found: Inspection) -> str:
    """The inspection as indented JSON."""
    return json.dumps(found.__dict__, indent=2, default=str)
