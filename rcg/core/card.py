"""The model card: README.md of a published pipeline, front matter for the Hub and text for people. A leaf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rcg.core.schema import is_number

PAPER = "https://arxiv.org/abs/2312.03701"

_TEXT = """# {name}

{kind}
{grid}
## Use

```python
import torch
from rcg import RCGPipeline

pipe = RCGPipeline.from_pretrained("{repo_id}")
{call}

## Training data

{dataset}

## Recipe

{recipe}

## Metrics

{metrics}

## Components

{components}

Sampling settings that the model carries (every one can be overridden in a call):

{sampling}

## Licence

{license}
"""

_DRAW = """images = pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images  # four PIL images
```

Or from a shell: `rcg-sample --model {repo_id} --num-images 16 --out samples --seed 0`"""
_DRAW_FROM = """images = pipe(representations=representations).images  # float [B, D], of the encoder that it was trained with
```"""


@dataclass(frozen=True)
class ModelKind:
    """What a model is, for its card.

    Attributes:
        text: sentences for people.
        tags: for the Hub, beside the library's own.
        draws: whether a call needs no representations to make images.
    """

    text: str
    tags: tuple[str, ...] = ()
    draws: bool = True


MADE_WITH = "Made with the `rcg` library."
PLAIN = ModelKind(f"An image generator. {MADE_WITH}")


def describe(condition: str, painting: str, drawing: str | None, num_classes: int, counted: bool = False) -> ModelKind:
    """What a pipeline is, by its parts.

    Args:
        condition: of the image generator.
        painting: what the image generator does, as a main clause without a full stop.
        drawing: what draws representations, as a noun with its article; None without an RDM.
        num_classes: classes or clusters that a call may choose from, 0 if none.
        counted: whether the model knows how often each occurs, which is told for clusters only.
    """
    about = (f"arxiv:{PAPER.rpartition('/')[2]}", "self-supervised-representations")
    if condition == "none":
        return ModelKind(f"An unconditional image generator: {painting}. {MADE_WITH}")
    if condition == "class":
        text = (
            f"A class-conditional image generator: {painting}, told one of {num_classes} classes. A call that names none "
            "draws it."
        )
        return ModelKind(f"{text} {MADE_WITH}")
    if condition == "cluster":
        text = (
            f"An image generator that needs no labels: {painting}, told one of {num_classes} clusters of self-supervised "
            "representations. A call that names none draws it."
        )
        return ModelKind(f"{text} {MADE_WITH}", about[1:])
    paper = f"[Return of Unconditional Generation]({PAPER})"
    if drawing is None:
        text = (
            f"The image generator of an RCG ({paper}): from a self-supervised representation, {painting}. It comes without a "
            "model that draws representations, so every call needs some."
        )
        return ModelKind(f"{text} {MADE_WITH}", about, draws=False)
    unconditional = "" if num_classes and not counted else "unconditional "
    kinds = "clusters that such representations form without any label" if counted else "classes"
    told = f", told one of {num_classes} {kinds}" if num_classes else ""
    text = (
        f"An {unconditional}image generator of the RCG kind ({paper}): {drawing} draws a self-supervised representation "
        f"from noise{told}, and from it {painting}."
    )
    return ModelKind(f"{text} {MADE_WITH}", about)


@dataclass
class CardInfo:
    """What a model card says beyond the model itself."""

    dataset: str | None = None
    """Name of the training data, or its id on the Hub."""
    license: str | None = None
    """Licence id as the Hub spells it, e.g. `mit`."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """A report of `rcg-eval`, or numbers by name; what is no finite number is left out."""
    grid: Path | None = None
    """A PNG with samples."""
    recipe: str | None = None
    """How the model was trained: commands, or where they are written."""


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a (nested) mapping, named by their path, e.g. `fid` or `precision_recall/f_score`."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, f"{prefix}{key}/")
        elif is_number(value):
            flat[f"{prefix}{key}"] = value
    return flat


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an `rcg-eval` report (its `metrics` entry), or of a plain mapping."""
    inner = metrics.get("metrics")
    return flat_metrics(inner if isinstance(inner, Mapping) else metrics)


def _circumstances(report: Mapping[str, Any]) -> str:
    """How an `rcg-eval` report was measured, as a sentence for the card; empty where it does not say."""
    counts = report.get("counts")
    extractor = report.get("extractor")
    parts = []
    if isinstance(counts, Mapping):
        parts += [f"{value} {key} images" for key, value in counts.items() if value is not None]
    if isinstance(extractor, Mapping) and extractor.get("name"):
        parts.append(f"features of `{extractor['name']}`")
    return f"\n\nMeasured by `rcg-eval`: {', '.join(parts)}." if parts else ""


def model_card(repo_id: str, model_index: Mapping[str, Any], info: CardInfo, kind: ModelKind = PLAIN) -> str:
    """The README.md of a model repository: YAML front matter for the Hub, then text for people.

    Args:
        repo_id: `user/name`.
        model_index: contents of the folder's `model_index.json`.
        info: data set, recipe, licence, metrics and grid; what is absent is said to be absent.
        kind: what the model is.
    """
    name = repo_id.split("/")[-1]
    metrics = figures(info.metrics)
    dataset_id = info.dataset if info.dataset and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", info.dataset) else None
    results = [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=dataset_id or "custom",
            dataset_name=info.dataset or "not stated",
            metric_type=key,
            metric_value=round(value, 6),
        )
        for key, value in metrics.items()
    ]
    data = ModelCardData(
        library_name="rcg",
        pipeline_tag="unconditional-image-generation",
        tags=["rcg", "diffusers", "image-generation", *kind.tags],
        license=info.license,
        datasets=[dataset_id] if dataset_id else None,
        metrics=sorted({key.split("/")[-1] for key in metrics}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    components = {k: v[1] for k, v in model_index.items() if isinstance(v, list | tuple) and len(v) == 2 and v[1]}
    table = "".join(f"| {key} | {value:.4g} |\n" for key, value in metrics.items())
    text = _TEXT.format(
        name=name,
        repo_id=repo_id,
        kind=kind.text,
        call=_DRAW.format(repo_id=repo_id) if kind.draws else _DRAW_FROM,
        grid="\n![Samples](grid.png)\n" if info.grid else "",
        dataset=f"Trained on **{info.dataset}**." if info.dataset else "The training data were not stated.",
        recipe=info.recipe or "How it was trained was not stated.",
        metrics=f"| metric | value |\n|---|---|\n{table}".rstrip() + _circumstances(info.metrics)
        if metrics
        else "None were measured.",
        components="\n".join(f"- `{key}`: `{value}`" for key, value in sorted(components.items())),
        sampling="\n".join(
            f"- `{key}`: {'default' if value is None else value}"
            for key, value in (model_index.get("sampling") or {}).items()
        ),
        license=f"`{info.license}`" if info.license else "The licence of these weights was not stated.",
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"
