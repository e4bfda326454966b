"""Files in the published formats with random weights, made from the full key lists of the real ones (tests/golden/keys)."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any, Literal

import torch

from rcg.rdm.schedule import alphas_cumprod

KEYS = Path(__file__).parent / "golden/keys"
Size = Literal["tiny", "base"]
State = dict[str, torch.Tensor]
HEADS = {  # of the tiny files: no tensor's shape tells
    "encoder_num_heads": 4,
    "generator_num_heads": 4,
    "generator_decoder_num_heads": 2,
}
HEAD_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in HEADS.items()]
FLAGS_OF = {"mage": HEAD_FLAGS, "mocov3": HEAD_FLAGS[:1]}
"""The first part of a file's name → the flags that it alone needs."""


def random_state(name: str, seed: int = 0) -> State:
    """Random tensors under every key of a key list, of the right shape and dtype; norms and schedules are sensible."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for line in (KEYS / f"{name}.txt").read_text().splitlines():
        key, shape, dtype = line.split("\t")
        size = ast.literal_eval(shape)
        if "int" in dtype:
            state[key] = torch.ones(size, dtype=getattr(torch, dtype.removeprefix("torch.")))
        elif key == "alphas_cumprod":
            state[key] = alphas_cumprod().float()
        elif key.endswith("running_var"):
            state[key] = 1 + 0.1 * torch.rand(size, generator=generator)
        else:
            fan = torch.Size(size[1:]).numel() if len(size) > 1 else 100
            state[key] = torch.randn(size, generator=generator) * fan**-0.5
            if len(size) == 1 and key.endswith("weight"):
                state[key] += 1
    return state


def official_contents(size: Size = "tiny") -> dict[str, dict[str, Any]]:
    """File name → contents: encoder, RDMs, MAGE and tokenizer that belong together, with what surrounds the weights."""
    moco, vqgan = random_state(f"moco_{size}", 1), random_state(f"vqgan_{size}", 2)
    encoder = {
        k.removeprefix("module.base_encoder."): v for k, v in moco.items() if k.startswith("module.base_encoder.")
    }
    carried = {f"pretrained_encoder.{k}": v for k, v in encoder.items()}
    extras = {"epoch": 7, "args": argparse.Namespace(lr=0.1, batch_size=64)}
    files: dict[str, dict[str, Any]] = {
        "mocov3_vitb.pth.tar": {"state_dict": moco, "arch": "vit_base", **extras},
        "vqgan_jax_strongaug.ckpt": {"state_dict": vqgan},
    }
    for i, kind in enumerate(("uncond", "classcond")):
        state = random_state(f"rdm_{kind}_{size}", 3 + i)
        files[f"rdm_{kind}.pth"] = {"model": state | _only(carried, state), "optimizer": {}, **extras}
    mage = random_state(f"mage_{size}", 5)
    mage |= _only(carried | {f"vqgan.{k}": v for k, v in vqgan.items()}, mage)
    files["mage_b_rep.pth"] = {"model": mage, "optimizer": {}, "scaler": {}, "model_ema": None, **extras}
    return files


def _only(new: State, old: State) -> State:
    """Those of `new` whose key `old` has; every part that `old` carries must be replaced whole."""
    prefixes = {key.split(".")[0] for key in new}
    assert {k for k in old if k.split(".")[0] in prefixes} <= new.keys()
    return {k: v for k, v in new.items() if k in old}


def write_official_files(folder: Path, size: Size = "tiny", names: tuple[str, ...] | None = None) -> dict[str, Path]:
    """Write (some of) the files; the first part of each name → its path: mocov3, rdm_uncond, rdm_classcond, mage, vqgan."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name, contents in official_contents(size).items():
        short = name.split(".")[0] if name.startswith("rdm") else name.split("_")[0]
        if names is None or short in names:
            torch.save(contents, folder / name)
            paths[short] = folder / name
    return paths
