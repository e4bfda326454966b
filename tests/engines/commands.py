"""Commands whose work can be shared out, small enough for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rcg.core.parts import Share
from rcg.scripts import cache, sample, synthesize

WORKS = ("cache", "sample", "shards", "synthesize")


def run(work: str, model: Path, out: Path, *more: str) -> None:
    """One command into `out`."""
    common = ["--out", str(out), "--device", "cpu", "--precision", "fp32", *more]
    if work == "cache":
        data = ["--data", "shapes:n=22,size=32", "--image-size", "16", "--shard-size", "4"]
        cache.main([*data, "--encoder", str(model), *common])
    elif work == "synthesize":
        what = ["--representations", "9", "--images-per-caption", "2", "--captions-per-shard", "2", "--format", "png"]
        synthesize.main(["--model", str(model), *what, "--num-inference-steps", "2", *common])
    else:
        shards = ["--shards", "--images-per-shard", "3"] if work == "shards" else []
        count = ["--num-images", "14", "--seed", "3", "--batch-size", "3", "--num-inference-steps", "2"]
        sample.main(["--model", str(model), *count, *shards, *common])


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file, but for the folder's own name, which the command line in a manifest has."""
    name = str(folder).encode()
    return {
        str(p.relative_to(folder)): p.read_bytes().replace(name, b"OUT")
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def ranks() -> Callable[[Share], int]:
    """Work of which each part is its own number."""
    return lambda share: share.rank
