"""`write_evaluation`: an evaluation as one HTML page that works offline, and a JSON beside it.

Figures with all that is needed to have them again, samples beside real images, sweeps, nearest training images, what a pipeline
makes of real images and of the way between two of its own, and a map of the representation space.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcg.core import page
from rcg.core.charts import curve, number
from rcg.core.errors import UserError
from rcg.core.files import write_json
from rcg.core.pictures import to_pil
from rcg.core.rng import derive_seed
from rcg.eval import space_map
from rcg.eval.evaluate import Examined
from rcg.eval.images import Images, PipelineImages
from rcg.eval.matches import Match, find_matches
from rcg.eval.metrics import metric_name
from rcg.eval.references import ImageStats
from rcg.eval.sweeps import TITLES
from rcg.eval.views import RECONSTRUCTED, Explorable, interpolations, reconstructions

PAGE, REPORT = "index.html", "report.json"
SAMPLES = 36
"""Images of either side that are shown."""
THUMB = 160
"""Pixels of a picture on the page, at most."""
ABOUT: dict[str, tuple[str, str]] = {
    "fid": ("Fréchet distance of the features' Gaussians", "lower"),
    "sfid": ("Fréchet distance of features that keep their places", "lower"),
    "fid_infinity": ("Fréchet distance, extrapolated to infinitely many images", "lower"),
    "isc": ("Inception Score: images that can be named, of many classes", "higher"),
    "kid": ("kernel distance", "lower"),
    "precision": ("samples that lie among real images", "higher"),
    "recall": ("real images that lie among samples", "higher"),
    "f_score": ("of precision and recall", "higher"),
    "density": ("how densely samples lie among real images; about 1 for real ones", "higher"),
    "coverage": ("real images with a sample close by", "higher"),
    "mind": ("sliced Wasserstein distance", "lower"),
    "cmmd": ("kernel distance of CLIP embeddings", "lower"),
    "vendi": ("how many different images there are", "higher"),
    "fld": ("feature likelihood divergence: quality, variety and novelty", "lower"),
    "copies": ("share of near-copies of training images", "about as expected"),
    "ct": ("C_T: below 0 samples are nearer to training images than new real ones", "about 0"),
}
"""Of each figure by its plain name: what it is, and which values are good."""
STYLE = (
    space_map.STYLE
    + """
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem 2rem }
.sheet { display: grid; grid-template-columns: repeat(6, 1fr); gap: 3px } .sheet img { width: 100% }
.row { display: flex; gap: 3px; overflow-x: auto; margin: 0 0 .5rem } .row img { flex: 1 0 2.1rem; min-width: 2.1rem; max-width: 7rem;
  width: 2.1rem; align-self: flex-start }
.matches { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: .9rem 2rem }
.match { display: grid; grid-template-columns: repeat(6, 1fr); gap: 5px } .match figcaption { font-size: .75rem; line-height: 1.3 }
.match img { width: 100% } .match { column-gap: 7px } .match > :first-child { position: relative }
.match > :first-child::after { content: ""; position: absolute; inset: 0 -5px 0 auto; width: 2px; background: var(--line) }
.match.copy > :first-child::after { background: var(--alarm) } .copy > :first-child figcaption { color: var(--alarm); font-weight: 600 }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 } .tile { background: var(--card); border-radius: 8px;
  padding: .5rem .9rem } .tile b { display: block; font-size: 1.5rem; line-height: 1.3; font-weight: 600 }
.tile .soft { font-size: .85rem } .text td .what { font-size: .85rem; white-space: normal }
.notes { border-left: 3px solid var(--c1); padding: .1rem 0 .1rem 1rem; margin: 1rem 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 34rem) { td, th { padding-right: .6rem }
  .text td:first-child, .text td:nth-child(2):not(:last-child) { white-space: normal; overflow-wrap: anywhere }
  .text td:first-child { min-width: 6rem } }
"""
)


def check_folder(folder: Path) -> None:
    """Refuse to write a report where something else lies.

    Raises:
        UserError: a file, or a folder with a page that is no report.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--report {folder} is a file; give the name of a folder.")
    if (folder / PAGE).exists() and not (folder / REPORT).exists():
        raise UserError(f"--report {folder} holds another {PAGE}; give another folder.")


def write_evaluation(
    folder: Path,
    examined: Examined,
    *,
    pipeline: Explorable | None = None,
    sweeps: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `index.html` and `report.json`.

    Args:
        folder: made if need be; an earlier report in it is replaced.
        examined: of `Evaluator.examine(…, keep=True)`; with `neighbors=True` the nearest training images are shown.
        pipeline: that the generated images were drawn by; they are then a `PipelineImages`.
        sweeps: what `rcg.eval.sweeps.run_sweeps` found.
    """
    report = dict(examined.report)
    real, generated = examined.reference, examined.generated
    gallery = _Gallery()
    sections = [_head(report), _scores(report)]
    sections += ["<h2>Samples and real images</h2>", _samples(generated, real, gallery)]
    if sweeps:
        report["sweeps"] = [dict(sweep) for sweep in sweeps]
        sections += ["<h2>Sweeps</h2>", *_sweeps(sweeps)]
    sections += ["<h2>Nearest training images</h2>", _or_reason(lambda: _matches(examined, report))]
    if pipeline is not None and isinstance(generated, PipelineImages):
        strips = _or_reason(lambda: _strips(interpolations(pipeline, generated)))
        sections += ["<h2>From one representation to another</h2>", strips]
        anew = _or_reason(lambda: _drawn_anew(pipeline, generated, real))
        sections += ["<h2>Real images, drawn anew</h2>", anew]
    found = _map(examined, gallery)
    sections.append("<h2>Map of the representation space</h2>")
    if found is None:
        sections.append(_left_out("it needs at least 8 real and 8 generated images that are at hand."))
    else:
        report["map"] = found[0].to_json()
        sections.append(found[1])
    sections += ["<h2>To have the same figures again</h2>", _provenance(examined.report)]
    write_json(folder / REPORT, report)
    title = f"{_name(report)} evaluated"
    page.write_html(folder / PAGE, title, sections, style=STYLE, script="" if found is None else space_map.SCRIPT)


class _Gallery:
    """Images by number, fetched once."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Image.Image] = {}

    def pictures(self, images: Images, numbers: Sequence[int]) -> list[Image.Image] | None:
        """The images of these numbers; None of a stream that has passed."""
        missing = [n for n in dict.fromkeys(numbers) if (id(images), n) not in self._held]
        if missing:
            fetched = images.pick(missing)
            if fetched is None:
                return None
            self._held |= {(id(images), n): image for n, image in zip(missing, to_pil(fetched), strict=True)}
        return [self._held[id(images), n] for n in numbers]


def _name(report: Mapping[str, Any]) -> str:
    source = str(report["sources"]["generated"])
    return source if source.startswith("rcg/") else Path(source).name or source


def _left_out(reason: str) -> str:
    return f'<p class="soft">Not shown: {html.escape(reason)}</p>'


def _or_reason(make: Callable[[], str]) -> str:
    """A section, or in its place the sentence that says why it cannot be had."""
    try:
        return make()
    except UserError as e:
        return _left_out(str(e))


def _thumb(image: Image.Image, alt: str = "") -> str:
    return page.tag(space_map.thumbnail(image, THUMB), alt)


# ---------------------------------------------------------------------- figures


def _plain(name: str, extractor: str) -> str:
    """A figure's name without its extractor: `frechet-encoder` → `fid`."""
    if name in ABOUT:
        return name
    for plain in ABOUT:
        if metric_name(plain, extractor) == name:
            return plain
    return name


def _figure(report: Mapping[str, Any], name: str) -> str:
    """A figure with its deviation."""
    value = report["metrics"][name]
    deviation = report.get("deviations", {}).get(name)
    if deviation is None:
        base, dash, rest = name.partition("-")
        deviation = report["metrics"].get(f"{base}_std{dash}{rest}")
    return number(value) if deviation is None else f"{number(value)} ± {number(deviation)}"


def _shown(report: Mapping[str, Any]) -> list[str]:
    """Names of the figures but spreads."""
    return [name for name in report["metrics"] if not name.partition("-")[0].endswith("_std")]


def _headlines(report: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The figures to begin with."""
    extractor = report["extractor"]["name"]
    plain = ("fid", "isc", "fld", "precision", "recall", "density", "coverage", "copies")
    found = {_plain(name, extractor): (name, report["metrics"][name]) for name in _shown(report)}
    chosen = [found[name] for name in plain if name in found]
    return chosen[:6] or list(found.values())[:6]


def _head(report: Mapping[str, Any]) -> str:
    counts, sources, extractor = report["counts"], report["sources"], report["extractor"]["name"]
    against = ""
    if sources.get("reference") is not None:
        known = counts.get("reference")
        images = "images" if known is None else f"{known:,} images"
        against = f" against {images} of <code>{html.escape(str(sources['reference']))}</code>"
    tiles = "".join(
        f'<div class="tile"><span class="soft">{html.escape(name)}</span><b>{number(value)}</b></div>'
        for name, value in _headlines(report)
    )
    return (
        f"<h1>{html.escape(_name(report))}</h1><p>{counts['generated']:,} generated images{against}, in the features of "
        f'<code>{html.escape(extractor)}</code>.</p><div class="tiles">{tiles}</div>'
    )


def _scores(report: Mapping[str, Any]) -> str:
    extractor = report["extractor"]["name"]
    rows = []
    for name in _shown(report):
        what, good = ABOUT.get(_plain(name, extractor), ("", ""))
        told = report["settings"].get(name, {})
        good = html.escape(good)
        if {"expected", "p_value"} <= told.keys():  # of repeats, what differs between them is not there
            good = f"about {told['expected']:.2g}<br>p = {told['p_value']:.2g}"
        elif "deviation" in told:
            good = f"0 ± {told['deviation']:.2g}"
        words = f'{html.escape(name)}<br><span class="soft what">{html.escape(what)}</span>'
        rows.append((words, _figure(report, name), good))
    parts = ["<h2>Figures</h2>", page.table(rows, ("", "value", "good"), text=True)]
    if "repeats" in report:
        parts.append(f"<p class='soft'>Mean and standard deviation of {len(report['repeats'])} sets.</p>")
    if report["notes"]:
        parts.append(f'<div class="notes">{page.paragraphs(report["notes"])}</div>')
    if report["unavailable"]:
        parts.append("<h3>Left out</h3>" + page.pairs(report["unavailable"]))
    return "".join(parts)


# ---------------------------------------------------------------------- pictures


def _numbers(images: Images, wanted: int) -> list[int]:
    """Which images are shown: a pipeline's first, and of others a random part (a sorted folder begins with one class)."""
    count = images.count() or 0
    if isinstance(images, PipelineImages):
        return list(range(min(count, wanted)))
    return [int(i) for i in np.random.default_rng(derive_seed(count, 11)).permutation(count)[:wanted]]


def _samples(generated: Images, real: Images | None, gallery: _Gallery) -> str:
    sheets = []
    for title, images in (("generated", generated), ("real", real)):
        found = None if images is None else gallery.pictures(images, _numbers(images, SAMPLES))
        if not found:
            sheets.append(f'<div><p class="title">{title}</p>{_left_out("the images are not at hand.")}</div>')
            continue
        cells = "".join(_thumb(image) for image in found)
        alt = f"{len(found)} {title} images"
        sheets.append(
            f'<div><p class="title">{title}</p><div class="sheet" role="img" aria-label="{alt}">{cells}</div></div>'
        )
    return '<div class="sheets">' + "".join(sheets) + "</div>"


def _sweeps(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    first = sweeps[0]
    charts, tables = [], []
    for sweep in sweeps:
        points, across = sweep["points"], TITLES[sweep["setting"]]
        names = [n for n in points[0]["metrics"] if not n.partition("-")[0].endswith("_std")]
        series = {n: [(p["value"], p["metrics"][n]) for p in points] for n in names}
        charts.append(
            curve(f"{names[0] if len(names) == 1 else sweep['metric']} by {across}", series, across=across, last=False)
        )
        rows = [(number(p["value"]), *(number(p["metrics"][n]) for n in names)) for p in points]
        tables.append(page.table(rows, (across, *map(html.escape, names))))
    told = f"{first['images']:,} images at every point, of one seed: compare them with each other, not with the figures above."
    return [
        f"<p>{told}</p>",
        page.figures(charts),
        f"<details><summary>The same as tables</summary>{page.figures(tables)}</details>",
    ]


def _matches(examined: Examined, report: dict[str, Any]) -> str:
    """Samples beside their nearest training images, which also go into the report."""
    if examined.sides.train is None or examined.sides.train.neighbors is None:
        return _left_out("give --train-data DIR and --held-out DIR.")
    nearest, others = find_matches(examined)
    report["neighbors"] = [match.to_json() for match in (*nearest, *others)]
    told = next((s for name, s in report["settings"].items() if name.startswith("copies")), None)
    words = "Left each sample, beside it the training images that are nearest to it, with their distances."
    if told is not None and "threshold" in told:
        words += (
            f" A sample nearer than {number(told['threshold'])} counts as a near-copy: so near are only "
            f"{100 * told['expected']:.2g} % of {told['held_out']:,} held-out images."
        )
    parts = [f"<p>{html.escape(words)}</p>"]
    for title, matches in (("The nearest", nearest), ("At random", others)):
        if matches:
            parts.append(f'<h3>{title}</h3><div class="matches">{"".join(map(_match, matches))}</div>')
    return "".join(parts)


def _match(match: Match) -> str:
    def cell(image: Image.Image, alt: str, caption: str, title: str | None) -> str:
        hint = "" if title is None else f' title="{html.escape(title)}"'
        return f"<figure{hint}>{_thumb(image, alt)}<figcaption>{html.escape(caption)}</figcaption></figure>"

    cells = [cell(match.picture, f"sample {match.number}", "near-copy" if match.near_copy else f"{match.number}", None)]
    cells += [
        cell(image, f"training image {n}", number(distance), file or f"training image {n}")
        for image, n, distance, file in zip(
            match.train_pictures, match.train_numbers, match.distances, match.train_files, strict=True
        )
    ]
    return f'<div class="match{" copy" if match.near_copy else ""}">{"".join(cells)}</div>'


def _strips(strips: Sequence[Sequence[Image.Image]]) -> str:
    rows = "".join(
        f'<div class="row" role="img" aria-label="{len(strip)} images from one representation to another">'
        f"{''.join(_thumb(image) for image in strip)}</div>"
        for strip in strips
    )
    return f"<p>Along the great circle between two sampled representations; the images of a row share their noise.</p>{rows}"


def _drawn_anew(pipeline: Explorable, generated: PipelineImages, real: Images | None) -> str:
    numbers = [] if real is None else _numbers(real, RECONSTRUCTED)
    pixels = real.pick(numbers) if real is not None and numbers else None
    if pixels is None:
        return _left_out("the real images are not at hand.")
    drawn = reconstructions(pipeline, generated, pixels)
    rows = [[picture for picture, _ in drawn], *zip(*(made for _, made in drawn), strict=True)]
    names = ("real images", *(f"drawn from their representations, {i}" for i in range(1, len(rows))))
    cells = "".join(
        f'<div class="row" role="img" aria-label="{name}">{"".join(_thumb(image) for image in row)}</div>'
        for name, row in zip(names, rows, strict=True)
    )
    return (
        "<p>First row: real images. Below: what the generator makes of their representations, from two draws of noise. What "
        f"stays is what the representation holds.</p>{cells}"
    )


def _map(examined: Examined, gallery: _Gallery) -> tuple[space_map.SpaceMap, str] | None:
    """The map and its HTML, or None where there is too little for one."""

    def known(stats: ImageStats | None) -> tuple[Any, list[int]] | None:
        if stats is None or stats.features is None or stats.numbers is None or len(stats.features) < space_map.LEAST:
            return None
        return stats.features, stats.numbers.tolist()

    fake, real = known(examined.sides.generated), known(examined.sides.reference)
    if fake is None or real is None or examined.reference is None:
        return None
    found = space_map.make_map(real[0], fake[0], real[1], fake[1], examined.sides.seed)
    pictures = [
        gallery.pictures(images, numbers)
        for images, numbers in ((examined.reference, found.real), (examined.generated, found.generated))
    ]
    if pictures[0] is None or pictures[1] is None:
        return None
    words = (
        "<p>Where real and generated images lie in the extractor's features. t-SNE keeps neighbours together, and its large "
        f"distances mean nothing; PCA is a straight projection, which keeps {found.explained:.0%} of the real images' variance. "
        "Drag to move, turn the wheel or pinch to come closer, touch an image to see it.</p>"
    )
    return found, words + space_map.map_figure(found, pictures[0], pictures[1])


# ---------------------------------------------------------------------- provenance


def _provenance(report: Mapping[str, Any]) -> str:
    parts = []
    if report["command"]:
        parts.append(f"<p>The command:</p><pre>{html.escape(shlex.join(map(str, report['command'])))}</pre>")
    parts.append("<h3>Extractor</h3>" + page.pairs(report["extractor"]))
    sets = report["sets"]
    fields = ("source", "size", "resize", "precision", "formats", "classes")
    rows = []
    for field in fields:
        cells = [_words(origin.get(field)) for origin in sets.values()]
        if any(cells):
            rows.append((field, *cells))
    rows.append(("images", *(_words(report["counts"].get(side)) for side in sets)))
    parts.append("<h3>Sets</h3>" + page.table(rows, ("", *map(html.escape, sets)), text=True))
    for key, title in (("pipeline", "Pipeline"), ("sampling", "Sampling")):
        if key in report:
            told = {k: v for k, v in report[key].items() if k != "settings"} | dict(report[key].get("settings", {}))
            parts.append(f"<h3>{title}</h3>" + page.pairs({k: v for k, v in told.items() if v is not None}))
    rows = [(html.escape(name), _words(told)) for name, told in report["settings"].items()]
    parts.append("<h3>How each figure was computed</h3>" + page.table(rows, text=True))
    parts.append("<h3>Versions</h3>" + page.pairs(report["versions"]))
    whole = html.escape(json.dumps(report, indent=2))
    return "".join(parts) + f"<details><summary>All of it as JSON</summary><pre>{whole}</pre></details>"


def _words(value: Any) -> str:
    """A value as HTML; a mapping as `name value` pairs."""
    if value is None or value == {}:
        return ""
    if isinstance(value, Mapping):
        some = [f"{html.escape(str(k))} {_words(v)}" for k, v in value.items()]
        return ", ".join(some[:12]) + (f", … ({len(some)})" if len(some) > 12 else "")
    return number(value) if isinstance(value, float) else html.escape(str(value))
