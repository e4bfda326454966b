"""The recipe of docs/published.md for the paper's FID, run as written on small stand-ins in the published formats (but the downloads)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.eval.test_inception import state as inception_state
from tests.official import HEAD_FLAGS, write_official_files

ROOT = Path(__file__).parents[1]
NAMES = {
    "mage": "mage-b.pth",
    "rdm_uncond": "rdm-b.pth",
    "vqgan": "vqgan_jax_strongaug.ckpt",
    "mocov3": "vit-b-300ep.pth.tar",
}
state = inception_state


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_recipe(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    page = (ROOT / "docs/published.md").read_text()
    (line,) = re.findall(r"^sh (benchmarks/imagenet256\.sh .*)$", page, flags=re.M)
    downloads = re.findall(r"(?:-O|-o) (\S+)", page)
    files = write_official_files(tmp_path / "official", names=tuple(NAMES))
    for name, path in files.items():
        target = tmp_path / next(d for d in downloads if d.endswith(NAMES[name]))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    stats = tmp_path / next(d for d in downloads if d.endswith(".npz"))
    stats.parent.mkdir()
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(3000, 2048))
    moments = {"mu": sample.mean(0), "sigma": np.cov(sample, rowvar=False)}
    np.savez(stats, arr_0=np.zeros((2, 256, 256, 3), np.uint8), **moments, mu_s=np.zeros(2023), sigma_s=np.eye(2023))
    torch.save(state, tmp_path / "inception.pth")

    preset = (ROOT / "rcg/configs/rcg-b.yaml").read_text()
    small = re.sub(r"^size: b$", "", preset, flags=re.M)
    (tmp_path / "tiny.yaml").write_text(small.replace("\nnum_inference_steps: 20", "\nnum_inference_steps: 2"))
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "N": "4",
        "BATCH": "2", "PRESET": "tiny.yaml", "CONVERT_FLAGS": " ".join(HEAD_FLAGS), "WEIGHTS": "inception.pth",
    }  # fmt: skip
    command = ["sh", *line.replace("benchmarks/", f"{ROOT}/benchmarks/").split()]
    for processes in ("2", "1"):  # the second time it goes on where it was
        settings = os.environ | environment | {"GPUS": processes}
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    out = tmp_path / line.split()[-1]
    for name in ("unguided", "guided"):
        assert len(list((out / name).glob("0*.png"))) == 4
        metrics = json.loads((out / f"metrics-{name}.json").read_text())["metrics"]
        assert np.isfinite(metrics["fid"])
        assert np.isfinite(metrics["isc_mean"] if "isc_mean" in metrics else metrics["isc"])
    assert (out / "unguided/000000.png").read_bytes() != (out / "guided/000000.png").read_bytes()
