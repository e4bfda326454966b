"""Every key of every JSON file that is read, generated from files that the library wrote, with values that cannot be."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcg import RCGPipeline, UserError
from rcg.core.rng import sample_generators
from rcg.data.cache import Cache
from rcg.data.sources import open_source
from rcg.eval.reports import read_report
from rcg.hub import figures, read_metrics
from rcg.sampling.folder import SamplingFolder
from rcg.training.loop import train
from tests.components import get_dummy_pipeline
from tests.data import caches
from tests.training.stages import RegressionStage
from tests.training.test_loop import config

WRONG = {"what": ["is", "this"]}
HUGE = (10**7, 10**30, 10**400, -1, float("inf"), float("nan"))
UNREADABLE = ("", "{", "[1]", "null", "[" * 100_000, '{"a": 1', "\0")
FREE = {
    "model_index.json": {"_diffusers_version"},
    "config.json": {"_diffusers_version", "_name_or_path", "arch_kwargs"},
    "scheduler_config.json": {"_diffusers_version"},
    "meta.json": {"identity", "counts", "sums"},  # open mappings: what is wrong in them is found elsewhere
    "sampling.json": {"settings", "run", "model"},  # compared as a whole with what is asked for
    "metrics.json": {
        "unavailable",
        "notes",
        "settings",
        "sources",
        "command",
        "versions",
        "counts",
        "extractor",
        "format",
    },
    "manifest.json": {"fields", "commands"},
}
"""Keys by file that any value, or any mapping, may stand under."""


def load_pipeline(folder: Path) -> None:
    pipe = RCGPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(generator=sample_generators(0, 0, 1), output_type="pt").images
    assert isinstance(images, torch.Tensor)
    assert images.isfinite().all()


def load_cache(folder: Path) -> None:
    Cache(folder).batch(np.arange(3), np.arange(3, dtype=np.uint64))


def load_run(folder: Path) -> None:
    train(RegressionStage(), config(folder, resume=True))


def load_metrics(folder: Path) -> None:
    assert figures(read_metrics(folder / "metrics.json"))
    read_report(folder / "metrics.json")


def load_samples(folder: Path) -> None:
    SamplingFolder(folder).read()


def make_pipeline(folder: Path) -> None:
    get_dummy_pipeline().save_pretrained(folder)


def make_flow(folder: Path) -> None:
    get_dummy_pipeline(method="flow").save_pretrained(folder)


def make_codes(folder: Path) -> None:
    get_dummy_pipeline(method="codes").save_pretrained(folder)


def make_cache(folder: Path) -> None:
    caches.make(open_source("shapes:n=12,size=8"), folder)


def make_run(folder: Path) -> None:
    train(RegressionStage(), config(folder))


def make_metrics(folder: Path) -> None:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"format": 1, "metrics": {"fid": 3.5}, "notes": []}))


def make_samples(folder: Path) -> None:
    SamplingFolder(folder).claim({"seed": 3}, model="model", resume=False, overwrite=False)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "pipeline": (make_pipeline, load_pipeline),
    "flow": (make_flow, load_pipeline),
    "codes": (make_codes, load_pipeline),
    "cache": (make_cache, load_cache),
    "run": (make_run, load_run),
    "metrics": (make_metrics, load_metrics),
    "samples": (make_samples, load_samples),
}


def keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of nested mappings."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from keys(inner, (*path, key))


def changed(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """A copy with another value at `path`; without the key if that is `...`."""
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    if new is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, load = KINDS[kind]
    whole = tmp_path / "whole"
    make(whole)
    load(whole)
    files = [f.relative_to(whole) for f in sorted(whole.rglob("*.json"))]
    if kind == "run":  # the newest checkpoint is read
        files = [max(f for f in files if f.name == "meta.json")]
    if kind in ("flow", "codes"):  # the rest is like that of every pipeline
        files = [f for f in files if f.parts[0] == "rdm" or (kind == "codes" and f.parts[0] == "rdm_scheduler")]
    assert files
    allocated: list[int] = []
    empty = torch.empty

    def guarded(*size: Any, **options: Any) -> torch.Tensor:
        made = empty(*size, **options)
        if made.device.type != "meta":
            allocated.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", guarded)
    wrong: list[str] = []
    for file in files:
        text = (whole / file).read_text()
        content = json.loads(text)
        free = FREE.get(file.name, set())
        trials: list[tuple[str, str, bool]] = [(f"{t[:9]!r}", t, True) for t in UNREADABLE]
        trials.append(
            (
                "unknown key",
                json.dumps(content | {"surprise": 1}),
                file.name != "metrics.json" and file.parts[0] != "rdm_scheduler",
            )
        )
        for place, path in enumerate(keys(content)):
            huge = HUGE[place % 6 :: 6] if kind == "pipeline" else HUGE  # the largest kind: one of the values, in turn
            inside = bool(free & set(path))
            trials.append((f"{path} wrong", json.dumps(changed(content, path, WRONG)), not inside))
            trials.append((f"{path} missing", json.dumps(changed(content, path, ...)), False))
            trials += [(f"{path} {v:.0e}" if isinstance(v, float) else f"{path} 10^{len(str(v)) - 1}",
                        json.dumps(changed(content, path, v)), False) for v in huge]  # fmt: skip
        for name, damaged, must_fail in trials:
            folder = whole
            if kind == "run":  # a run that goes on writes
                folder = tmp_path / "copy"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(whole, folder)
            (folder / file).write_text(damaged)
            try:
                load(folder)
            except UserError as e:
                if "\n" in str(e) or not str(e).strip():
                    wrong.append(f"{file} {name}: {e}")
            except BaseException as e:
                wrong.append(f"{file} {name}: {type(e).__name__} {str(e)[:100]}")
            else:
                if must_fail:
                    wrong.append(f"{file} {name}: accepted")
            (whole / file).write_text(text)
    assert not wrong, "\n".join(wrong)
    assert max(allocated, default=0) < 10**8
