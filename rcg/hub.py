"""Model folders and the Hugging Face Hub: saving, loading, our own model card, pushing, fetching. Knows no models."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from rcg.core.components import check_pipeline_folder
from rcg.core.errors import UserError
from rcg.core.files import atomic_folder, export_files
from rcg.core.pictures import png_text
from rcg.core.schema import is_number, read_json

MODEL_FILES = ["*.json", "*.safetensors"]
CARD_FILES = ["README.md", "grid.png", "metrics.json"]
PAPER = "https://arxiv.org/abs/2312.03701"
# The HTTP library under huggingface_hub changes with its version; its base error is the parent of HfHubHTTPError.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]

_TEXT = """# {name}

{kind}
{grid}
## Use

```python
import torch
from rcg import RCGPipeline

pipe = RCGPipeline.from_pretrained("{repo_id}")
images = pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images  # four PIL images
```

Or from a shell: `rcg-sample --model {repo_id} --num-images 16 --out samples --seed 0`

## Training data

{dataset}

## Metrics

{metrics}

## Components

{components}

Sampling settings that the model carries (every one can be overridden in a call):

{sampling}

## Licence

{license}
"""

_RCG = f"""An unconditional image generator of the RCG kind ([Return of Unconditional Generation]({PAPER})): a diffusion
model draws a representation from noise, an image generator turns it into tokens, and a tokenizer decodes them. Made with
the `rcg` library."""
_PLAIN = """An image generator: a masked token transformer reveals the tokens of an image in a few parallel steps, and a
tokenizer decodes them. Made with the `rcg` library."""


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


def model_card(repo_id: str, model_index: Mapping[str, Any], info: CardInfo) -> str:
    """The README.md of a model repository: YAML front matter for the Hub, then text for people.

    Args:
        repo_id: `user/name`.
        model_index: contents of the folder's `model_index.json`.
        info: data set, licence, metrics and grid; what is absent is said to be absent.
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
        tags=["rcg", "diffusers", "image-generation", "self-supervised-representations", "arxiv:2312.03701"],
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
        kind=_RCG if "rdm" in components else _PLAIN,
        grid="\n![Samples](grid.png)\n" if info.grid else "",
        dataset=f"Trained on **{info.dataset}**." if info.dataset else "The training data were not stated.",
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


def read_metrics(path: Path) -> dict[str, Any]:
    """The mapping in a metrics file that `rcg-eval` wrote; `UserError` when it is none."""
    metrics: dict[str, Any] = read_json(path, way_out="give the metrics file that rcg-eval wrote")
    if not figures(metrics):
        raise UserError(f"the metrics file {path} holds no numbers by name; give the one that rcg-eval wrote.")
    return metrics


def add_card(folder: Path, repo_id: str, info: CardInfo) -> None:
    """Complete a saved pipeline folder with README.md, metrics.json and grid.png, as far as `info` has them."""
    if info.grid is not None:
        if png_text(info.grid) is None:
            raise UserError(f"the grid {info.grid} is not a PNG file; give the grid.png that rcg-sample wrote.")
        shutil.copyfile(info.grid, folder / "grid.png")
    if info.metrics:
        finite = json.loads(json.dumps(dict(info.metrics)), parse_constant=lambda _: None)  # NaN is no JSON
        (folder / "metrics.json").write_text(json.dumps(finite, indent=2) + "\n")
    model_index = json.loads((folder / "model_index.json").read_text())
    (folder / "README.md").write_text(model_card(repo_id, model_index, info))


@contextmanager
def _one_sentence(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence."""
    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError) as e:
        if isinstance(e, LocalTokenNotFoundError):
            raise UserError("there is no Hub token; run `hf auth login` or set HF_TOKEN.") from e
        raise UserError(f"{repo_id!r} is no repository name; write it as user/name.") from e
    except GatedRepoError as e:
        raise UserError(f"{repo_id} is gated; ask for access on its page, then run `hf auth login`.") from e
    except RepositoryNotFoundError as e:
        raise UserError(
            f"the Hub has no repository {repo_id} that you may see; check the name, or run `hf auth login`."
        ) from e
    except RevisionNotFoundError as e:
        raise UserError(f"{repo_id} has no such revision; check the branch, tag or commit.") from e
    except HfHubHTTPError as e:
        code = getattr(e.response, "status_code", None)
        if code in (401, 403):
            raise UserError(
                f"the Hub does not let you use {repo_id} ({code}); run `hf auth login` with a token that may write there."
            ) from e
        raise UserError(f"the Hub could not serve {repo_id} (status {code}); try again later.") from e
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, _HTTP_ERROR) as e:
        raise UserError(
            f"the Hub cannot be reached for {repo_id}; check the network (and HF_HUB_OFFLINE), or use a local folder."
        ) from e


def check_repo_id(repo_id: str) -> None:
    """Raise `UserError` if `repo_id` cannot be the name of a repository."""
    with _one_sentence(repo_id):
        validate_repo_id(repo_id)


def push_folder(folder: Path, repo_id: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Create the repository if need be and upload a model folder (JSON, safetensors and the card's files) to it.

    Returns:
        The address of the commit.

    Raises:
        UserError: without a token, without network, or when the Hub refuses.
    """
    if not (token or get_token()):
        raise UserError("there is no Hub token; run `hf auth login` or set HF_TOKEN.")
    api = HfApi(token=token, library_name="rcg")
    with _one_sentence(repo_id):
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=full_id, folder_path=folder, commit_message=message, allow_patterns=MODEL_FILES + CARD_FILES
        )
    return str(commit.commit_url)


def download_folder(
    repo_id: str,
    *,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
) -> Path:
    """Fetch the JSON and safetensors files of a repository into the Hub cache.

    Returns:
        The folder that holds them. Files already in the cache are not fetched again.

    Raises:
        UserError: when the repository does not exist, is not yours to see, or the Hub cannot be reached.
    """
    with _one_sentence(repo_id):
        folder = HfApi(token=token, library_name="rcg").snapshot_download(
            repo_id,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            revision=revision,
            allow_patterns=MODEL_FILES,
        )
    return Path(folder)


DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class FolderPipeline(DiffusionPipeline):
    """A pipeline that is saved, loaded and published as a folder, with every file accounted for.

    Attributes:
        model_classes: possible classes of each component that is a model, by name; set by the pipeline itself.
        scheduler_classes: possible classes of its schedulers besides diffusers' own; likewise.
    """

    model_classes: ClassVar[dict[str, tuple[type[torch.nn.Module], ...]]] = {}
    scheduler_classes: ClassVar[tuple[type[Any], ...]] = ()

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, max_shard_size: int | str | None = None
    ) -> None:
        """Write the pipeline as a folder: `model_index.json` and one folder a component (JSON + safetensors).

        Nothing appears in `save_directory` before everything is written; other files in it stay.
        """
        if not safe_serialization:
            raise UserError("a pipeline is saved as safetensors only; leave safe_serialization at True.")

        def write(folder: Path) -> None:
            DiffusionPipeline.save_pretrained(self, str(folder), max_shard_size=max_shard_size)
            for file in folder.rglob("*.json"):
                content = json.loads(file.read_text())
                if (
                    isinstance(content, dict) and content.pop("_name_or_path", None) is not None
                ):  # a path of this machine
                    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

        Path(save_directory).mkdir(parents=True, exist_ok=True)
        export_files(Path(save_directory), write)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline from a local folder or, if there is none of that name, from the Hub.

        Args:
            pretrained_model_name_or_path: folder, or `user/name`.
            kwargs: diffusers' own (`torch_dtype`, `cache_dir`, `revision`, `token`, …), or components that replace
                the saved ones (e.g. `rdm_scheduler=`).

        Raises:
            UserError: neither a folder nor a repository, or a folder that holds no complete pipeline.
        """
        name = str(pretrained_model_name_or_path)
        local = {k: kwargs.pop(k) for k in tuple(kwargs) if k in DOWNLOAD_OPTIONS}
        if Path(name).is_dir():
            folder = Path(name)
        else:
            try:
                folder = Path(cls.download(name, **local))
            except UserError as e:
                raise UserError(f"there is no folder {name}, and {e}") from e
        check_pipeline_folder(folder, cls, cls.model_classes, cls.scheduler_classes, replaced=kwargs)
        return super().from_pretrained(str(folder), use_safetensors=True, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str | Path, **kwargs: Any) -> str:
        """Fetch a pipeline's JSON and safetensors files from the Hub; returns the local folder.

        Args:
            pretrained_model_name: `user/name`.
            kwargs: of `rcg.hub.download_folder`; what else diffusers' own download knows is refused.
        """
        if unknown := set(kwargs) - set(DOWNLOAD_OPTIONS):
            raise UserError(f"download does not know {', '.join(sorted(unknown))}; use {', '.join(DOWNLOAD_OPTIONS)}.")
        return str(download_folder(str(pretrained_model_name), **kwargs))

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        grid: str | Path | None = None,
        dataset: str | None = None,
        license: str | None = None,
        dry_run: Path | None = None,
    ) -> str:
        """Upload the pipeline with a model card.

        Args:
            repo_id: `user/name`; created if need be.
            commit_message: of the Hub commit.
            private: make a new repository private; None is the account's default.
            token: Hub token; by default the one you are logged in with.
            metrics, grid, dataset, license: for the card, see `rcg.hub.CardInfo`.
            dry_run: write what would be uploaded into this folder instead, and upload nothing.

        Returns:
            The address of the commit; of a dry run, the folder.

        Raises:
            UserError: no token, no network, or the Hub refuses.
        """
        info = CardInfo(dataset, license, metrics or {}, Path(grid) if grid is not None else None)
        with tempfile.TemporaryDirectory() if dry_run is None else atomic_folder(dry_run) as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder)
            add_card(folder, repo_id, info)
            if dry_run is not None:
                return str(dry_run)
            message = commit_message or f"Upload {type(self).__name__}"
            return push_folder(folder, repo_id, private=private, token=token, message=message)
