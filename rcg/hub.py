"""Model folders and the Hugging Face Hub: saving, loading, our own model card, pushing, fetching. Knows no models."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import HfApi, get_token
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

from rcg.core import shipped
from rcg.core.card import PLAIN, CardInfo, ModelKind, figures, model_card
from rcg.core.components import check_pipeline_folder, read_config
from rcg.core.errors import UserError
from rcg.core.files import atomic_folder, export_files, write_json
from rcg.core.half import halve_weights
from rcg.core.pictures import png_text
from rcg.core.schema import read_json
from rcg.core.shipped import local_folder

WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]
MODEL_FILES = ["*.json", "*.safetensors"]
CARD_FILES = ["README.md", "grid.png", "metrics.json"]
# The HTTP library under huggingface_hub changes with its version; its base error is the last parent of HfHubHTTPError
# before OSError. (Those below 1.0 count LocalEntryNotFoundError among HfHubHTTPError, without a response.)
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[HfHubHTTPError.__mro__.index(OSError) - 1]
BOX_SHARD_BYTES = 30 * 2**20
"""Of float32 weights in one file of a pipeline that is packed for the box; half of it is written."""


def read_metrics(path: Path) -> dict[str, Any]:
    """The mapping in a metrics file that `rcg-eval` wrote; `UserError` when it is none."""
    metrics: dict[str, Any] = read_json(path, way_out="give the metrics file that rcg-eval wrote")
    flat = all(value is None or isinstance(value, int | float) for value in metrics.values())
    if not figures(metrics) or not (flat or isinstance(metrics.get("metrics"), dict)):
        raise UserError(f"the metrics file {path} holds no numbers by name; give the one that rcg-eval wrote.")
    return metrics


def add_card(folder: Path, repo_id: str, info: CardInfo, kind: ModelKind = PLAIN) -> None:
    """Complete a saved pipeline folder with README.md, metrics.json and grid.png, as far as `info` has them."""
    if info.grid is not None:
        if png_text(info.grid) is None:
            raise UserError(f"the grid {info.grid} is not a PNG file; give the grid.png that rcg-sample wrote.")
        shutil.copyfile(info.grid, folder / "grid.png")
    if info.metrics:
        finite = json.loads(json.dumps(dict(info.metrics)), parse_constant=lambda _: None)  # NaN is no JSON
        (folder / "metrics.json").write_text(json.dumps(finite, indent=2) + "\n")
    model_index = json.loads((folder / "model_index.json").read_text())
    (folder / "README.md").write_text(model_card(repo_id, model_index, info, kind))


@contextmanager
def _one_sentence(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence."""
    try:
        yield
    except LocalTokenNotFoundError as e:
        raise UserError("there is no Hub token; run `hf auth login` or set HF_TOKEN.") from e
    except HFValidationError as e:
        raise UserError(f"{repo_id!r} is no repository name; write it as user/name.") from e
    except GatedRepoError as e:
        raise UserError(f"{repo_id} is gated; ask for access on its page, then run `hf auth login`.") from e
    except RepositoryNotFoundError as e:
        raise UserError(
            f"the Hub has no repository {repo_id} that you may see; check the name, or run `hf auth login`."
        ) from e
    except RevisionNotFoundError as e:
        raise UserError(f"{repo_id} has no such revision; check the branch, tag or commit.") from e
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, _HTTP_ERROR) as e:
        code = getattr(getattr(e, "response", None), "status_code", None)
        if code in (401, 403):
            raise UserError(
                f"the Hub does not let you use {repo_id} ({code}); run `hf auth login` with a token that may write there."
            ) from e
        if code is not None:
            raise UserError(f"the Hub could not serve {repo_id} (status {code}); try again later.") from e
        raise UserError(
            f"the Hub cannot be reached for {repo_id}; check the network (and HF_HUB_OFFLINE), or use a local folder."
        ) from e


def check_repo_id(repo_id: str) -> None:
    """Raise `UserError` if `repo_id` cannot be the whole name of a repository."""
    with _one_sentence(repo_id):
        validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} does not say whose repository it is; write it as user/name.")


def _check_token(token: str | None) -> None:
    if not (token or get_token()):
        raise UserError("there is no Hub token; run `hf auth login` or set HF_TOKEN.")


def push_folder(folder: Path, repo_id: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Create the repository if need be and upload a model folder (JSON, safetensors and the card's files) to it.

    Other weights of the same components go from the repository, and so do components, figures and the grid of another model
    that was there before.

    Returns:
        The address of the commit.

    Raises:
        UserError: without a token, without network, or when the Hub refuses.
    """
    _check_token(token)
    api = HfApi(token=token, library_name="rcg")
    stale = [f"{part.name}/{name}" for part in folder.iterdir() if part.is_dir() for name in WEIGHT_FILES]
    stale += [name for name in CARD_FILES if not any(folder.glob(name))]
    if (index := folder / "model_index.json").is_file():
        stale += [f"{name}/*" for name, entry in read_config(index).items() if entry == [None, None]]
    with _one_sentence(repo_id):
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        try:
            commit = api.upload_folder(
                repo_id=full_id,
                folder_path=folder,
                commit_message=message,
                allow_patterns=MODEL_FILES + CARD_FILES,
                delete_patterns=stale,
            )
        except ValueError as e:
            if isinstance(e, UserError | HFValidationError | HfHubHTTPError):
                raise
            told = " ".join(str(e).split())
            raise UserError(
                f"the Hub refuses the model card of {repo_id} ({told:.200}); check --license and --dataset."
            ) from e
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

    @property
    def kind(self) -> ModelKind:
        """What the pipeline is, for its card."""
        return PLAIN

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
        half: bool = False,
    ) -> None:
        """Write the pipeline as a folder: `model_index.json` and one folder a component (JSON + safetensors).

        Nothing appears in `save_directory` before everything is written; other files in it stay, but for other weights of
        the components.

        Args:
            save_directory: made if need be.
            safe_serialization: there is no other way.
            max_shard_size: of one file of weights, in bytes or as "5GB".
            half: store matrices as float16, see `rcg.core.half`; they are float32 again, rounded, when they are loaded.

        Raises:
            UserError: `save_directory` is a file, or `safe_serialization` is off.
        """
        if not safe_serialization:
            raise UserError("a pipeline is saved as safetensors only; leave safe_serialization at True.")

        def write(folder: Path) -> None:
            DiffusionPipeline.save_pretrained(self, str(folder), max_shard_size=max_shard_size)
            for file in folder.rglob("*.json"):
                content = json.loads(file.read_text())
                if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:  # of this machine
                    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
            if half:
                halve_weights(folder)
            written.extend(file.relative_to(folder) for file in folder.glob("*/*"))

        target, written = Path(save_directory), list[Path]()
        if target.exists() and not target.is_dir():
            raise UserError(f"{target} is a file; give the name of a folder.")
        target.mkdir(parents=True, exist_ok=True)
        export_files(target, write)
        parts = {file.parent for file in written}
        for file in (file.relative_to(target) for name in WEIGHT_FILES for file in target.glob(f"*/{name}")):
            if file.parent in parts and file not in written:  # diffusers would prefer an old index to new weights
                (target / file).unlink()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline from a local folder or, if there is none of that name, from the box or else the Hub.

        Args:
            pretrained_model_name_or_path: folder, name in the box (`rcg/cifar10`), or `user/name` on the Hub.
            kwargs: diffusers' own (`torch_dtype`, `cache_dir`, `revision`, `token`, …), or components that replace
                the saved ones (e.g. `rdm_scheduler=`).

        Raises:
            UserError: no folder, nothing in the box and no repository, or a folder that holds no complete pipeline.
        """
        name = str(pretrained_model_name_or_path)
        if kwargs.pop("use_safetensors", True) is False:
            raise UserError("a pipeline is loaded from safetensors only; leave use_safetensors at True.")
        local = {k: kwargs.pop(k) for k in tuple(kwargs) if k in DOWNLOAD_OPTIONS}
        folder = local_folder(name)
        if folder is None:
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
        recipe: str | None = None,
        half: bool = False,
        dry_run: str | Path | None = None,
    ) -> str:
        """Upload the pipeline with a model card.

        Args:
            repo_id: `user/name`; created if need be.
            commit_message: of the Hub commit.
            private: make a new repository private; None is the account's default.
            token: Hub token; by default the one you are logged in with.
            metrics, grid, dataset, license, recipe: for the card, see `rcg.core.card.CardInfo`.
            half: upload float16, see `save_pretrained`.
            dry_run: write what would be uploaded into this folder instead, and upload nothing.

        Returns:
            The address of the commit; of a dry run, the folder.

        Raises:
            UserError: no token, no network, or the Hub refuses; a name that is not whole; `dry_run` exists.
        """
        check_repo_id(repo_id)
        place = None if dry_run is None else Path(dry_run)
        if place is not None and place.exists():
            raise UserError(f"{place} exists already; give the name of a new folder.")
        if place is None:
            _check_token(token)  # before everything is written
        info = CardInfo(dataset, license, metrics or {}, Path(grid) if grid is not None else None, recipe)
        with tempfile.TemporaryDirectory() if place is None else atomic_folder(place) as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, half=half)
            add_card(folder, repo_id, info, self.kind)
            if place is not None:
                return str(place)
            message = commit_message or f"Upload {type(self).__name__}"
            return push_folder(folder, repo_id, private=private, token=token, message=message)


def pack_for_box(pipe: FolderPipeline, name: str, info: CardInfo) -> Path:
    """Put a pipeline with its card into the box of this very installation (of the library's sources, for a maintainer).

    Args:
        pipe: the pipeline.
        name: in the box, `rcg/…`; a model of that name is replaced.
        info: for the card.

    Returns:
        Its folder.

    Raises:
        UserError: a name that does not begin with `rcg/`, or a box that would be too large; it is then as before.
    """
    with _place_in_box(name) as (folder, temporary):
        pipe.save_pretrained(temporary, max_shard_size=BOX_SHARD_BYTES, half=True)
        add_card(temporary, name, info, pipe.kind)
    return folder


def pack_component_for_box(model: ModelMixin, name: str, card: str) -> Path:
    """Put a single model, such as a tokenizer, into the box; see `pack_for_box`.

    Args:
        model: what is packed, its matrices as float16.
        name: in the box, `rcg/…`.
        card: the text of its README.md.
    """
    with _place_in_box(name) as (folder, temporary):
        model.save_pretrained(temporary, max_shard_size=BOX_SHARD_BYTES)
        config = json.loads((temporary / "config.json").read_text())
        config.pop("_name_or_path", None)  # where it lay on the maintainer's machine
        write_json(temporary / "config.json", config)
        halve_weights(temporary)
        (temporary / "README.md").write_text(card)
    return folder


@contextmanager
def _place_in_box(name: str) -> Iterator[tuple[Path, Path]]:
    """The folder of a name in the box, and a temporary one that replaces it in the end, if the box may then be so large."""
    if not re.fullmatch(r"rcg/\w[\w.-]*", name):
        raise UserError(f"{name!r} is no name for the box; write it as rcg/name.")
    folder = shipped.BOX / name.partition("/")[2]
    with atomic_folder(folder) as temporary:
        yield folder, temporary
        shipped.check_sizes(without=folder)
