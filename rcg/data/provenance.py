"""Which cache a finished stage was trained on, and whether a model is the one that computed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rcg.core.errors import UserError
from rcg.core.schema import parse_yaml
from rcg.data.cache import find_field
from rcg.data.layout import is_cache, read_manifest


def check_trained_on(stage: Path, field: str, model: nn.Module) -> None:
    """Refuse a frozen model other than the one that computed the cache a stage was trained on, where that is still there.

    Args:
        stage: folder of the trained stage; its `training/config.yaml` names the data.
        field: of the cache.
        model: that is to be used with the stage.

    Raises:
        UserError: the cache was computed by another model.
    """
    if (cache := _cache_of(stage)) is None:
        return
    try:
        find_field(cache, read_manifest(cache), field, model)  # which may be unfinished by now
    except UserError as e:
        raise UserError(f"{stage} was trained on the cache {cache}, but {e}") from e


def check_trained_alike(stages: Sequence[Path], field: str) -> None:
    """Refuse stages that were trained on what different models computed, as far as their caches are still there.

    Args:
        stages: folders of trained stages.
        field: of their caches.

    Raises:
        UserError: naming the first two that do not belong together.
    """
    known: dict[str, Path] = {}
    for stage in stages:
        fields = {} if (cache := _cache_of(stage)) is None else read_manifest(cache)["fields"]
        if field in fields:
            known[fields[field]["model_hash"]] = stage
    if len(known) > 1:
        (one, first), (other, second) = list(known.items())[:2]
        raise UserError(
            f"{first} and {second} were trained on {field} of different models ({one} and {other}); train one of them again on "
            "the other's cache."
        )


def _cache_of(stage: Path) -> Path | None:
    """The cache that a stage was trained on, if it is still where its record says."""
    record = stage / "training" / "config.yaml"
    settings = parse_yaml(record.read_bytes(), str(record), "remove it") if record.is_file() else None
    data = settings.get("data") if isinstance(settings, dict) else None
    return Path(data) if isinstance(data, str) and is_cache(Path(data)) else None
