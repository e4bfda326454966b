"""RCG-B at its real size, from files in the published formats with random weights: converted, loaded, sampled, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcg import RCGPipeline
from tests.official import write_official_files

MEASURED = """
import re, sys
from pathlib import Path
from rcg.scripts.convert import main
if sys.argv[1:]:
    main(sys.argv[1:])
else:
    import rcg.published.convert
# of this program alone: getrusage's figure would begin with the parent's
print("peak", 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def convert(*arguments: str) -> int:
    """Run rcg-convert in a process of its own (without arguments: only import it); peak resident memory in bytes."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
@pytest.mark.timeout(1200)
def test_rcg_b(tmp_path: Path) -> None:
    files = write_official_files(tmp_path / "files", "base", ("mocov3", "rdm_uncond", "mage", "vqgan"))
    size = sum(f.stat().st_size for f in files.values())
    model = tmp_path / "model"
    peak = convert("--config", "rcg-b", *map(str, files.values()), "--out", str(model))
    print(f"files {size / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB, ratio {peak / size:.2f}")
    assert peak < 1.5 * size
    libraries = convert()  # torch, timm and diffusers themselves: about 0.9 GB
    for name in ("mocov3", "rdm_uncond", "mage"):
        single = convert(str(files[name]), "--out", str(tmp_path / name)) - libraries
        own = files[name].stat().st_size
        print(
            f"{name} {own / 2**20:.0f} MiB, peak over the libraries' own {single / 2**20:.0f} MiB, ratio {single / own:.2f}"
        )
        assert single < 1.5 * own
    pipe = RCGPipeline.from_pretrained(model)
    parts = {name: getattr(pipe, name) for name in pipe.model_classes}
    assert {name for name, part in parts.items() if part is None} == {"guiding_model"}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    print(json.dumps(counts))
    assert counts["rdm"] == pytest.approx(63e6, rel=0.02)
    assert counts["image_generator"] == 145_094_377
    stored = {
        "num_inference_steps": 20,
        "temperature": 6.0,
        "guidance_scale": 2.0,
    }  # the paper's; the RDM's are the default
    assert pipe.config.sampling["rdm_num_inference_steps"] is None
    assert {name: pipe.config.sampling[name] for name in stored} == stored
    pipe.set_progress_bar_config(disable=True)
    out = pipe(batch_size=1, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert out.images.shape == (1, 3, 256, 256)
    assert pipe.reconstruct(out.images, num_inference_steps=2).representations.shape == (1, 256)
