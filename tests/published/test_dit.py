"""DiT files of the reference: every key loaded, dropped with a reason, or an error; commands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from rcg.core.components import load_model, load_scheduler
from rcg.core.errors import UserError
from rcg.core.state_dicts import read_checkpoint
from rcg.image_gen.latent_dit.transformer import DiT
from rcg.published.convert import convert_files, identify
from rcg.published.dit import _config, convert_dit
from rcg.published.options import Options
from rcg.scripts import convert, inspect
from tests.image_gen.latent_dit import golden


def write(path: Path, contents: dict[str, Any]) -> Path:
    torch.save(contents, path)
    return path


@pytest.mark.parametrize("name", golden.MODELS)
def test_every_key_is_accounted_for(name: str, tmp_path: Path) -> None:
    contents = read_checkpoint(write(tmp_path / "dit.pth", golden.official(name)))
    assert identify(contents) == "dit"
    conversion = convert_dit(contents, "ema", "dit.pth", num_heads=2)
    others = {key for key, why in conversion.dropped.items() if why == "the ema weights were asked for"}
    assert others == {f"model.{key}" for key in contents["model"]}
    assert conversion.loaded.keys() | (conversion.dropped.keys() - others) == contents["model"].keys()
    assert not conversion.loaded.keys() & conversion.dropped.keys()
    assert set(conversion.loaded.values()) == set(conversion.model.state_dict())
    assert all(conversion.dropped.values())
    config = conversion.model.config
    expected = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0,
        "learn_sigma": name != "fixed", "condition": "none" if name == "fixed" else name,
        "representation_dim": 6 if name == "representation" else None, "num_classes": 5 if name == "class" else None,
        "condition_dropout": 0.1 if name in golden.GUIDED else 0.0,
    }  # fmt: skip
    assert {k: config[k] for k in expected} == expected
    assert not conversion.model.training


def test_raw_and_averaged_weights() -> None:
    contents = golden.official("class")
    models = [convert_dit(contents, weights, "dit.pth", num_heads=2).model for weights in ("ema", "raw")]  # type: ignore[arg-type]
    biases = [model.head.linear.bias for model in models]
    assert torch.allclose(biases[1], biases[0] + 1)
    contents["model_ema"] = None
    assert not convert_dit(contents, "raw", "dit.pth", num_heads=2).notes
    with pytest.raises(UserError, match=r"dit\.pth holds no averaged weights .*--weights raw"):
        convert_dit(contents, "ema", "dit.pth", num_heads=2)


def test_half_precision_and_a_wrapper() -> None:
    contents = golden.official("representation")
    contents["model_ema"] = {f"module.{k}": v.half() for k, v in contents["model_ema"].items()}
    conversion = convert_dit(contents, "ema", "dit.pth", num_heads=2)
    assert all(key.startswith("module.") for key in conversion.loaded)
    assert "converted to float32" in conversion.notes[0]


def test_sizes_of_the_published_models_are_inferred() -> None:
    for width, depth, heads in ((384, 12, 6), (1024, 24, 16), (1152, 28, 16)):
        with torch.device("meta"):
            shapes = {
                "x_embedder.proj.weight": torch.empty(width, 4, 2, 2),
                "pos_embed": torch.empty(1, 256, width),
                "final_layer.linear.weight": torch.empty(32, width),
                "y_embedder.embedding_table.weight": torch.empty(1, width),
                "rep_embedder.weight": torch.empty(width, 256),
                "fake_latent": torch.empty(1, 256),
                **{f"blocks.{i}.mlp.fc1.weight": torch.empty(4 * width, width) for i in range(depth)},
            }
        config = _config(shapes, "dit.pth", None)
        assert (config["width"], config["depth"], config["num_heads"]) == (width, depth, heads)
        assert (config["sample_size"], config["learn_sigma"], config["representation_dim"]) == (32, True, 256)


def changed(name: str, **changes: Any) -> dict[str, Any]:
    contents = golden.official(name)
    state = contents["model_ema"]
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return contents


@pytest.mark.parametrize(
    ("contents", "heads", "says"),
    [
        (changed("class", blocks__1__attn__proj__bias=None), 2, "first blocks.1.attn.proj.bias"),
        (
            changed("class", blocks__1__norm=torch.zeros(2)),
            2,
            "holds 1 weights the model does not have, first blocks.1.norm",
        ),
        (changed("class", pos_embed=torch.zeros(1, 16, 16)), 2, "not the fixed sine and cosine embedding"),
        (changed("class", pos_embed=torch.zeros(1, 16, 7)), 2, "not the fixed sine and cosine embedding"),
        (changed("class", pos_embed=torch.zeros(1, 15, 16)), 2, "15 tokens, which is not a square grid"),
        (changed("class", pos_embed=None), 2, "holds no DiT of RCG: pos_embed is missing"),
        (changed("class"), None, "16 wide, which is none of the published sizes; add --generator-num-heads"),
        (changed("class"), 3, "width is 16, which 3 heads do not divide"),
        (changed("none", t_embedder__mlp__2__bias=None), 2, "first time_embed.linear_2.bias"),
        (changed("representation", fake_latent=torch.zeros(1, 5)), 2, r"condition_embed.null has shape \[1, 5\]"),
        ({"model": {}, "model_ema": {}}, 2, "no weights under `model_ema`"),
    ],
)
def test_what_does_not_fit_is_named(contents: dict[str, Any], heads: int | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert_dit(contents, "ema", "dit.pth", num_heads=heads)


def test_the_original_dit_is_another_model() -> None:
    contents = {k: v for k, v in golden.official("class")["model"].items() if not k.startswith("rep_embedder")}
    assert identify(contents) is None


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "dit.pth", golden.official("representation"))
    flags = ["--generator-num-heads", "2"]
    convert.main([str(file), *flags, f"--out={tmp_path / 'generator'}"])
    model = load_model(DiT, tmp_path / "generator")
    assert isinstance(load_scheduler(tmp_path / "generator"), DPMSolverMultistepScheduler)
    report = json.loads((tmp_path / "generator/conversion.json").read_text())
    dropped = report["components"]["image_generator"]["dropped"]
    assert {k for k in dropped if not k.startswith("model.")} == {"pos_embed", "y_embedder.embedding_table.weight"}
    x, times = golden.tensor("common", "x"), golden.tensor("common", "times")
    with torch.no_grad():
        output = model(x, times, **golden.given("representation"))
    assert golden.relative(output, golden.tensor("representation", "output")) < 1e-5
    with pytest.raises(UserError, match="convert one file at a time, and put them together with rcg-assemble"):
        convert_files(
            [file, write(tmp_path / "vqgan.pth", {"quantize.embedding.weight": torch.zeros(2, 2)})], Options()
        )

    capsys.readouterr()
    inspect.main([str(file)])
    said = capsys.readouterr().out
    assert "a DiT image generator of RCG" in said
    assert "16 wide, which is none of the published sizes" in said  # the file's heads cannot be told
    assert "EMA         present" in said
    inspect.main([str(tmp_path / "generator")])
    said = capsys.readouterr().out
    assert "a finished DiT" in said
    assert "rcg-assemble --generator" in said
