"""`index.html`: the whole run on one page that works offline: plan and times, curves, grids, figures, what to try next."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rcg.core.durations import as_flag, in_words
from rcg.core.files import atomic_file
from rcg.core.pictures import make_grid
from rcg.eval.reports import read_report
from rcg.core.charts import curve, number
from rcg.recipe.journal import Journal
from rcg.recipe.look import in_sentences
from rcg.recipe.plan import amount_of, seen_by
from rcg.recipe.progress import TITLES
from rcg.recipe.rates import ELASTIC
from rcg.recipe.settings import Settings
from rcg.sampling.folder import GRID, GRID_IMAGES

GRIDS = 6
"""Of samples over time, at most."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; max-width: 27rem }
figcaption { font-weight: 600 } img { image-rendering: pixelated; width: 27rem; max-width: 100% }
svg { width: 27rem; max-width: 100% } svg .axis { stroke: #999; fill: none } svg text { font-size: 11px; fill: #555 }
svg polyline { fill: none; stroke-width: 1.5 } .keys span { margin-right: 1rem } .keys i { display: inline-block; width: .8rem;
height: .2rem; margin-right: .3rem; vertical-align: middle } code { background: #f3f3f3; padding: 0 .2rem }
"""


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
        _paragraphs(in_sentences(state["look"])),
        "<h2>Real and generated</h2>",
        _picture("real (held out)", _real_grid(out / "held-out")),
        _picture(f"generated, guidance {state['guidance_scale']:g}", Image.open(out / "images" / GRID)),
        "<h2>Score</h2>",
        _scores(report),
        _guidance(state),
        "<h2>Samples over time</h2>",
        "<p>First row: held-out images. Below each: what the generator makes of its representation, without guidance.</p>",
        *_over_time(out / "generator" / "training" / "samples"),
        "<h2>Curves</h2>",
        *(part for stage in ELASTIC for part in _curves(out / stage, stage)),
        "<h2>Plan and time</h2>",
        _times(state),
        _paragraphs(state["plan"]["why"]),
        "<h2>What to try next</h2>",
        "<ul>" + "".join(f"<li>{hint}</li>" for hint in next_steps(out, settings, state)) + "</ul>",
    ]
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    with atomic_file(out / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _paragraphs(sentences: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def _picture(title: str, image: Image.Image) -> str:
    """A picture within the page itself."""
    data = io.BytesIO()
    image.convert("RGB").save(data, format="PNG", optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    title = html.escape(title)
    return f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="data:image/png;base64,{source}"></figure>'


def _real_grid(folder: Path) -> Image.Image:
    images = []
    for path in sorted(folder.glob("*.png"))[:GRID_IMAGES]:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return make_grid(images)


def _over_time(folder: Path) -> list[str]:
    """The training's own grids, at most `GRIDS` of them, spread evenly, the last one among them."""
    files = sorted(folder.glob("step-*.png"))
    chosen = sorted({round(i * (len(files) - 1) / max(1, GRIDS - 1)) for i in range(GRIDS)}) if files else []
    found = []
    for i in chosen:
        with Image.open(files[i]) as image:
            found.append(_picture(f"step {int(files[i].stem.removeprefix('step-')):,}", image))
    return found


def read_curves(log: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, figure) points of every figure in a training log; figures that were not finite are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in log.read_text().splitlines() if log.is_file() else []:
        entry = json.loads(line)
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
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{number(value)}</td></tr>"
        for name, value in report["metrics"].items()
        if "_std" not in name
    )
    counts = report["counts"]
    against = f"{counts['generated']:,} generated images against {counts['reference']:,} that nothing was trained on"
    notes = _paragraphs(report.get("notes", []))
    return f"<p>{against}; features of {html.escape(report['extractor']['name'])}.</p><table>{rows}</table>{notes}"


def _guidance(journal: Journal) -> str:
    rows = "".join(
        f"<tr><td>guidance {scale}{' (chosen)' if float(scale) == journal['guidance_scale'] else ''}</td>"
        f"<td>{number(distance)}</td></tr>"
        for scale, distance in journal["distances"].items()
    )
    count = amount_of(journal["plan"], "guidance")
    return f"<p>Fréchet distance of {count:,} images each, by which the guidance was chosen:</p><table>{rows}</table>"


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
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th></th><th>planned</th><th>done</th><th>expected</th><th>taken</th></tr>"
    announced, spent = journal["seconds"], journal["spent"]
    return (
        f"<table>{head}{''.join(rows)}</table><p>Announced: {in_words(announced)}; taken: {in_words(spent)} "
        f"({spent / announced - 1:+.0%}).</p>"
    )


def next_steps(out: Path, settings: Settings, journal: Journal) -> list[str]:
    """What would help most, as HTML: more time, more or cleaner images, another encoder; and the commands to go on with."""
    plan, look = journal["plan"], journal["look"]
    seen = seen_by(plan, settings)
    passes = seen / plan["training_images"]
    data, model = html.escape(str(journal["wishes"]["data"])), html.escape(str(out / "model"))
    hints = []
    if seen < settings.wanted_images and passes < 100:
        longer = as_flag(journal["seconds"] * min(10.0, settings.wanted_images / max(1, seen)))
        hints.append(
            f"More time: the generator saw {seen:,} images ({passes:.1f} passes) and is far from done. Try "
            f"<code>rcg-train --data {data} --out … --budget {longer}</code>"
        )
    if passes >= 100:
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
    metrics = html.escape(str(out / "metrics.json"))
    hints.append(f"Publish it: <code>rcg-push --model {model} --repo you/my-model --metrics {metrics}</code>")
    return hints
