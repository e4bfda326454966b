"""Compute the golden values of LDM and its VQ autoencoder with the reference program: `python tests/golden/make_ldm.py CLONE`.

CLONE is a clone of LTH14/rcg (MIT), of which nothing is copied here. It is run on the CPU; libraries that it imports and
does not use for this are stood in for. Weights and noise are those of `seeded`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from seeded import normal, seeded, write_shapes
from torch import nn

FOLDER = Path(__file__).parent
HERE = FOLDER / "image_gen_ldm"
ROOM = "pixel_generator.ldm"
TINY_UNET = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1, 2],
             "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 32, "use_spatial_transformer": True,
             "transformer_depth": 1}  # fmt: skip
BASE_UNET = {**TINY_UNET, "image_size": 32, "model_channels": 256, "attention_resolutions": [4, 2, 1],
             "num_res_blocks": 2, "channel_mult": [1, 2, 4]}  # fmt: skip
TINY_VQ = {"double_z": False, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
           "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}  # fmt: skip
BASE_VQ = {**TINY_VQ, "resolution": 256, "ch": 128, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 2,
           "attn_resolutions": [32]}  # fmt: skip
SCALE = 2.5


def stand_in(name: str, **members: Any) -> None:
    """A module of this name with these members, and nothing else."""
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def prepare(clone: Path) -> None:
    """Make the reference importable without its GPU and the libraries that are not used."""
    sys.path[:0] = [str(clone), str(clone / "pixel_generator/mage")]
    stand_in("omegaconf", OmegaConf=None)
    stand_in("omegaconf.listconfig", ListConfig=list)
    stand_in("clip")
    stand_in("pytorch_lightning", LightningModule=nn.Module)
    stand_in("pytorch_lightning.utilities")
    stand_in("pytorch_lightning.utilities.distributed", rank_zero_only=lambda function: function)
    stand_in("pretrained_enc")
    stand_in("pretrained_enc.models_pretrained_enc")
    sys.modules["pretrained_enc"].models_pretrained_enc = sys.modules["pretrained_enc.models_pretrained_enc"]
    torch.Tensor.cuda = lambda self: self


def part(name: str, **params: Any) -> dict[str, Any]:
    """A part of the reference's configuration."""
    return {"target": f"{ROOM}.{name}", "params": params}


def latent_diffusion(unet: dict[str, Any], vq: dict[str, Any], codes: int, context: int, classes: int) -> Any:
    """The reference's model as its configurations for LDM-8 make it, at other sizes."""
    from pixel_generator.ldm.models.diffusion.ddpm import LatentDiffusion

    return LatentDiffusion(
        linear_start=0.0015,
        linear_end=0.0195,
        num_timesteps_cond=1,
        timesteps=1000,
        cond_stage_key="class_label",
        image_size=unet["image_size"],
        channels=4,
        cond_stage_trainable=True,
        conditioning_key="crossattn",
        unet_config=part("modules.diffusionmodules.openaimodel.UNetModel", **unet, context_dim=context),
        first_stage_config=part(
            "models.autoencoder.VQModelInterface",
            embed_dim=4,
            n_embed=codes,
            ddconfig=vq,
            lossconfig={"target": "torch.nn.Identity"},
        ),
        cond_stage_config=part(
            "modules.encoders.modules.ClassEmbedder", embed_dim=context, n_classes=classes, key="class_label"
        ),
        generation_config={},
    )


def fill(model: Any) -> dict[str, torch.Tensor]:
    """Give a model the weights of `seeded` (the noise schedule stays), and return what it saves."""
    learnt = ("model.", "model_ema.diffusion", "first_stage_model.", "cond_stage_model.")
    state = model.state_dict()
    names = [name for name in state if name.startswith(learnt)]
    model.load_state_dict({**state, **seeded({k: tuple(v.shape) for k, v in state.items()}, names)})
    return model.state_dict()


def base_shapes(tiny: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names and shapes of the published file, but for the encoder that it carries."""
    from pixel_generator.ldm.models.autoencoder import VQModelInterface
    from pixel_generator.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        unet = UNetModel(**BASE_UNET, context_dim=256).state_dict()
        vq = VQModelInterface(4, BASE_VQ, {"target": "torch.nn.Identity"}, 16384).state_dict()
        embedding = torch.empty(1000, 256)
    learnt = ("model.", "model_ema.diffusion", "first_stage_model.", "cond_stage_model.")
    return {
        **{name: tensor for name, tensor in tiny.items() if not name.startswith(learnt)},
        **{f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()},
        **{"model_ema." + f"diffusion_model.{name}".replace(".", ""): tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in vq.items()},
        "cond_stage_model.embedding.weight": embedding,
    }


def main() -> None:
    """Write values, and the names and shapes of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    prepare(parser.parse_args().clone)
    from pixel_generator.ldm.models.diffusion import ddim

    values: dict[str, torch.Tensor] = {}
    x, times, rep = normal("x", 2, 4, 8, 8), torch.tensor([3, 870]), normal("rep", 2, 12)
    labels = torch.tensor([4, 1])
    models = {}
    for name, classes in (("representation", 5), ("class", 5), ("none", 1)):
        model = models[name] = latent_diffusion(TINY_UNET, TINY_VQ, 64, 12, classes).eval()
        state = fill(model)
        given = {"class": labels, "none": torch.zeros(2, dtype=torch.int64)}
        with torch.no_grad():
            if name == "representation":
                token = rep[:, None]
                write_shapes(HERE / "keys.txt", state)
                write_shapes(FOLDER / "keys/ldm_base.txt", base_shapes(state))
            else:
                token = model.get_learned_conditioning({"class_label": given[name]})
            values[f"forward_{name}"] = model.apply_model(x, times, token)

    model = models["representation"]
    steps, reps = torch.tensor([0, 1, 400, 999]), normal("reps", 4, 12)
    images = normal("images", 2, 3, 16, 16).div(2).clamp(-1, 1)
    with torch.no_grad():
        loss, _ = model.p_losses(normal("clean", 4, 4, 8, 8), reps[:, None], steps, noise=normal("noise", 4, 4, 8, 8))
        values |= {"loss": loss, "latents": model.encode_first_stage(images)}

    class Sampler(ddim.DDIMSampler):
        register_buffer = object.__setattr__  # the reference's would move to a GPU

    draws = iter(range(1, 100))
    ddim.noise_like = lambda shape, *_: normal(f"draw{next(draws)}", *shape)
    with torch.no_grad(), model.ema_scope():
        samples, _ = Sampler(model).sample(
            5,
            2,
            (4, 8, 8),
            conditioning=rep[:, None],
            eta=1.0,
            verbose=False,
            x_T=normal("draw0", 2, 4, 8, 8),
            unconditional_guidance_scale=SCALE,
            unconditional_conditioning=normal("null", 1, 12).expand(2, -1)[:, None],
        )
        pictures = (torch.clamp(model.decode_first_stage(samples), -1, 1) + 1) / 2
    values |= {"sample": samples, "pictures": pictures}
    np.savez_compressed(HERE / "values.npz", **{k: v.numpy() for k, v in values.items()})


if __name__ == "__main__":
    main()
