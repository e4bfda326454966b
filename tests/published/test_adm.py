"""ADM files: every key loaded, dropped with a reason, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.adm.unet import ADMUNet
from rcg.published.adm import convert_adm
from rcg.published.unets import Layout, layout_of, translate
from tests.golden.seeded import normal, read_shapes
from tests.image_gen.adm import golden

State = dict[str, torch.Tensor]


def convert(contents: dict[str, Any], **options: Any) -> Any:
    return convert_adm(contents, "adm.pth", **{"image_size": golden.SIZE, **options})


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
def test_every_key_is_accounted_for(condition: str) -> None:
    contents = golden.contents(condition)
    done = convert(contents)
    keys = {f"{part}.{key}" for part in ("model", "model_ema") for key in contents[part]}
    assert {*done.loaded, *done.dropped} == keys
    assert not done.loaded.keys() & done.dropped.keys()
    assert done.dropped == {key: "the ema weights were asked for" for key in keys if key.startswith("model.")}
    ours = {name for names in done.loaded.values() for name in names.split(", ")}
    assert ours == done.model.state_dict().keys() - {"condition_embed.null"}
    sizes = {k: done.model.config[k] for k in ("condition", "representation_dim", "num_classes", "condition_dropout")}
    assert sizes == {
        "condition": condition,
        "representation_dim": 12 if condition == "representation" else None,
        "num_classes": 5 if condition == "class" else None,
        "condition_dropout": 0.0,
    }
    assert any("guiding model only" in note for note in done.notes) == (condition != "none")
    assert not done.model.training


def test_raw_weights_and_bare_files() -> None:
    raw = convert(golden.contents(), weights="raw").model.unet.conv_in.weight
    averaged = convert(golden.contents()).model.unet.conv_in.weight
    assert torch.equal(raw, golden.state()["input_blocks.0.0.weight"] + 1)
    bare = convert({f"module.{k}": v for k, v in golden.state("class").items()})
    assert torch.equal(bare.model.unet.conv_in.weight, golden.state("class")["input_blocks.0.0.weight"])
    assert all(key.startswith("module.") for key in bare.loaded)
    assert not torch.equal(raw, averaged)
    with pytest.raises(UserError, match="ask for the raw ones"):
        convert(golden.contents(model_ema=None))


def test_sizes_of_the_published_file() -> None:
    shapes = read_shapes(golden.FOLDER / "keys/adm_base.txt")
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    layout = layout_of(state, "adm.pth")
    assert layout == Layout(256, (1, 1, 2, 2, 4, 4), 2, (False, False, False, True, True, True), 3, 6)
    with torch.device("meta"):
        model = ADMUNet(representation_dim=256)
    made = {f"unet.{k}": v.shape for parts in translate(state, layout, 64, "x").values() for k, v in parts.items()}
    own = {k: v.shape for k, v in model.state_dict().items()}
    assert made == {k: v for k, v in own.items() if k.startswith("unet.")}
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in state.values()) + 256  # the null vector


def without(name: str) -> State:
    return {k: v for k, v in golden.state().items() if k != name}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (lambda: without("out.2.weight"), "holds no U-Net of the reference: out.2.weight is missing"),
        (lambda: without("middle_block.1.norm.bias"), "first unet.mid_block.attentions.0.group_norm.bias"),
        (lambda: golden.state() | {"middle_blok.0.x": torch.zeros(1)}, "holds middle_blok.0.x.*nearest.*no ADM has"),
        (lambda: golden.state() | {"out.0.bias": torch.zeros(7)}, r"conv_norm_out.bias has shape \[7\]"),
        (lambda: golden.state() | {"middle_block.1.qkv.bias": torch.zeros(7)}, "has 7 rows, which heads of 64"),
        (lambda: golden.state() | {"out.2.weight": torch.zeros(3, 64, 3, 3)}, "trained with learn_sigma"),
        (lambda: golden.state() | {"input_blocks.0.0.weight": torch.zeros(3)}, "its first layer is no convolution"),
    ],
)
def test_what_does_not_fit_is_named(weights: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert({"model": {}, "model_ema": weights()})


def test_unpublished_sizes_need_the_size_of_the_images() -> None:
    with pytest.raises(UserError, match="none of the published sizes; add --generator-image-size"):
        convert(golden.contents(), image_size=None)


@pytest.mark.parametrize(
    ("base", "multipliers", "blocks", "size"), [(192, (1, 2, 3, 4), 3, 64), (256, (1, 1, 2, 3, 4), 2, 128)]
)
def test_models_of_guided_diffusion_with_other_attention_are_refused(
    base: int, multipliers: tuple[int, ...], blocks: int, size: int
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"input_blocks.0.0.weight": (base, 3), "out.2.weight": (6, base)}
    for level, times in enumerate(multipliers):
        number = 1 + level * (blocks + 1)
        shapes |= {f"input_blocks.{n}.0.out_layers.3.weight": (base * times,) for n in range(number, number + blocks)}
        if level:
            shapes[f"input_blocks.{number - 1}.0.out_layers.3.weight"] = (base * times,)
            shapes[f"output_blocks.{number}.2.in_layers.0.weight"] = (1,)
    shapes["label_emb.weight"] = (1000, 4 * base)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with pytest.raises(UserError, match=rf"adm.pth is guided-diffusion's model of {size} pixels.*take one of 256"):
        convert(state, image_size=size)
    for other in ({"model": {}, "model_ema": state}, state | {"label_emb.weight": torch.empty(10, 4 * base)}):
        with pytest.raises(UserError, match="no ADM has"):  # not for being one of these
            convert(other, image_size=size)


def test_half_precision_is_said() -> None:
    halves = {k: v.half() for k, v in golden.state().items()}
    done = convert({"model": {}, "model_ema": halves})
    assert any("float16" in note for note in done.notes)
    with torch.no_grad():
        output = done.model(normal("x", 2, 3, 16, 16), torch.tensor([3, 870]), **golden.given("representation"))
    assert golden.distance(output, golden.value("forward_representation")) < 1e-2
