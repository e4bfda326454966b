"""Building blocks of HTML pages that need nothing from elsewhere: text, tables, pictures within the page itself. A leaf."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from rcg.core.files import atomic_file

LARGE = 384 * 384
"""Pixels from which a picture is stored as JPEG, which is a tenth of the size then."""
STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6474; --paper: #fff; --card: #f5f6f8; --line: #dfe3e8;
  --c0: #1f6fc9; --c1: #d1521b; --c2: #1f8a4c; --c3: #8655b5; --alarm: #c62828 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --paper: #14171d; --card: #1d222b;
  --line: #323a47; --c0: #6cb0f5; --c1: #f29063; --c2: #6ccb90; --c3: #c39be8; --alarm: #ff7b72 } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; max-width: 66rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem } p { margin: .5rem 0; max-width: 46rem } .soft, figcaption { color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
td:first-child, th:first-child, .text td, .text th { text-align: left } th { font-weight: 600 }
tr:last-child td { border-bottom: 0 } .text td:first-child, .text td:nth-child(2):not(:last-child) { white-space: nowrap }
figure { margin: 0 } .figures { display: flex; flex-wrap: wrap; gap: 1.2rem 1.6rem } figure.wide { width: 27rem; max-width: 100% }
figure.wide > figcaption, .title { font-weight: 600; color: var(--ink) } img { max-width: 100%; vertical-align: top }
figure.wide img { width: 100% } img.small { image-rendering: pixelated }
svg { width: 100%; height: auto } svg .axis { stroke: var(--soft); fill: none; opacity: .6 }
svg text { font-size: 11px; fill: var(--soft) } svg polyline { fill: none; stroke-width: 1.8 }
.keys { font-size: .85rem } .keys span { margin-right: 1rem; display: inline-block }
.keys i { display: inline-block; width: .9rem; height: .2rem; margin-right: .35rem; vertical-align: middle }
code, pre { font: .85em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--card); border-radius: 4px }
code { padding: .1rem .3rem; overflow-wrap: anywhere } pre { padding: .8rem; overflow-x: auto }
ul { padding-left: 1.2rem } details { margin: .6rem 0 } summary { cursor: pointer }
"""
"""Colours follow the reader's choice of light or dark; everything fits a phone."""


def paragraphs(sentences: Iterable[str]) -> str:
    """A paragraph for each sentence, as plain text."""
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def data_uri(image: Image.Image) -> str:
    """A picture as the address of itself: PNG, or JPEG of quality 92 if it has more than `LARGE` pixels."""
    data = io.BytesIO()
    if image.width * image.height > LARGE:
        image.convert("RGB").save(data, format="JPEG", quality=92, subsampling=0)
    else:
        image.convert("RGB").save(data, format="PNG", optimize=True)
    kind = "jpeg" if image.width * image.height > LARGE else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def tag(image: Image.Image, alt: str) -> str:
    """An `<img>`; enlarged without blur if it is small.

    Args:
        image: the picture.
        alt: what it shows, in words; empty where the words stand beside it.
    """
    small = ' class="small"' if image.width <= 64 else ""
    return f'<img alt="{html.escape(alt)}"{small} src="{data_uri(image)}">'


def picture(title: str, image: Image.Image) -> str:
    """A wide picture with its title above it."""
    text = html.escape(title)
    return (
        f'<figure class="wide"><figcaption>{text}</figcaption>'
        f'<img alt="{text}" class="small" src="{data_uri(image)}"></figure>'
    )


def figures(parts: Iterable[str]) -> str:
    """Figures beside each other, as many as there is room for."""
    return '<div class="figures">' + "".join(parts) + "</div>"


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), text: bool = False) -> str:
    """A table, which scrolls sideways where it is too wide.

    Args:
        rows: cells, as HTML.
        head: above the columns, as HTML.
        text: all columns hold words, and begin on the left.
    """

    def row(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"

    body = (row("th", head) if head else "") + "".join(row("td", cells) for cells in rows)
    words = ' class="text"' if text else ""
    return f'<div class="scroll"><table{words}>{body}</table></div>'


def pairs(values: Mapping[str, object]) -> str:
    """A table of names and values, as plain text."""
    return table([(html.escape(str(k)), html.escape(str(v))) for k, v in values.items()], text=True)


def write_html(path: Path, title: str, sections: Iterable[str], *, style: str = "", script: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        path: of the file.
        title: of the window, as plain text.
        sections: of the body, as HTML.
        style, script: CSS and JavaScript beside `STYLE`.
    """
    ending = f"<script>\n{script}</script>\n" if script else ""
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}{style}</style></head>\n<body>\n" + "\n".join(sections) + f"\n{ending}</body></html>\n"
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need be no UTF-8
