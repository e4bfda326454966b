"""Data sets in the layout of the Hugging Face Hub: `hf:PLACE[:SPLIT[:COLUMN]]`, of a repository on the Hub or a folder here.

Files belong to a split as the Hub's documentation of "repository structure" has it: by the header of README.md (`configs`), by
names such as `data/train-00000-of-00010.parquet`, by a folder or a file that is called like a split, or all to `train`. Nothing
is downloaded but what is read: Parquet is read by pages, tar and zip by members, loose images one by one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from rcg.core.errors import UserError
from rcg.data.image_source import count_unread, is_hidden, is_image, none_read

PREFIX = "hf:"
HUB_ADDRESS = "hf://datasets/"
ENDINGS = (".parquet", ".arrow", ".tar", ".zip")
README = "README.md"
MOST_README = 4 << 20
HUB = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^/@]+))?(?:/(?P<config>.+))?")
NUMBERED = re.compile(r"(\w+(?:[.-]\w+)*?)-\d+-of-\d+\b.*")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and what their folders and files are called."""
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
CONVERTED = ("~parquet", "refs%2Fconvert%2Fparquet")
"""Revisions that the Hub makes of a repository: its files as Parquet, below a folder for each configuration."""


@dataclass(frozen=True)
class Asked:
    """What a specification `hf:…` says.

    Attributes:
        place: folder, or address of the repository.
        config: its part, if it says so.
        split, column: of it, if it says so.
        spec: the specification without split and column, for messages.
    """

    place: str
    config: str | None
    split: str | None
    column: str | None
    spec: str


def parse(spec: str) -> Asked | None:
    """Read `hf:PLACE[:SPLIT[:COLUMN]]`; None of other specifications, and of addresses `hf://…`.

    Raises:
        UserError: it is one, but wrong.
    """
    if not spec.startswith(PREFIX) or spec.startswith("hf://"):
        return None
    place, *more = spec.removeprefix(PREFIX).split(":")
    if not place or len(more) > 2 or "" in more:
        raise UserError(f"{spec!r} is not of the form hf:NAME[:SPLIT[:COLUMN]], such as hf:uoft-cs/cifar10:train:img.")
    split, column = [*more, None, None][:2]
    folder = Path(os.path.expanduser(place))  # noqa: PTH111 (which leaves what is nobody's home as it is)
    if folder.is_dir():
        return Asked(str(folder), None, split, column, PREFIX + place)
    if folder.parent != Path() and folder.parent.is_dir() and (folder.parent / README).is_file():
        return Asked(str(folder.parent), folder.name, split, column, PREFIX + place)
    if place.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {place!r}; give one, or OWNER/NAME of a data set on the Hub.")
    if (match := HUB.fullmatch(place)) is None:
        raise UserError(f"{spec!r}: {place!r} is neither a folder nor OWNER/NAME of a data set on the Hub.")
    revision = f"@{match['revision']}" if match["revision"] else ""
    address = f"{HUB_ADDRESS}{match['repository']}{revision}"
    return Asked(address, match["config"], split, column, PREFIX + place)


@dataclass(frozen=True)
class Chosen:
    """The files of a split.

    Attributes:
        kind: their ending, or "" of loose images.
        paths: below the place, sorted.
        folder: of loose images: what their paths count from; "" or ending in a slash.
        class_names: by column, where the README says them.
    """

    kind: str
    paths: list[str]
    folder: str = ""
    class_names: Mapping[str, list[str]] = field(default_factory=dict)


def kind_of(path: str) -> str | None:
    """The ending of a file that holds many images, "" of an image, None of anything else."""
    name = path.rpartition("/")[2]
    if is_hidden(path) or name == "metadata.parquet":
        return None
    ending = PurePosixPath(name).suffix.lower()
    return ending if ending in ENDINGS else "" if is_image(name) else None


def split_of(path: str, kind: str) -> str | None:
    """The split that a file's path names, if it does."""
    *folders, name = path.split("/")
    if kind and (match := NUMBERED.fullmatch(name)):
        return SPLIT_OF.get(match[1], match[1])
    for part in [*folders, *([name] if kind else [])]:
        for word in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", part.lower()):
            if word in SPLIT_OF:
                return SPLIT_OF[word]
    return None


def split_folders(paths: Sequence[str]) -> list[str]:
    """The folders of splits, such as `images/train`, where all folders of images are such, those that all lie in left out; `train` first.

    One folder is a split only where it is the first of the path. Images beside the folders are passed over.
    """
    folders = {path.rpartition("/")[0] for path in paths} - {""}
    tops = {folder.partition("/")[0] for folder in folders}
    start = ""
    while len(tops) == 1 and not _is_split(*tops):
        start += f"{tops.pop()}/"
        folders = {folder for folder in folders if len(folder) > len(start)}
        tops = {folder[len(start) :].partition("/")[0] for folder in folders}
    splits = {_is_split(top) for top in tops}
    meant = None not in splits and (len(splits) > 1 or (len(tops) == 1 and not start))
    return [start + top for top in sorted(tops, key=lambda top: (_is_split(top) != "train", top))] if meant else []


def _is_split(folder: str) -> str | None:
    """The split that a folder is called like, perhaps with a number: train, val2017."""
    match = re.fullmatch(r"([a-z]+)[\W\d_]*", folder.lower())
    return SPLIT_OF.get(match[1]) if match else None


def several_splits(place: str | Path, names: Sequence[str]) -> str:
    """The beginning of a sentence that refuses them; the way out is to follow."""
    return f"{place} holds several sets ({', '.join(names)}); "


def header_of(readme: bytes | None, where: str) -> dict[str, Any]:
    """The YAML between the first two lines `---` of a README.

    Raises:
        UserError: there are such, but what is between is damaged.
    """
    text = (readme or b"").decode("utf-8", "replace")
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        raise UserError(f"the header of {README} in {where} is no valid YAML; mend or remove it.") from None
    return found if isinstance(found, dict) else {}


def choose(asked: Asked, paths: Sequence[str], readme: bytes | None) -> Chosen:
    """The files of the split that is asked for.

    Args:
        asked: for which.
        paths: of all files below the place, with `/`.
        readme: what README.md holds, if there is one.

    Raises:
        UserError: there is no such configuration or split, several are there and none is asked for, or none of the files holds
            images.
    """
    header = header_of(readme, asked.spec)
    kinds = {path: kind for path in sorted(paths) if (kind := kind_of(path)) is not None}
    config, converted = asked.config, asked.place.endswith(tuple(f"@{name}" for name in CONVERTED))
    said = {str(one["config_name"]): one for one in _dicts(header.get("configs")) if "config_name" in one}
    splits: dict[str, list[str]] | None = None
    base = ""
    if said:
        config, one = _config(asked, said)
        if "data_files" in one:
            try:
                splits = _declared(one["data_files"], kinds)
            except re.error:
                raise UserError(
                    f"{asked.spec}: a pattern in the `configs` of its {README} is damaged; mend it."
                ) from None
        elif isinstance(one.get("data_dir"), str):
            base = _start(one["data_dir"])
    elif config is not None:
        starts = [s for s in (_start(config), f"data/{_start(config)}") if any(path.startswith(s) for path in kinds)]
        if not starts:
            raise UserError(f"{asked.spec}: there is no configuration and no folder with images called {config!r}.")
        base = starts[0]
    elif converted:
        folders = sorted({path.split("/")[0] for path in kinds})
        if len(folders) > 1:
            raise UserError(
                f"{asked.spec} holds several configurations ({', '.join(folders)}); give one, such as "
                f"'{asked.spec}/{folders[0]}'."
            )
    kinds = {path: kind for path, kind in kinds.items() if path.startswith(base)}
    if not kinds and (unread := count_unread(path for path in paths if path.startswith(base))):
        raise none_read(asked.spec, unread)
    if not kinds:
        raise UserError(
            f"{asked.spec} holds no Parquet, Arrow, tar or zip files and no images"
            + (f" ({', '.join(sorted(paths)[:3])}, …)" if paths else "")
            + ("; of many data sets on the Hub there is a copy in Parquet, called OWNER/NAME@~parquet." if "://" in asked.place
               else "; look at its spelling.")
        )  # fmt: skip
    if splits is None and converted and all(path.count("/") == 2 for path in kinds):
        splits = {}
        for path in kinds:
            splits.setdefault(path.split("/")[1], []).append(path)
    if splits is None:
        kind = _main_kind(list(kinds))
        splits = {}
        for path in (p for p, k in kinds.items() if k == kind):
            splits.setdefault(split_of(path, kind) or "", []).append(path)
        if set(splits) == {""}:
            splits = {"train": splits[""]}
        splits.pop("", None)
    split = _split(asked, splits)
    files = splits[split]
    kind = _main_kind(files)
    files = sorted(path for path in files if kinds.get(path) == kind)
    folder = "" if kind else _folder(asked, split, files, base)
    return Chosen(kind, files, folder, _class_names(header, config))


def _dicts(value: Any) -> list[dict[str, Any]]:
    """A dictionary, or those of a list."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


def _config(asked: Asked, said: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    name = asked.config
    if name is None:
        preferred = [n for n, one in said.items() if one.get("default") is True] or [n for n in said if n == "default"]
        name = preferred[0] if preferred else next(iter(said)) if len(said) == 1 else None
    if name is None:
        one = f", such as '{asked.spec}/{next(iter(said))}'" if asked.spec.startswith(PREFIX) else "'s folder"
        raise UserError(f"{asked.spec} holds several configurations ({', '.join(said)}); give one{one}.")
    if name not in said:
        raise UserError(f"{asked.spec}: there is no configuration {name!r}; there are {', '.join(said)}.")
    return name, said[name]


def _start(folder: str) -> str:
    """What the paths below a folder begin with."""
    start = folder.strip("/").removeprefix("./") + "/"
    return "" if start in ("/", "./") else start


def _declared(said: Any, kinds: dict[str, str]) -> dict[str, list[str]]:
    """The files of each split by `data_files` of a README."""
    if isinstance(said, dict):
        pairs = list(said.items())
    else:
        entries = said if isinstance(said, list) else [said]
        pairs = [
            (one.get("split", "train"), one.get("path")) if isinstance(one, dict) else ("train", one) for one in entries
        ]
    splits: dict[str, dict[str, None]] = {}
    for split, patterns in pairs:
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            match = re.compile(_as_regex(str(pattern).removeprefix("./")))
            splits.setdefault(str(split), {}).update(dict.fromkeys(path for path in kinds if match.fullmatch(path)))
    return {split: list(files) for split, files in splits.items() if files}


def _as_regex(pattern: str) -> str:
    """A pattern of paths: `**` fits any folders, `*` and `?` no slash."""
    found = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern):
        if part.startswith("[") and part.endswith("]"):
            inner = part[1:-1]
            found += f"[{'^' if inner[0] == '!' else ''}{re.escape(inner.lstrip('!')).replace(chr(92) + '-', '-')}]"
        else:
            found += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return found


def _main_kind(paths: Sequence[str]) -> str:
    """What kind of file a set is of, if there are several: tables before archives before loose images."""
    kinds = {kind_of(path) for path in paths}
    return next(kind for kind in (*ENDINGS, "") if kind in kinds)


def _split(asked: Asked, splits: Mapping[str, Sequence[str]]) -> str:
    if not splits:
        raise UserError(f"{asked.spec}: the files that its {README} names are not there; look at its `configs`.")
    if asked.split is not None:
        name = asked.split if asked.split in splits else SPLIT_OF.get(asked.split, asked.split)
        if name not in splits:
            raise UserError(f"{asked.spec} has no split {asked.split!r}; it has {', '.join(sorted(splits))}.")
        return name
    if len(splits) > 1:
        names = sorted(splits)
        first = "train" if "train" in splits else names[0]
        raise UserError(f"{asked.spec} has several splits ({', '.join(names)}); {_way_to(asked, first, splits)}.")
    return next(iter(splits))


def _way_to(asked: Asked, split: str, splits: Mapping[str, Sequence[str]]) -> str:
    """How to give one of several splits; an address of a store that is not the Hub's takes no `:SPLIT`."""
    if asked.spec.startswith(PREFIX):
        return f"give one, such as '{asked.spec}:{split}'"
    start = os.path.commonprefix(splits[split])  # noqa: RUF071 (of names, too)
    folder, _, name = start.rpartition("/")
    others = [path for other, paths in splits.items() if other != split for path in paths]
    if folder and not any(path.startswith(f"{folder}/") for path in others):
        return f"give one, such as '{asked.place}/{folder}'"
    beneath = any("/" in path[len(start) :] for path in splits[split])
    if not name or beneath or any(path.startswith(start) for path in others):
        return "keep each in a folder of its own"
    return f"give one, such as '{asked.place}/{start}{'*' * (len(splits[split]) > 1)}'"


def _folder(asked: Asked, split: str, files: Sequence[str], base: str) -> str:
    """What the paths of loose images count from: the folder that is called like the split, or the configuration's (`base`), or
    `data`, or the whole."""
    starts = set()
    for path in files:
        folders = path.split("/")[:-1]
        depth = next((i + 1 for i, part in enumerate(folders) if split_of(f"{part}/x", "") == split), 0)
        starts.add("".join(f"{part}/" for part in folders[:depth]))
    if len(starts) > 1:
        raise UserError(
            f"{asked.spec}: the images of {split} lie in several folders ({', '.join(sorted(starts)[:3])}); give one of them."
        )
    return starts.pop() or base or ("data/" if all(path.startswith("data/") for path in files) else "")


def _class_names(header: dict[str, Any], config: str | None) -> dict[str, list[str]]:
    """Names of classes by column, from `dataset_info` of a README."""
    infos = _dicts(header.get("dataset_info"))
    infos = [one for one in infos if one.get("config_name", config) == config] or (infos if len(infos) == 1 else [])
    found: dict[str, list[str]] = {}
    for feature in _dicts(infos[0].get("features")) if infos else []:
        kind = feature.get("dtype")
        label = kind.get("class_label") if isinstance(kind, dict) else None
        names = label.get("names") if isinstance(label, dict) else None
        if isinstance(names, dict) and isinstance(feature.get("name"), str):
            names = [names[key] for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0)]
        if isinstance(names, list) and isinstance(feature.get("name"), str):
            found[feature["name"]] = [str(name) for name in names]
    return found
