"""The box: trained pipelines and single models that come with the library, in `rcg/box`, under names such as `rcg/cifar10`.

A leaf."""

from __future__ import annotations

import re
from pathlib import Path

from rcg.core.errors import UserError

BOX = Path(__file__).parents[1] / "box"
DEFAULT = "rcg/cifar10"
"""What is drawn from where no model is named."""
MAX_FILE_BYTES = 16 * 2**20
"""Of one file in the box."""
MAX_BOX_BYTES = 48 * 2**20
"""Of all of them."""
_NAME = re.compile(r"rcg/(\w[\w.-]*)")


def names() -> list[str]:
    """Names of the models in the box, sorted."""
    kinds = ("model_index.json", "config.json")  # of a pipeline, of a single model
    return sorted(f"rcg/{file.parent.name}" for kind in kinds for file in BOX.glob(f"[!.]*/{kind}"))


def locate(name: str | Path) -> Path | None:
    """The folder of a model in the box, or None if it holds none of that name.

    Args:
        name: such as `rcg/cifar10`.
    """
    match = _NAME.fullmatch(Path(name).as_posix())
    return BOX / match[1] if match and match[0] in names() else None


def local_folder(name: str | Path) -> Path | None:
    """The folder on this machine that a name means: one of that path or, if there is none, a model of the box.

    Args:
        name: a path, a name in the box, or one on the Hub (for which None is returned).

    Raises:
        UserError: a name that only the box can have, but has not.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if (found := locate(name)) is not None:
        return found
    if _NAME.fullmatch(path.as_posix()):
        held = names()
        rest = (
            f"the box holds {', '.join(held)} only; give one of these or a folder of your own"
            if held
            else "no model comes with this version of the library; give a folder of your own"
        )
        raise UserError(f"there is no folder {name}, and {rest}.")
    return None


def check_sizes(without: Path | None = None) -> None:
    """Raise `UserError` if a file in the box, or all of them together, are larger than a package should carry.

    Args:
        without: a folder whose files do not count, because it is about to be replaced.
    """
    files = [file for file in BOX.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    sizes = {file: file.stat().st_size for file in files if without is None or without not in file.parents}
    for file, size in sizes.items():
        if size > MAX_FILE_BYTES:
            raise UserError(
                f"{file.parent.name}/{file.name} has {size / 2**20:.1f} MiB, but a file in the box may have "
                f"{MAX_FILE_BYTES >> 20}; take a smaller model."
            )
    if (total := sum(sizes.values())) > MAX_BOX_BYTES:
        raise UserError(
            f"the box would hold {total / 2**20:.1f} MiB, but it may hold {MAX_BOX_BYTES >> 20}; take a smaller model, or "
            "another one out."
        )
