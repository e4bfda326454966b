"""Loading one saved component (model or scheduler) with every key accounted for. A leaf: anyone may import it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open

from rcg.core.errors import UserError

Model = TypeVar("Model", bound=torch.nn.Module)


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in a configuration file; `UserError` when it is damaged."""
    try:
        config = json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{file} is not valid JSON; the folder is damaged, save or fetch it again.") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no settings; the folder is damaged, save or fetch it again.")
    return config


def component_class(folder: Path) -> str | None:
    """The class that the `config.json` (model) or `scheduler_config.json` of a folder names, or None without either."""
    for file in ("config.json", "scheduler_config.json"):
        if (folder / file).is_file():
            return str(read_config(folder / file).get("_class_name"))
    return None


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                shapes |= {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as e:
            raise UserError(f"{file} is damaged ({e}); save or fetch it again.") from None
    return shapes


def _some(keys: set[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_weights(model: torch.nn.Module, folder: Path) -> None:
    """Compare the safetensors headers in `folder` with the model's own state: same names, same shapes.

    Raises:
        UserError: naming the first keys that are missing, unknown or of another shape.
    """
    have = _shapes(folder)
    want = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    name = type(model).__name__
    if missing := want.keys() - have.keys():
        raise UserError(f"the weights in {folder} lack {_some(missing)} of {name}; take a complete checkpoint.")
    if unknown := have.keys() - want.keys():
        raise UserError(
            f"the weights in {folder} hold {_some(unknown)}, which {name} does not have; take its own weights."
        )
    if differing := {key for key in want if want[key] != have[key]}:
        raise UserError(f"the weights in {folder} do not fit its config.json ({_some(differing)} differ in shape).")


def check_model_folder(cls: type[torch.nn.Module], folder: Path) -> None:
    """Refuse a folder that is not exactly one saved `cls`: right class, all weights, none too many, right shapes.

    Reads the configuration and the headers of the weights only.

    Raises:
        UserError: saying what was found and what is needed.
    """
    name = cls.__name__
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give that of a finished {name}.")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the folder of a finished {name}.")
    found = component_class(folder)
    if found != name:
        raise UserError(f"{folder} holds a {found}, but a {name} is needed; give the folder of one.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (*.safetensors); give the folder of a finished {name}.")
    config = {k: v for k, v in read_config(folder / "config.json").items() if not k.startswith("_")}
    with init_empty_weights(include_buffers=False):
        check_weights(cls.from_config(config), folder)  # type: ignore[attr-defined]


def load_model(cls: type[Model], folder: str | Path, **kwargs: Any) -> Model:
    """`cls.from_pretrained(folder)` of a local folder, refusing what is not exactly one `cls`.

    Args:
        cls: a diffusers model class.
        folder: has `config.json` and safetensors.
        kwargs: handed on to `from_pretrained` (e.g. `torch_dtype`).

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: no such folder, another class, no weights, or keys missing, unknown or of another shape.
    """
    check_model_folder(cls, Path(folder))
    model: Model = cls.from_pretrained(str(folder), use_safetensors=True, **kwargs)  # type: ignore[attr-defined]
    return model.eval()


def load_scheduler(folder: str | Path, *own: type[Any]) -> Any:
    """The scheduler whose `scheduler_config.json` is in `folder`: one of `own` or one of diffusers'.

    Raises:
        UserError: no such file, or a class that is neither.
    """
    file = Path(folder) / "scheduler_config.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no scheduler_config.json; give the folder of a finished stage.")
    name = str(read_config(file).get("_class_name"))
    cls = {c.__name__: c for c in own}.get(name) or getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise UserError(f"{file} names {name}, which is no scheduler that this library knows; take another one.")
    return cls.from_pretrained(str(folder))  # type: ignore[attr-defined]


def check_pipeline_folder(
    folder: Path, pipeline: str, models: Mapping[str, tuple[type[torch.nn.Module], ...]], replaced: Collection[str] = ()
) -> None:
    """Refuse a folder that is no complete saved pipeline; reads JSON and the headers of weights only.

    Args:
        folder: to look at.
        pipeline: class that `model_index.json` must name.
        models: classes of the components that are models, by name.
        replaced: names of components that the caller brings along, so that they need not be there.

    Optional components that the index calls null need not be there either.

    Raises:
        UserError: saying what was found and what to do.
    """
    if not (folder / "model_index.json").is_file():
        if (single := component_class(folder)) is not None:
            raise UserError(
                f"{folder} holds a single {single}, not a pipeline; put the finished stages together with rcg-assemble."
            )
        names = sorted(p.name for p in folder.iterdir())
        found = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "nothing"
        raise UserError(
            f"{folder} is not a saved pipeline (it holds {found}, but no model_index.json); give the folder that "
            "rcg-assemble or save_pretrained wrote."
        )
    index = read_config(folder / "model_index.json")
    if index.get("_class_name") != pipeline:
        raise UserError(f"{folder} holds a {index.get('_class_name')}, not an {pipeline}; load it with diffusers.")
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None or name in replaced:
            continue
        if str(entry[0]).partition(".")[0] not in ("rcg", "diffusers"):
            raise UserError(f"{folder} wants {name} from the package {entry[0]}, which is neither rcg nor diffusers.")
        if name in models:
            named = next((cls for cls in models[name] if cls.__name__ == entry[1]), models[name][0])
            check_model_folder(named, folder / name)
        elif name.endswith("scheduler") and not (folder / name / "scheduler_config.json").is_file():
            raise UserError(
                f"{folder / name} holds no scheduler_config.json; the pipeline is incomplete, fetch it again."
            )
