"""This library against the original program, side by side on a CPU, with the same weights.

    git clone https://github.com/LTH14/rcg CLONE
    python benchmarks/vs_reference.py --reference CLONE --out benchmarks/results/vs_reference.json

The original is the user's own clone, imported at run time and patched around its edges so that it runs on a CPU with
today's PyTorch and timm (`benchmarks/reference_on_cpu.py` lists the patches); its arithmetic is its own. Nothing need
be installed beside this library. Both programs get the same random weights at RCG-B's size: the original's classes make
them, they are saved in the official formats, and `rcg-convert` converts them. Before anything is timed, MAGE's logits,
the RDM, the encoder and the decoder must agree to 1e-4.

Each figure comes from a process of its own, and the programs take turns, `--repeats` times; the table has medians and
ranges. The reference runs in the plain environment, as ours does, and in a tuned one, whose allocator keeps its memory
(glibc's documented variables; more with --tuned-env). There is no documented variable that helps MKL on AMD processors:
MKL_DEBUG_CPU_TYPE is gone since 2020, and MKL_ENABLE_INSTRUCTIONS is for Intel's only.

- sampling, guided: `--images` images in `--steps` steps, after a short warm-up. The reference draws representations
  with DDIM in 250 steps. Ours: the default; the same in fp32; the same with the reference's DDIM; and `exact`.
- mage-step: a MAGE-B step with AdamW, batch 8. The reference encodes its images with tokenizer and encoder at every
  step, as it always does (its images are in memory already); ours reads the cache, as it always does.
- rdm-step: an RDM step with AdamW and averaging, batch 128; of the reference with representations given, and with its
  encoder in the loop.
- load: a fresh process loads all models and samples once: seconds, and peak resident memory.

At RCG-B's size the temporary folder takes about 8 GB of disk, and a process up to 6 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from machine import cpu_name
from reference_on_cpu import missing_files
from vs_reference_cells import Cell

from rcg import __version__
from rcg.core.files import write_json
from rcg.core.hardware import bf16_pays

PARTS: dict[str, list[str]] = {
    "sampling": ["reference", "reference-tuned", "default", "fp32", "ddim", "exact"],
    "guided": ["reference", "reference-tuned", "default", "fp32", "ddim", "exact"],
    "mage-step": ["reference", "reference-tuned", "fp32", "bf16"],
    "rdm-step": ["reference", "reference-tuned", "reference-in-loop", "fp32", "bf16"],
    "load": ["reference", "default", "exact"],
}
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_TOP_PAD_": "268435456"}
"""glibc's allocator takes no memory by mmap and gives none back (mallopt(3))."""
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES")
RECORDED = (*ALLOCATOR, "OMP_", "MKL_", "KMP_", "LD_PRELOAD", "ONEDNN_", "DNNL_", "TORCH")
TOLERANCE = 1e-4
ROWS: list[tuple[str, str, str, str, str]] = [  # part, label, reference, ours, key
    ("sampling", "sampling, no guidance: default", "reference", "default", "seconds"),
    ("sampling", "the same in fp32", "reference", "fp32", "seconds"),
    ("sampling", "the same, RDM by DDIM", "reference", "ddim", "seconds"),
    ("sampling", "sampling, no guidance: exact", "reference", "exact", "seconds"),
    ("guided", "sampling, guided: default", "reference", "default", "seconds"),
    ("guided", "the same in fp32", "reference", "fp32", "seconds"),
    ("guided", "the same, RDM by DDIM", "reference", "ddim", "seconds"),
    ("guided", "sampling, guided: exact", "reference", "exact", "seconds"),
    ("mage-step", "MAGE-B step, batch 8, fp32", "reference", "fp32", "seconds"),
    ("mage-step", "MAGE-B step, batch 8, bf16", "reference", "bf16", "seconds"),
    ("rdm-step", "RDM step, batch 128, fp32", "reference", "fp32", "seconds"),
    ("rdm-step", "RDM step, batch 128, bf16", "reference", "bf16", "seconds"),
    ("rdm-step", "the same, reference with its encoder", "reference-in-loop", "bf16", "seconds"),
    ("load", "load", "reference", "default", "load"),
    ("load", "load and sample once", "reference", "default", "all"),
    ("load", "peak memory, default", "reference", "default", "peak_mib"),
    ("load", "peak memory, exact", "reference", "exact", "peak_mib"),
]


class Failed(Exception):
    """A sentence for the user."""


class Runner:
    """Runs cells, each in a process of its own."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        plain = {name: value for name, value in os.environ.items() if not name.startswith(ALLOCATOR)}
        self.plain = plain | {"CUDA_VISIBLE_DEVICES": ""}
        self.tuned = TUNED | dict(pair.split("=", 1) for pair in args.tuned_env)

    def __call__(self, part: str, variant: str, repeat: int = 0) -> dict[str, Any]:
        """What the cell measured."""
        args, result = self.args, self.work / "result.json"
        env = self.plain | (self.tuned if variant == "reference-tuned" else {})
        cell = Cell(
            part, variant, repeat, str(args.reference.resolve()), str(self.work), str(result), args.tiny, args.images,
            args.steps, args.rdm_steps,
        )  # fmt: skip
        program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("vs_reference_cells.py"))]
        done = subprocess.run(
            [*program, json.dumps(asdict(cell))], env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed(f"{part}, {variant} failed:\n{done.stderr[-4000:]}")
        return json.loads(result.read_text())


def check_equal(run: Runner) -> dict[str, float]:
    """Make the weights of both programs, and see that these compute the same.

    Raises:
        Failed: they do not, so that timing them would compare different things.
    """
    run("prepare", "reference")
    errors = run("prepare", "default")
    print("relative differences: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()), flush=True)
    if wrong := [name for name, error in errors.items() if not error <= TOLERANCE]:
        raise Failed(f"{' and '.join(wrong)} differ from the reference's by more than {TOLERANCE:g}: nothing is timed.")
    return errors


def measure_all(run: Runner, parts: list[str], repeats: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Part → variant → one result a repeat; the variants of a part take turns."""
    cells: dict[str, dict[str, list[dict[str, Any]]]] = {part: {v: [] for v in PARTS[part]} for part in parts}
    for repeat in range(repeats):
        for part in parts:
            for variant in PARTS[part]:
                result = run(part, variant, repeat)
                if part == "load":
                    result["all"] = result["load"] + result["seconds"]
                cells[part][variant].append(result)
                print(f"{repeat + 1}/{repeats} {part:9} {variant:17} {result['seconds']:8.3f} s", flush=True)
    return cells


def row_of(cells: dict[str, list[dict[str, Any]]], reference: str, ours: str, key: str) -> dict[str, Any]:
    """The figures of a row: median, least and greatest of each column, and the ratios of the medians."""
    columns = {"reference": reference, "tuned": "reference-tuned", "ours": ours}
    if reference != "reference" or "reference-tuned" not in cells:
        del columns["tuned"]
    row: dict[str, Any] = {}
    for column, variant in columns.items():
        values = [result[key] for result in cells[variant]]
        row[column] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        if key == "seconds" and "rdm" in cells[variant][0]:
            row[column] |= {p: statistics.median(r[p] for r in cells[variant]) for p in ("rdm", "mage", "decode")}
    for column, name in (("reference", "ratio"), ("tuned", "ratio_to_tuned")):
        if column in row:
            row[name] = row[column]["median"] / row["ours"]["median"]
    return row


def cell_text(figures: dict[str, float] | None, key: str) -> str:
    """A column of the printed table."""
    if figures is None:
        return "–"
    scale, unit = (1024, "GiB") if key == "peak_mib" else (1, "s")
    middle, low, high = (f"{figures[name] / scale:.3g}" for name in ("median", "min", "max"))
    more = [f"{low}–{high}"] if low != high else []
    if "rdm" in figures:
        more.append(", ".join(f"{name} {figures[part]:.2g}" for name, part in
                              (("RDM", "rdm"), ("MAGE", "mage"), ("decode", "decode"))))  # fmt: skip
    return f"{middle} {unit}" + (f" ({'; '.join(more)})" if more else "")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| | reference | reference, tuned environment | ours | ratio | to tuned |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        figures = [cell_text(row.get(column), row["key"]) for column in ("reference", "tuned", "ours")]
        ratios = [f"{row[name]:.1f}×" if name in row else "–" for name in ("ratio", "ratio_to_tuned")]
        lines.append(f"| {' | '.join([row['label'], *figures, *ratios])} |")
    return "\n".join(lines)


def surroundings(run: Runner) -> dict[str, Any]:
    """Versions, machine and environment."""
    packages = ("torch", "timm", "diffusers", "numpy")
    build = [line.strip(" -") for line in torch.__config__.show().splitlines() if "MKL" in line and "BLAS" not in line]
    return {
        "versions": {
            "rcg": __version__, "python": platform.python_version(), "libraries": build,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "machine": {
            "cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "bf16_by_default": bf16_pays(torch.device("cpu")), "system": platform.system(), "libc": platform.libc_ver(),
        },
        "environment": {name: value for name, value in run.plain.items() if name.startswith(RECORDED)},
        "tuned_environment": run.tuned,
    }  # fmt: skip


def clone_commit(clone: Path) -> str | None:
    """The clone's commit, if git can tell."""
    if not (clone / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="your clone of github.com/LTH14/rcg")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--work", type=Path, help="where a temporary folder for the weights is made")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="of MAGE")
    parser.add_argument("--rdm-steps", type=int, help="of the reference's DDIM (default: 250; 10 with --tiny)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="rehearse with toy models")
    parser.add_argument(
        "--tuned-env", nargs="*", default=[], metavar="NAME=VALUE", help="more for the tuned environment"
    )
    args = parser.parse_args(argv)
    args.parts = args.only.split(",")
    args.rdm_steps = args.rdm_steps or (10 if args.tiny else 250)
    if unknown := set(args.parts) - set(PARTS):
        raise Failed(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}.")
    if missing := missing_files(args.reference):
        raise Failed(
            f"--reference {args.reference} is no clone of the original program (it has no {missing[0]}); make one with "
            "`git clone https://github.com/LTH14/rcg` and give its folder."
        )
    return args


def main() -> None:
    """Check, measure, print, write."""
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        run = Runner(args, Path(work))
        errors = check_equal(run)
        cells = measure_all(run, args.parts, args.repeats)
    rows = [
        {
            "label": label,
            "part": part,
            "key": key,
            "variants": [reference, ours],
            **row_of(cells[part], reference, ours, key),
        }
        for part, label, reference, ours, key in ROWS
        if part in cells
    ]
    settings = {n: getattr(args, n) for n in ("images", "steps", "rdm_steps", "repeats", "tiny")}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items() if name != "tiny")
    result = {
        "what": "this library against the original program on a CPU, the same weights",
        "command": f"python benchmarks/vs_reference.py --reference CLONE {flags} --only {args.only}{' --tiny' * args.tiny}",
        "settings": settings, "reference_commit": clone_commit(args.reference), "relative_differences": errors,
        **surroundings(run), "rows": rows, "cells": cells,
    }  # fmt: skip
    print("\n" + table(rows))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    try:
        main()
    except Failed as problem:
        print(f"vs_reference: {problem}", file=sys.stderr)
        sys.exit(2)
