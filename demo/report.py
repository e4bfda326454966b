"""The demo's picture and table: `python demo/report.py OUT TEST` reads what demo/run.sh left in OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rcg.core.files import atomic_file, write_json
from rcg.core.pictures import to_pil
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.eval.reports import format_table, read_report

COLUMNS, ROWS, SCALE = 16, 3, 2  # pictures across, rows a block, enlargement
BLOCKS = [
    ("real", None),
    ("unconditional baseline", "baseline"),
    ("RCG", "rcg"),
    ("RCG, guided", "rcg-guided"),
]


def pictures(name: str | None, out: Path, test: str) -> list[Image.Image]:
    """The first pictures of one block."""
    count = COLUMNS * ROWS
    if name is None:
        size = Image.open(out / "images-rcg" / "000000.png").size[0]
        data = ImageDataset(open_source(test), size)
        indices = np.arange(min(count, len(data)))
        return to_pil(to_unit(data.batch(indices, np.zeros(len(indices), np.uint64))["images"]))
    return [Image.open(file).convert("RGB") for file in sorted((out / f"images-{name}").glob("[0-9]*.png"))[:count]]


def sheet(out: Path, test: str) -> Image.Image:
    """All blocks under each other, each with its name."""
    blocks = [(title, pictures(name, out, test)) for title, name in BLOCKS]
    side = blocks[0][1][0].size[0] * SCALE
    label = 16
    canvas = Image.new("RGB", (COLUMNS * side, len(blocks) * (label + ROWS * side)), "white")
    draw = ImageDraw.Draw(canvas)
    for b, (title, images) in enumerate(blocks):
        top = b * (label + ROWS * side)
        draw.text((4, top + 2), title, fill="black")
        for i, image in enumerate(images):
            enlarged = image.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (i % COLUMNS * side, top + label + i // COLUMNS * side))
    return canvas


def main() -> None:
    out, test = Path(sys.argv[1]), sys.argv[2]
    with atomic_file(out / "grid.png") as temporary:
        sheet(out, test).save(temporary, format="PNG")
    reports = {title: read_report(out / f"metrics-{name}.json") for title, name in BLOCKS if name}
    write_json(out / "metrics.json", reports)
    print("\n" + format_table(reports))
    print(f"\nmodel   {out / 'model'}\nmetrics {out / 'metrics.json'}\ngrid    {out / 'grid.png'}")


if __name__ == "__main__":
    main()
