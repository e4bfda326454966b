"""Which cache a finished stage was trained on, and whether a model is the one that computed it."""

from __future__ import annotations

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
    record = stage / "training" / "config.yaml"
    settings = parse_yaml(record.read_bytes(), str(record), "remove it") if record.is_file() else None
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, str) or not is_cache(Path(data)):
        return
    try:
        find_field(Path(data), read_manifest(Path(data)), field, model)  # which may be unfinished by now
    except UserError as e:
        raise UserError(f"{stage} was trained on the cache {data}, but {e}") from e
