"""A whole generation of the reference, from its official-format files through rcg-convert and RCGPipeline, with its own random numbers."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from rcg.core.pictures import to_uint8
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.pipeline import RCGPipeline
from rcg.rdm import sampling
from rcg.scripts.convert import main as convert
from tests.official import HEAD_FLAGS

SHARED = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference's files are not at hand")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    subprocess.run([sys.executable, SHARED / "assemble.py", "--out", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("name", "rdm"), [("gen_cfg0", "rdm_uncond"), ("gen_cfg6", "rdm_uncond"), ("gen_classcond", "rdm_classcond")])  # fmt: skip
def test_reference_generation(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rdm: str
) -> None:
    with np.load(SHARED / f"{name}.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    rep_noise = iter(torch.from_numpy(golden["rdm_noise"]))
    draws = iter(zip(torch.from_numpy(golden["cat_u"]), torch.from_numpy(golden["gumbel"]), strict=True))

    def ddim_step(self: DDIMScheduler, *args: Any, **kwargs: Any) -> object:
        if args[2].shape == golden["xT"].shape:  # the solver tries a step of its own first
            kwargs |= {"generator": None, "variance_noise": next(rep_noise)}
        return original_ddim(self, *args, **kwargs)

    def maskgit_step(self: MaskGITScheduler, *args: object, **kwargs: object) -> object:
        uniform, gumbel = next(draws)
        return original_maskgit(self, *args, uniform=uniform, gumbel=gumbel, **kwargs)

    original_ddim, original_maskgit = DDIMScheduler.step, MaskGITScheduler.step
    monkeypatch.setattr(DDIMScheduler, "step", functools.wraps(original_ddim)(ddim_step))
    monkeypatch.setattr(MaskGITScheduler, "step", functools.wraps(original_maskgit)(maskgit_step))
    monkeypatch.setattr(sampling, "randn_tensor", lambda *a, **k: torch.from_numpy(golden["xT"]))

    parts = ("mage_b_rep.pth", f"{rdm}.pth", "vqgan_jax_strongaug.ckpt", "mocov3_vitb.pth.tar")
    convert([*(str(files / part) for part in parts), *HEAD_FLAGS, f"--out={tmp_path / 'model'}"])
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        batch_size=2,
        num_inference_steps=int(golden["num_iter"]),
        guidance_scale=1.0 + float(golden["cfg"]),
        temperature=float(golden["choice_temperature"]),
        rdm_num_inference_steps=int(golden["rdm_steps"]),
        class_labels=golden["labels"].tolist() if "labels" in golden else None,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        exact=True,
    )
    rep = torch.from_numpy(golden["rep"])
    assert (out.representations - rep).norm() / rep.norm() < 1e-4
    assert np.array_equal(out.codes.reshape(2, 256).numpy(), golden["final_ids"])
    bytes_ = to_uint8(out.images, rounding="truncate").permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(bytes_ - golden["images_u8_rgb"].astype(int)).max() <= 1


def test_reference_encoder_through_the_pipeline(files: Path, tmp_path: Path) -> None:
    with np.load(SHARED / "encoder.npz") as archive:
        images, expected = torch.from_numpy(archive["images_u8"]), torch.from_numpy(archive["rep"])
    convert([str(files / "mage_b_rep.pth"), str(files / "rdm_uncond.pth"), *HEAD_FLAGS, f"--out={tmp_path / 'model'}"])
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")  # the encoder is the one that the MAGE file carries
    representations = pipe.encode(images.permute(0, 3, 1, 2).float() / 255)
    assert (representations - expected).norm() / expected.norm() < 1e-5
