"""Compute the golden values of ADM with the reference program: `python tests/golden/make_adm.py CLONE`.

CLONE is a clone of LTH14/rcg (MIT), of which nothing is copied here. Weights and noise are those of `seeded`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from seeded import normal, seeded, write_shapes

FOLDER = Path(__file__).parent
TINY = {"image_size": 16, "in_channels": 3, "model_channels": 64, "out_channels": 6, "num_res_blocks": 1,
        "attention_resolutions": (2,), "channel_mult": (1, 2), "num_head_channels": 64}  # fmt: skip
BASE = {"image_size": 256, "in_channels": 3, "model_channels": 256, "out_channels": 6, "num_res_blocks": 2,
        "attention_resolutions": (8, 16, 32), "channel_mult": (1, 1, 2, 2, 4, 4), "num_head_channels": 64}  # fmt: skip
BLOCKS = {"use_scale_shift_norm": True, "resblock_updown": True}
CONDITIONS: dict[str, dict[str, Any]] = {
    "representation": {"rep_cond": True, "rep_dim": 12},
    "class": {"num_classes": 5},
    "none": {},
}
SCALE = 2.5


def main() -> None:
    """Write values, and the names and shapes of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    sys.path.insert(0, str(parser.parse_args().clone))
    from pixel_generator.guided_diffusion.script_util import create_gaussian_diffusion
    from pixel_generator.guided_diffusion.unet import UNetModel

    values: dict[str, torch.Tensor] = {}
    x, times, rep = normal("x", 2, 3, 16, 16), torch.tensor([3, 870]), normal("rep", 2, 12)
    given = {"representation": {"rep": rep}, "class": {"y": torch.tensor([4, 1])}, "none": {}}
    models = {}
    for condition, arguments in CONDITIONS.items():
        model = models[condition] = UNetModel(**TINY, **BLOCKS, **arguments).eval()
        state = model.state_dict()
        model.load_state_dict(seeded({k: tuple(v.shape) for k, v in state.items()}))
        write_shapes(FOLDER / f"image_gen_adm/keys_{condition}.txt", state)
        with torch.no_grad():
            values[f"forward_{condition}"] = model(x, times, **given[condition])
    with torch.device("meta"):
        write_shapes(FOLDER / "keys/adm_base.txt", UNetModel(**BASE, **BLOCKS, rep_cond=True).state_dict())

    model, settings = models["representation"], {"steps": 1000, "learn_sigma": True, "noise_schedule": "linear"}
    clean, steps = normal("clean", 4, 3, 16, 16).div(2).clamp(-1, 1), torch.tensor([0, 1, 400, 999])
    reps = normal("reps", 4, 12)
    with torch.no_grad():
        losses = create_gaussian_diffusion(**settings).training_losses(
            lambda x, t, rep=None: model(x, t, rep=reps), clean, steps, noise=normal("noise", 4, 3, 16, 16)
        )
    values |= {f"loss_{name}": losses[name] for name in ("mse", "vb")}

    null = normal("null", 1, 12).expand(2, -1)

    def guided(x: torch.Tensor, t: torch.Tensor, rep: torch.Tensor) -> torch.Tensor:
        c, u = model(x, t, rep=rep), model(x, t, rep=null)
        return torch.cat([u[:, :3] + SCALE * (c[:, :3] - u[:, :3]), c[:, 3:]], dim=1)

    for name, respacing, loop in (
        ("ancestral", "6", "p_sample_loop"),
        ("ddim", "ddim5", "ddim_sample_loop"),
    ):
        draws = iter(range(1, 100))
        import pixel_generator.guided_diffusion.gaussian_diffusion as gd

        patched = {"randn_like": lambda like, draws=draws: normal(f"draw{next(draws)}", *like.shape)}
        gd.th = SimpleNamespace(**{**vars(torch), **patched})
        diffusion = create_gaussian_diffusion(**settings, timestep_respacing=respacing)
        with torch.no_grad():
            values[f"sample_{name}"] = getattr(diffusion, loop)(
                guided, (2, 3, 16, 16), noise=normal("draw0", 2, 3, 16, 16), model_kwargs={"rep": rep}, device="cpu"
            )
        gd.th = torch
    np.savez_compressed(FOLDER / "image_gen_adm/values.npz", **{k: v.numpy() for k, v in values.items()})


if __name__ == "__main__":
    main()
