"""LDM files and VQ autoencoders: every key loaded, dropped with a reason, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import VQModel

from rcg.core.errors import UserError
from rcg.image_gen.ldm.unet import LDMUNet
from rcg.published.latent_vq import CARRIED, _config, _renamed, convert_latent_vq
from rcg.published.ldm import convert_ldm
from rcg.published.unets import layout_of, translate
from tests.golden.seeded import read_shapes
from tests.image_gen.ldm import golden

State = dict[str, torch.Tensor]


def convert(contents: dict[str, Any], **options: Any) -> Any:
    return convert_ldm(contents, "ldm.pth", **{"image_size": golden.SIZE, **options})


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_every_key_is_accounted_for(condition: str, weights: str) -> None:
    contents = golden.contents(condition)
    done = convert(contents, weights=weights)
    assert {*done.loaded, *done.dropped} == contents["model"].keys()
    assert not done.loaded.keys() & done.dropped.keys()
    assert all(done.dropped.values())
    prefix = "model_ema." if weights == "ema" else "model."
    assert all(key.startswith((prefix, "cond_stage_model.")) for key in done.loaded)
    ours = {name for names in done.loaded.values() for name in names.split(", ")}
    assert ours == done.model.state_dict().keys() - {"token_embed.null"}
    config = done.model.config
    assert (config.sample_size, config.condition, config.condition_dropout) == (8, condition, 0.0)
    assert config.num_classes == (5 if condition == "class" else None)
    assert config.representation_dim == (12 if condition == "representation" else None)


def test_sizes_of_the_published_file() -> None:
    shapes = read_shapes(golden.FOLDER / "keys/ldm_base.txt")
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    unet = {k.removeprefix("model.diffusion_model."): v for k, v in state.items() if k.startswith("model.")}
    layout = layout_of(unet, "ldm.pth")
    with torch.device("meta"):
        model, vq = LDMUNet(representation_dim=256), None
        first = {k.removeprefix(CARRIED): v for k, v in state.items() if k.startswith(CARRIED)}
        config = _config(first, "ldm.pth")
        vq = VQModel(**config)
    assert (layout.multipliers, layout.num_res_blocks, layout.attends) == ((1, 2, 4), 2, (True, True, True))
    made = {f"unet.{k}": v.shape for parts in translate(unet, layout, 32, "x").values() for k, v in parts.items()}
    assert made == {k: v.shape for k, v in model.state_dict().items() if k.startswith("unet.")}
    assert {_renamed(key, 4) for key in first} == vq.state_dict().keys()
    assert (config["num_vq_embeddings"], config["vq_embed_dim"], config["block_out_channels"]) == (
        16384,
        4,
        (128, 256, 256, 512),
    )
    assert config["down_block_types"][2:] == ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")


def changed(**changes: torch.Tensor | None) -> State:
    state = {**golden.contents()["model"], **{k.replace("__", "."): v for k, v in changes.items()}}
    return {k: v for k, v in state.items() if v is not None}


OUT, EMA_OUT = "model__diffusion_model__out__2__weight", "model_ema__diffusion_modelout2weight"
UNET = "model__diffusion_model__"


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (lambda: changed(**{EMA_OUT: None}), "lacks model_ema.diffusion_modelout2weight"),
        (lambda: changed(**{OUT: None, EMA_OUT: None}), "out.2.weight is missing"),
        (lambda: changed(betaz=torch.zeros(1)), r"holds betaz \(nearest.*\)?, which no LDM has|holds betaz"),
        (lambda: changed(alphas_cumprod=torch.zeros(1000)), "another noise schedule"),
        (
            lambda: changed(**{UNET + "middle_block__1__transformer_blocks__0__attn2__to_k__weight": None}),
            "lacks|no LDM",
        ),
        (lambda: {k: v for k, v in changed().items() if not k.startswith("model_ema")}, "ask for the raw ones"),
    ],
)
def test_what_does_not_fit_is_named(weights: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert({"model": weights()})


def test_unpublished_sizes_need_the_size_of_the_images() -> None:
    with pytest.raises(UserError, match="none of the published sizes; add --generator-image-size"):
        convert(golden.contents(), image_size=None)


def own_file(**changes: torch.Tensor | None) -> dict[str, Any]:
    """The autoencoder's own file, which holds its discriminator, too."""
    state = {k.removeprefix(CARRIED): v for k, v in golden.state().items() if k.startswith(CARRIED)}
    state["loss.discriminator.main.0.weight"] = torch.zeros(2)
    return {"state_dict": {k: v for k, v in (state | changes).items() if v is not None}}


def test_the_autoencoder_from_its_own_file_and_from_the_generators() -> None:
    own, carried = convert_latent_vq(own_file(), "vq.ckpt", 16), convert_latent_vq(golden.contents(), "ldm.pth", 16)
    assert {*own.loaded, *own.dropped} == own_file()["state_dict"].keys()
    assert own.dropped == {"loss.discriminator.main.0.weight": "of use in training only"}
    assert {*carried.loaded, *carried.dropped} == golden.contents()["model"].keys()
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, carried.model.state_dict()[name])
    assert set(own.loaded.values()) == own.model.state_dict().keys()
    assert own.model.config.scaling_factor == 1.0


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (lambda: own_file(**{"decoder.norm_out.bias": None}), "first decoder.conv_norm_out.bias"),
        (lambda: own_file(**{"decoder.nrm.bias": torch.zeros(1)}), "first decoder.nrm.bias"),
        (lambda: own_file(**{"quantize.embedding.weight": None}), "quantize.embedding.weight is missing"),
        (lambda: {"state_dict": {"x": torch.zeros(1)}}, "encoder.down.0.block.0.conv1.weight is missing"),
        (lambda: {"other": 1}, "holds no VQ autoencoder"),
    ],
)
def test_autoencoders_that_do_not_fit(contents: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert_latent_vq(contents(), "vq.ckpt")
