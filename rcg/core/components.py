"""Loading one saved component (model or scheduler) with every key accounted for. A leaf: anyone may import it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open

from rcg.core.component import settle_weights
from rcg.core.errors import UserError, first_line
from rcg.core.schema import Range, problem, problem_of, problem_of_arguments, read_json
from rcg.core.shipped import local_folder
from rcg.core.state_dicts import some

Model = TypeVar("Model", bound=torch.nn.Module)


MAX_SCHEDULER_INT = 10**6
"""No whole number in a scheduler's configuration is larger (they are lengths of tables), and none is negative."""
MAX_MODEL_INT = 65536
"""Nor one in the configuration of a model of diffusers (they are widths and numbers of layers)."""
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention in older autoencoders of diffusers, which it renames as it loads them."""


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in a configuration file; `UserError` when it is damaged."""
    config: dict[str, Any] = read_json(file, way_out="the folder is damaged, save or fetch it again")
    return config


def read_arguments(file: Path, cls: type[Any], *, own: bool = True) -> dict[str, Any]:
    """What the configuration in `file` gives to the constructor of `cls`.

    Args:
        file: `config.json` or `scheduler_config.json`.
        cls: a diffusers model or scheduler class.
        own: whether `cls` is ours and must know every key. (A scheduler of diffusers keeps the keys of the one that it was
            made from, and values that only that one knows, such as a `prediction_type`.)

    Raises:
        UserError: a key is missing or unknown, or its value has a wrong type or is out of range.
    """
    arguments = {k: v for k, v in read_config(file).items() if not k.startswith("_")}
    if own:
        found = problem_of_arguments(cls, arguments)
    else:
        known, hints = inspect.signature(cls).parameters, get_type_hints(cls.__init__)
        words = {k for k, v in arguments.items() if isinstance(v, str) and get_origin(hints.get(k)) is Literal}
        found = problem_of_arguments(cls, {k: v for k, v in arguments.items() if k in known and k not in words})
        limit = Range(0, MAX_SCHEDULER_INT)
        for name, value in arguments.items():
            if found is None and isinstance(value, int):
                found = problem(value, Annotated[int | bool, limit], name)
    if found:
        raise UserError(f"{file}: {found}; the folder is damaged, save or fetch it again.")
    return arguments


def component_class(folder: Path) -> str | None:
    """The class that the `config.json` (model) or else `scheduler_config.json` of a folder names, or None if none does."""
    for file in ("config.json", "scheduler_config.json"):
        if (folder / file).is_file() and (named := read_config(folder / file).get("_class_name")) is not None:
            return str(named)
    return None


def component_folder(place: str | Path, classes: Sequence[type[Any]]) -> Path:
    """Where a component lies: in `place` itself or, if that is a pipeline, in the folder of its component of that class.

    Args:
        place: folder of a component or of a pipeline, or the name of a pipeline in the box.
        classes: those that serve. (A pipeline's guiding model, a weaker one, does not.)

    Raises:
        UserError: no such name in the box, or a pipeline without such a component.
    """
    folder = local_folder(place) or Path(place)
    if not (folder / "model_index.json").is_file():
        return folder
    if (found := _part_of(folder, classes)) is None:
        names = " or ".join(cls.__name__ for cls in classes)
        raise UserError(f"the pipeline {place} has no {names}; give the folder of one.")
    return found


def _part_of(folder: Path, classes: Sequence[type[Any]]) -> Path | None:
    """Where a pipeline's component of one of these classes lies, if it has one."""
    wanted = [cls.__name__ for cls in classes]
    for name, entry in read_config(folder / "model_index.json").items():
        if isinstance(entry, list) and len(entry) == 2 and entry[1] in wanted and name != "guiding_model":
            return folder / name
    return None


def weight_headers(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each weight in a folder's safetensors, from their headers; `UserError` for a damaged file."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(key)
                    found[key] = tuple(part.get_shape()), part.get_dtype()
        except SafetensorError as e:
            raise UserError(f"{file} is damaged ({e}); save or fetch it again.") from None
    return found


def is_own(cls: type[Any]) -> bool:
    """Whether a class is this library's, and not diffusers'."""
    return cls.__module__.partition(".")[0] == "rcg"


def build_foreign(cls: type[Model], file: Path) -> Model:
    """An autoencoder of diffusers by its `config.json`, without weights in memory.

    Raises:
        UserError: a value of another kind than the class's default, a number that is out of range, or a configuration of
            which no autoencoder can be made that gives images back as large as they were.
    """
    known = inspect.signature(cls).parameters
    config = {k: v for k, v in read_config(file).items() if k in known}  # diffusers writes some of its own beside
    for name, value in config.items():
        for each in value if isinstance(value, list) and value else [value]:
            if found := problem(each, _kind_of(known[name].default, each), name):
                raise UserError(f"{file}: {found}; the folder is damaged, save or fetch it again.")
    try:
        with init_empty_weights(include_buffers=True):
            model: Model = cls.from_config(config)  # type: ignore[attr-defined]
        channels: Any = model.config.in_channels  # type: ignore[union-attr]
        images = torch.empty(1, channels, 256, 256, device="meta")
        with torch.no_grad():
            given_back = model(images).sample
        if given_back.shape[2:] != images.shape[2:]:
            raise ValueError("images come back in another size")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(
            f"{file}: no {cls.__name__} can be made of it ({first_line(e)}); fetch the folder again."
        ) from None
    return model


def _kind_of(default: Any, value: Any) -> Any:
    """The type hint that a value in a foreign configuration must fit, by the default it stands for (or one of a list)."""
    first = default[0] if isinstance(default, tuple | list) and default else default
    if isinstance(first, bool | str):
        return type(first)
    number = Annotated[int, Range(0, MAX_MODEL_INT)] if isinstance(value, int) else float
    return number | None if first is None else number


def check_weights(model: torch.nn.Module, folder: Path) -> None:
    """Compare the safetensors headers in `folder` with the model's own state: same names, same shapes.

    Raises:
        UserError: naming the first keys that are missing, unknown or of another shape.
    """
    have = {key: shape for key, (shape, _) in weight_headers(folder).items()}
    if not is_own(type(model)):
        have = {".".join(OLD_NAMES.get(part, part) for part in key.split(".")): v for key, v in have.items()}
    want = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    name = type(model).__name__
    if missing := want.keys() - have.keys():
        raise UserError(f"the weights in {folder} lack {some(missing)} of {name}; take a complete checkpoint.")
    if unknown := have.keys() - want.keys():
        raise UserError(
            f"the weights in {folder} hold {some(unknown)}, which {name} does not have; take its own weights."
        )
    if differing := {key for key in want if want[key] != have[key]}:
        raise UserError(f"the weights in {folder} do not fit its config.json ({some(differing)} differ in shape).")


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
        held = "no model that says what it is" if found is None else f"a {found}"
        raise UserError(f"{folder} holds {held}, but a {name} is needed; give the folder of one.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (*.safetensors); give the folder of a finished {name}.")
    if not is_own(cls):
        check_weights(build_foreign(cls, folder / "config.json"), folder)
        return
    config = read_arguments(folder / "config.json", cls)
    with init_empty_weights(include_buffers=True):
        check_weights(cls.from_config(config), folder)  # type: ignore[attr-defined]


def load_model(cls: type[Model], folder: str | Path, **kwargs: Any) -> Model:
    """`cls.from_pretrained(folder)` of a local folder, refusing what is not exactly one `cls`.

    Args:
        cls: a diffusers model class.
        folder: has `config.json` and safetensors; or that of a pipeline, or its name, see `component_folder`.
        kwargs: handed on to `from_pretrained` (e.g. `torch_dtype`).

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: no such folder, another class, no weights, or keys missing, unknown or of another shape.
    """
    folder = component_folder(folder, (cls,))
    check_model_folder(cls, folder)
    model: Model = cls.from_pretrained(str(folder), use_safetensors=True, **kwargs)  # type: ignore[attr-defined]
    settle_weights(model)  # our own classes have done so already
    return model.eval()


def load_beside(classes: Sequence[type[Model]], place: str | Path) -> Model | None:
    """`load_any` of what a pipeline, given by its folder or its name, has of `classes`; None if it has none or is none."""
    folder = local_folder(place) or Path(place)
    found = _part_of(folder, classes) if (folder / "model_index.json").is_file() else None
    return None if found is None else load_any(classes, found)


def load_any(classes: Sequence[type[Model]], folder: str | Path) -> Model:
    """`load_model` of that one of `classes` which the folder names; `UserError` if it is none of them."""
    folder = component_folder(folder, classes)
    named = component_class(folder)
    if named is None:
        return load_model(classes[0], folder)  # which says what is missing
    for cls in classes:
        if cls.__name__ == named:
            return load_model(cls, folder)
    names = " or ".join(cls.__name__ for cls in classes)
    raise UserError(f"{folder} holds a {named}, but a {names} is needed; give the folder of one.")


def scheduler_class(folder: Path, own: Collection[type[Any]]) -> type[Any]:
    """The class of the scheduler whose `scheduler_config.json` is in `folder`: one of `own` or one of diffusers'.

    Raises:
        UserError: no such file, a class that is neither, or settings that the class does not take.
    """
    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no scheduler_config.json; give the folder of a finished stage.")
    name = str(read_config(file).get("_class_name"))
    ours = {c.__name__: c for c in own}.get(name)
    cls = ours or getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise UserError(f"{file} names {name}, which is no scheduler that this library knows; take another one.")
    arguments = read_arguments(file, cls, own=ours is not None)
    try:
        steps = max(1, min(4, arguments.get("num_train_timesteps", 4)))  # PNDM makes no fewer than 4
        cls.from_config(arguments).set_timesteps(steps)  # type: ignore[attr-defined]
    except (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f"{file}: no {name} can be made of it ({first_line(e)}); take another one.") from None
    return cls


def load_scheduler(folder: str | Path, *own: type[Any], part: str | None = None) -> Any:
    """The scheduler in `folder`; see `scheduler_class`.

    Args:
        folder: of a scheduler, or of a stage that was saved with it; with `part` also of a pipeline, or its name in the box.
        own: see `scheduler_class`.
        part: which scheduler of a pipeline.
    """
    place = local_folder(folder) or Path(folder)
    if part is not None and (place / "model_index.json").is_file():
        place /= part
    return scheduler_class(place, own).from_pretrained(str(place))


def check_pipeline_folder(
    folder: Path,
    cls: type[Any],
    models: Mapping[str, tuple[type[torch.nn.Module], ...]],
    schedulers: Collection[type[Any]] = (),
    replaced: Collection[str] = (),
) -> None:
    """Refuse a folder that is no complete saved pipeline; reads JSON and the headers of weights only.

    Args:
        folder: to look at.
        cls: class of the pipeline, which `model_index.json` must name.
        models: classes of the components that are models, by name.
        schedulers: classes of schedulers besides diffusers' own.
        replaced: names of components that the caller brings along, so that they need not be there.

    Optional components that the index calls null need not be there either.

    Raises:
        UserError: saying what was found and what to do.
    """
    file = folder / "model_index.json"
    if not file.is_file():
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
    index = read_config(file)
    if index.get("_class_name") != cls.__name__:
        raise UserError(f"{folder} holds a {index.get('_class_name')}, not an {cls.__name__}; load it with diffusers.")
    parameters = inspect.signature(cls).parameters
    parts = {name for name in parameters if name in models or name.endswith("scheduler")}
    component = tuple[str | None, str | None]
    entries = {k: v for k, v in index.items() if not k.startswith("_")}
    hints = {name: component if name in parts else dict[str, Any] | None for name in parameters}
    required = {name for name, p in parameters.items() if p.default is p.empty and name not in replaced}
    if wrong := problem_of(entries, hints, required):
        raise UserError(f"{file}: {wrong}; the folder is damaged, save or fetch it again.")
    for name in entries.keys() & parts - set(replaced):
        package, named = entries[name]
        if named is None:
            continue
        if str(package).partition(".")[0] not in ("rcg", "diffusers"):
            raise UserError(f"{folder} wants {name} from the package {package}, which is neither rcg nor diffusers.")
        if name in models:
            chosen = next((model for model in models[name] if model.__name__ == named), models[name][0])
            check_model_folder(chosen, folder / name)
        elif not (folder / name / "scheduler_config.json").is_file():
            raise UserError(
                f"{folder / name} holds no scheduler_config.json; the pipeline is incomplete, fetch it again."
            )
        elif (found := scheduler_class(folder / name, schedulers).__name__) != named:
            raise UserError(
                f"{file}: {name} is a {named}, but {folder / name} holds a {found}; fetch the folder again."
            )
