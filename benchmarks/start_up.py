"""Start-up of a source against the number of its images: a folder, shards, zip archives, Arrow and Parquet tables.

    python benchmarks/start_up.py --images 1000 10000 --out benchmarks/results/start_up.json

Real files of 16 px noise. Each source is opened in a process of its own, twice: for the first time, when every image is
decoded once, and again, when that is remembered. Seconds are those of `open_source` and, from its start, of a first batch of
nine images from all over the set, framed at 64 px, without importing the library; memory is what peak resident memory
(`VmHWM`) gained until then. `--simulated N` then opens an archive whose index says that it holds N images: the index is
written as sparse files, for sizes that no disk here holds, with the places of those nine in it. `--add` keeps the rows that
--out holds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name
from PIL import Image

from rcg import __version__
from rcg.core.files import write_json
from rcg.data.packed import Index

PER_FILE = 10_000
DISTINCT = 1000
NAME_BYTES = 24
BATCH = 9
OPENING = """
import json, sys, time
import numpy as np
from machine import peak_mib
from rcg.data.images import ImageDataset
from rcg.data.sources import open_source
from start_up import spread
try:
    import pyarrow.parquet
except ImportError:
    pass
import PIL.PngImagePlugin
before, start = peak_mib(), time.perf_counter()
source = open_source(sys.argv[1], progress=False)
opened, mib = time.perf_counter() - start, peak_mib() - before
batch = ImageDataset(source, 64, "crop_flip").batch(spread(len(source)), np.arange(9))
read = time.perf_counter() - start
print(json.dumps({"images": len(source), "seconds": opened, "mib": mib, "with_a_batch": read,
                  "mib_with_a_batch": peak_mib() - before}))
"""


def spread(count: int) -> np.ndarray:
    """Numbers of `BATCH` images from all over a set."""
    return np.linspace(0, count - 1, BATCH).astype(np.int64)


def pictures() -> list[bytes]:
    """PNG files of noise."""
    found = []
    for i in range(DISTINCT):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def make(kind: str, place: Path, count: int, files: list[bytes]) -> None:
    """Write `count` images."""
    place.mkdir(parents=True)
    for start in range(0, count, PER_FILE):
        numbers = range(start, min(count, start + PER_FILE))
        stem = place / f"{start // PER_FILE:06d}"
        if kind == "folder":
            for i in numbers:
                folder = place / f"class-{i % 10}"
                folder.mkdir(exist_ok=True)
                (folder / f"{i:09d}.png").write_bytes(files[i % DISTINCT])
        elif kind == "shards":
            with tarfile.open(stem.with_suffix(".tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
                for i in numbers:
                    info = tarfile.TarInfo(f"{i:09d}.png")
                    info.size = len(files[i % DISTINCT])
                    tar.addfile(info, io.BytesIO(files[i % DISTINCT]))
        elif kind == "zip":
            with zipfile.ZipFile(stem.with_suffix(".zip"), "w") as archive:
                for i in numbers:
                    archive.writestr(f"class-{i % 10}/{i:09d}.png", files[i % DISTINCT])
        else:
            import pyarrow as pa
            from pyarrow import parquet

            rows = [{"bytes": files[i % DISTINCT], "path": f"{i}.png"} for i in numbers]
            table = pa.table({"image": rows, "label": [i % 10 for i in numbers]})
            if kind == "parquet":
                parquet.write_table(table, stem.with_suffix(".parquet"), row_group_size=1000)
            else:
                with pa.ipc.new_stream(str(stem.with_suffix(".arrow")), table.schema) as writer:
                    writer.write_table(table, max_chunksize=1000)


def opening(place: Path, memory: Path) -> dict[str, float]:
    """Open a source in a new process."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(place)],
        env={**os.environ, "RCG_CACHE_DIR": str(memory), "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


def index_bytes(memory: Path) -> float | None:
    """Bytes of the index an image; None of a folder, which has none."""
    files = list((memory / "indexed").glob("*/*.bin")) if (memory / "indexed").is_dir() else []
    places = [p for p in files if p.name == "places.bin"]
    if not places:
        return None
    count = places[0].stat().st_size / Index.ARRAYS["places"].itemsize
    return round(sum(p.stat().st_size for p in files) / count, 1)


def simulate(place: Path, memory: Path, count: int) -> dict[str, float]:
    """Open a source whose index is made to say that it holds `count` images."""
    opening(place, memory)
    (folder,) = (p.parent for p in (memory / "indexed").glob("*/meta.json"))
    where = spread(count)
    for name, dtype in Index.ARRAYS.items():
        file = folder / f"{name}.bin"
        held = np.fromfile(file, dtype.base).reshape(-1, *dtype.shape)
        if not len(held):
            continue
        file.write_bytes(b"")
        with file.open("r+b") as out:
            out.truncate(count * (NAME_BYTES if name == "names" else dtype.itemsize))
        if name not in ("names", "ends"):
            array = np.memmap(file, dtype.base, "r+", shape=(count, *dtype.shape))
            array[where] = held[:BATCH]
            array.flush()
    ends = np.memmap(folder / "ends.bin", "<i8", "r+")
    ends[-1] = count * NAME_BYTES
    ends.flush()
    found = opening(place, memory)
    if found["images"] != count:
        raise RuntimeError("the index was not taken")
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--kinds", nargs="*", default=["folder", "shards", "zip", "arrow", "parquet"])
    parser.add_argument("--simulated", type=int, nargs="*", default=[1_000_000, 100_000_000])
    parser.add_argument("--scratch", type=Path, help="where the files are made; default: the system's folder")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    files = pictures()
    rows: list[dict[str, Any]] = []
    if args.add and args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for kind in args.kinds:
            for count in args.images:
                place, memory = Path(scratch) / kind / str(count), Path(scratch) / "memory" / kind / str(count)
                make(kind, place, count, files)
                row = {"kind": kind, "images": count, "first": opening(place, memory), "again": opening(place, memory)}
                row["index_bytes_per_image"] = index_bytes(memory)
                shutil.rmtree(place)
                print(json.dumps(row), flush=True)
                rows.append(row)
        place = Path(scratch) / "simulated"
        make("zip", place, 100, files)
        for count in args.simulated:
            row = {"kind": "zip, index of sparse files", "images": count}
            row["again"] = simulate(place, Path(scratch) / "memory" / f"simulated-{count}", count)
            print(json.dumps(row), flush=True)
            rows.append(row)
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    write_json(args.out, {"rcg": __version__, "machine": machine, "images_per_file": PER_FILE, "rows": rows})


if __name__ == "__main__":
    main()
