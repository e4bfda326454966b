"""Which model computed what a finished stage was trained on, and whether stages go with the same one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from torch import nn

from rcg.core.errors import UserError
from rcg.core.files import encoding_hash
from rcg.core.schema import parse_yaml, read_json
from rcg.data.layout import is_cache, read_manifest


def check_together(places: Mapping[Path, nn.Module | None], field: str) -> None:
    """Refuse stages, and caches, that go with different models, as far as that is known of them.

    It is known of a stage whose cache is still there, of one that was trained from images through an encoder or a tokenizer (or
    with a tokenizer for its previews), and of what lies in a pipeline beside these. Weights that were rounded
    (`rcg.core.half`) are told from those of another model where both models are at hand; where only the other's hash is, a
    warning says that they are not.

    Args:
        places: folders of trained stages and of caches; with each the model that computes the field, if it lies beside them.
        field: of caches, that the stages were trained on.

    Raises:
        UserError: naming the first two that do not go together.
    """
    known = {place: found for place, model in places.items() if (found := _hashes(place, field, model))}
    for (first, one), (second, other) in combinations(known.items(), 2):
        if set(one) & set(other):
            continue
        longer = one if len(one) > len(other) else other
        if len(one) != len(other) and len(set(longer)) == 1:  # one model is at hand, and of the other only its hash
            warnings.warn(
                f"whether {first} and {second} go with the same {field} cannot be told, as the model of one of them was stored "
                "in half the space, with rounded weights.",
                stacklevel=2,
            )
            continue
        raise UserError(
            f"{first} and {second} go with {field} of different models ({one[0]} and {other[0]}); give ones that go with the "
            "same, or train one of them again."
        )


def _hashes(place: Path, field: str, model: nn.Module | None) -> tuple[str, ...]:
    """Of the model that a stage or a cache goes with: its own and that of its rounded weights; or its own alone; or none."""
    if model is not None:
        return encoding_hash(model), encoding_hash(model, half=True)
    if (cache := place if is_cache(place) else _cache_of(place)) is not None:
        fields = read_manifest(cache)["fields"]
        return (fields[field]["model_hash"],) if field in fields else ()
    checkpoints = sorted(place.glob("training/checkpoints/step-*/meta.json"))
    meta = read_json(checkpoints[-1], way_out="remove it") if checkpoints else {}
    identity = meta["identity"] if isinstance(meta.get("identity"), dict) else {}
    found = identity.get("encoder" if field == "representations" else "encodings")
    return (found,) if isinstance(found, str) else ()


def _cache_of(stage: Path) -> Path | None:
    """The cache that a stage was trained on, if it is still where its record says."""
    record = stage / "training" / "config.yaml"
    settings = parse_yaml(record.read_bytes(), str(record), "remove it") if record.is_file() else None
    data = settings.get("data") if isinstance(settings, dict) else None
    return Path(data) if isinstance(data, str) and is_cache(Path(data)) else None
