"""`index.html`: the whole run on one page that works offline: plan and times, curves, grids, figures, what to try next."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from rcg.core.charts import curve, number
from rcg.core.durations import as_flag, in_words
from rcg.core.page import figures, paragraphs, picture, table, write_html
from rcg.core.pictures import make_grid, spread
from rcg.core.schema import flag_of
from rcg.eval.reports import read_report
from rcg.recipe.journal import Journal
from rcg.recipe.look import in_sentences
from rcg.recipe.plan import ENOUGH_PASSES, amount_of, seen_by
from rcg.recipe.progress import TITLES
from rcg.recipe.rates import ELASTIC
from rcg.recipe.settings import Settings
from rcg.recipe.wishes import Wishes
from rcg.sampling.folder import GRID, GRID_IMAGES

GRIDS = 6
"""Of samples over time, at most."""


def write_page(out: Path, settings: Settings, journal: Mapping[str, Any]) -> None:
    """Write `OUT/index.html` from what the run has left.

    Args:
        out: folder of a run of which all but the page is done.
        settings: of the run.
        journal: of the run, up to date.
    """
    state: Journal = journal  # type: ignore[assignment]
    report = read_report(out / "metrics.json")
    name = html.escape(out.resolve().name)
    sections = [
        f"<h1>{name}</h1>",
        paragraphs(in_sentences(state["look"])),
        "<h2>Real and generated</h2>",
        figures(
            [
                picture("real (held out)", _real_grid(out / "held-out")),
                picture(f"generated, guidance {state['guidance_scale']:g}", Image.open(out / "images" / GRID)),
            ]
        ),
        "<h2>Score</h2>",
        _scores(report),
        _guidance(state),
        "<h2>Samples over time</h2>",
        "<p>First row: held-out images. Below each: what the generator makes of its representation, without guidance.</p>",
        figures(_over_time(out / "generator" / "training" / "samples")),
        "<h2>Curves</h2>",
        figures(part for stage in ELASTIC for part in _curves(out / stage, stage)),
        "<h2>Plan and time</h2>",
        _times(state),
        _reasons(state, settings),
        "<h2>What to try next</h2>",
        "<ul>" + "".join(f"<li>{hint}</li>" for hint in next_steps(out, settings, state)) + "</ul>",
    ]
    write_html(out / "index.html", out.resolve().name, sections)


def _real_grid(folder: Path) -> Image.Image:
    images = []
    files = sorted(folder.glob("[0-9]*.png"))  # without what a killed process left half-written
    for i in spread(len(files), GRID_IMAGES):
        with Image.open(files[i]) as image:
            images.append(image.convert("RGB"))
    return make_grid(images)


def _over_time(folder: Path) -> list[str]:
    """The training's own grids, at most `GRIDS` of them, spread evenly, the last one among them."""
    files = sorted(folder.glob("step-*.png"))
    chosen = sorted({round(i * (len(files) - 1) / max(1, GRIDS - 1)) for i in range(GRIDS)}) if files else []
    found = []
    for i in chosen:
        with Image.open(files[i]) as image:
            found.append(picture(f"step {int(files[i].stem.removeprefix('step-')):,}", image))
    return found


def read_curves(log: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, figure) points of every figure in a training log; figures that were not finite are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that is going on, or was killed
            break
        step = entry.pop("step")
        for key, value in entry.items():
            if value is not None:
                curves.setdefault(key, []).append((step, value))
    return curves


def _curves(folder: Path, stage: str) -> list[str]:
    """The loss of a stage, and what its evaluations found: figures that belong together in one chart."""
    found = read_curves(folder / "training" / "log.jsonl")
    together = {"rep_fd": ("rep_fd", "rep_fd_floor"), "velocity": ("velocity_error", "velocity_error_unconditional")}
    together |= {"k-NN accuracy": ("knn_features", "knn_representation")}
    title = TITLES[stage]
    charts = [curve(f"{title}: loss", {"loss": found.get("loss", [])})]
    charts += [
        curve(f"{title}: {name}", {k: found[f"eval/{k}"] for k in keys if f"eval/{k}" in found}, name == "rep_fd")
        for name, keys in together.items()
    ]
    return [chart for chart in charts if chart]


def _scores(report: Mapping[str, Any]) -> str:
    rows = [(html.escape(name), number(value)) for name, value in report["metrics"].items() if "_std" not in name]
    counts = report["counts"]
    against = f"{counts['generated']:,} generated images against {counts['reference']:,} that nothing was trained on"
    notes = paragraphs(report.get("notes", []))
    return f"<p>{against}; features of {html.escape(report['extractor']['name'])}.</p>{table(rows)}{notes}"


def _guidance(journal: Journal) -> str:
    rows = [
        (f"guidance {scale}{' (chosen)' if float(scale) == journal['guidance_scale'] else ''}", number(distance))
        for scale, distance in journal["distances"].items()
    ]
    count = amount_of(journal["plan"], "guidance")
    return f"<p>Fréchet distance of {count:,} images each, by which the guidance was chosen:</p>{table(rows)}"


def _times(journal: Journal) -> str:
    planned = {stage["name"]: stage for stage in journal["first_plan"]["stages"]}
    rows = []
    for name, took in journal["took"].items():
        first, amount = planned.get(name), amount_of(journal["plan"], name)
        cells = [
            TITLES[name],
            f"{first['amount']:,}" if first and first["amount"] else "",
            f"{amount:,}" if amount else "",
        ]
        cells += [in_words(first["seconds"]) if first else "", in_words(took)]
        rows.append(cells)
    head = ("", "planned", "done", "expected", "taken")
    announced, spent = journal["seconds"], journal["spent"]
    return (
        f"{table(rows, head)}<p>Announced: {in_words(announced)}; taken: {in_words(spent)} "
        f"({spent / announced - 1:+.0%}).</p>"
    )


def _reasons(journal: Journal, settings: Settings) -> str:
    """What spoke for the plan when it was made, and what the generator saw in the end, as its length was set anew."""
    plan = journal["plan"]
    seen = seen_by(plan, settings)
    end = f"In the end the generator saw {seen:,} images ({seen / plan['training_images']:.1f} passes)."
    return paragraphs(["What spoke for the plan when it was made:", *journal["first_plan"]["why"], end])


def next_steps(out: Path, settings: Settings, journal: Journal) -> list[str]:
    """What would help most, as HTML: more time, more or cleaner images, another encoder; and the commands to go on with."""
    plan, look = journal["plan"], journal["look"]
    seen = seen_by(plan, settings)
    passes = seen / plan["training_images"]
    places = (journal["wishes"]["data"], out / "model", out / "metrics.json")
    data, model, metrics = (html.escape(shlex.quote(str(place))) for place in places)
    hints = []
    if seen < settings.wanted_images and passes < ENOUGH_PASSES:
        longer = as_flag(journal["seconds"] * min(10.0, settings.wanted_images / max(1, seen)))
        hints.append(
            f"More time: the generator saw {seen:,} images ({passes:.1f} passes) and is far from done. Try "
            f"<code>rcg-train --data {data}{_flags(journal['wishes'])} --out … --budget {longer}</code>"
        )
    if passes >= ENOUGH_PASSES:
        hints.append(f"More images: the generator saw each of them {passes:.0f} times; more time will teach it little.")
    if look["repeated"] > 0.01 * look["compared"]:
        hints.append("Remove repeated images: models learn them by heart.")
    if journal["rates"]["encoder"] is not None:
        hints.append(
            "A better encoder: one that was trained for hours, or on more images, makes more of the same time. "
            "<code>--encoder FOLDER</code> takes any that this library has trained, <code>--encoder "
            "timm:vit_small_patch14_dinov2.lvd142m</code> a published one."
        )
    if journal["guidance_scale"] == max(settings.scales):
        hints.append("Stronger guidance may be better still: the strongest that was tried has won.")
    hints.append(f"More images of this model: <code>rcg-sample --model {model} --num-images 1000 --out samples</code>")
    hints.append(f"Publish it: <code>rcg-push --model {model} --repo you/my-model --metrics {metrics}</code>")
    return hints


def _flags(wishes: Mapping[str, Any]) -> str:
    """What was asked for beside the data, as flags in HTML, with a space before them."""
    default = {field.name: field.default for field in fields(Wishes)}
    words: list[str] = []
    for name, value in wishes.items():
        if name != "data" and value != default.get(name):
            words += [flag_of(name)] + ([] if value is True else [str(value)])
    return html.escape("".join(f" {shlex.quote(word)}" for word in words))
