"""Half of a labelled folder of images, drawn by a seed: `python benchmarks/half_split.py TRAIN HALF.zip --per-class 2500 --seed 0`.

Of each class, the files are sorted by name and numpy's `default_rng([seed, number of the class])` draws; the chosen ones go into an
uncompressed archive with a folder a class, and their names into HALF.txt beside it. Nothing is done if both are there already.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np

from rcg.core.files import atomic_file


def main() -> None:
    """Draw, and write the archive and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("half", type=Path)
    parser.add_argument("--per-class", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.half.with_suffix(".txt")
    if given.half.exists() and names.exists():
        return
    chosen: list[str] = []
    for number, folder in enumerate(sorted(p for p in given.train.iterdir() if p.is_dir())):
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        if len(files) < given.per_class:
            raise SystemExit(f"{folder} has {len(files)} images, fewer than --per-class {given.per_class}.")
        rows = np.random.default_rng([given.seed, number]).choice(len(files), given.per_class, replace=False)
        chosen += [f"{folder.name}/{files[i].name}" for i in np.sort(rows)]
    with atomic_file(given.half) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in chosen:
            archive.write(given.train / name, name)
    with atomic_file(names) as temporary:
        temporary.write_text("\n".join(chosen) + "\n")


if __name__ == "__main__":
    main()
