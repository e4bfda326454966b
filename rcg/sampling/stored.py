"""The settings that a saved pipeline samples with: the `sampling` entry of its `model_index.json`, put in anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.schema import read_json
from rcg.sampling.inputs import resolve_sampling

INDEX = "model_index.json"


def write_sampling(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make `settings` a saved pipeline's own; those left out stay, as does everything else in the file.

    None leaves a setting open again: it is then the generator's default.

    The file is written whole or not at all.

    Args:
        folder: of the pipeline.
        settings: some of `rcg.sampling.inputs.Sampling`.

    Raises:
        UserError: no pipeline, or settings that cannot be.
    """
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{folder} is not a saved pipeline (it has no {INDEX}); give the folder of one.")
    index: dict[str, Any] = read_json(path, way_out="the folder is damaged, save or fetch it again")
    kept = {name: value for name, value in (index.get("sampling") or {}).items() if name not in settings}
    index["sampling"] = dict(resolve_sampling(kept, **settings))
    write_json(path, index)
