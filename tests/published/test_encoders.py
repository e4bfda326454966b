"""Official MoCo-v3 files against the reference's values; damaged and foreign files."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rcg.core.errors import UserError
from rcg.core.state_dicts import Conversion, read_checkpoint
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.published.encoders import convert_contents

GOLDEN = Path(__file__).parents[1] / "golden/encoders"
TOLERANCE = 1e-5


def weights_of(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"mocov3_{name}_weights.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file}


def load(path: Path, **options: Any) -> Conversion[SSLEncoder]:
    return convert_contents(read_checkpoint(path), str(path), **options)


def official_file(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    extras = {"epoch": 300, "arch": "vit_base", "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    torch.save({"state_dict": weights, **extras}, path)
    return path


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "values.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def images(values: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(values["images_u8"]).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def vitb(tmp_path_factory: pytest.TempPathFactory) -> Conversion[SSLEncoder]:
    path = official_file(tmp_path_factory.mktemp("moco") / "vitb.pth.tar", weights_of("vitb"))
    return load(path, num_heads=4)


def distance(a: torch.Tensor, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.detach().numpy() - b) / np.linalg.norm(b))


def test_official_file_computes_what_the_reference_does(
    vitb: Conversion[SSLEncoder], values: dict[str, np.ndarray], images: torch.Tensor
) -> None:
    encoder = vitb.model
    assert distance(encoder.preprocess(images)[:, :, ::2, ::2], values["x224_every_2nd_pixel"]) <= TOLERANCE
    features = encoder.features(images)
    assert distance(features, values["feat"]) <= TOLERANCE
    projections = encoder.project(features)
    assert distance(projections, values["proj"]) <= TOLERANCE
    representations = encoder(images)
    assert distance(representations, values["rep"]) <= TOLERANCE
    assert distance(representations, values["rep_biased_std"]) > 1e-3
    for control in ("control_momentum_proj", "control_antialias_proj"):
        assert distance(projections, values[control]) > 1e-3, control


def test_the_wrong_controls_are_what_they_say(
    values: dict[str, np.ndarray], images: torch.Tensor, tmp_path: Path
) -> None:
    """The momentum encoder read on purpose gives the momentum control, so the control is a control."""
    weights = {
        k.replace("momentum_encoder", "base_encoder"): v for k, v in weights_of("vitb").items() if "momentum" in k
    }
    encoder = load(official_file(tmp_path / "m.pth.tar", weights), num_heads=4).model
    assert distance(encoder.project(encoder.features(images)), values["control_momentum_proj"]) <= TOLERANCE
    encoder = load(official_file(tmp_path / "a.pth.tar", weights_of("vitb")), num_heads=4).model
    encoder.register_to_config(antialias=True)
    assert distance(encoder.project(encoder.features(images)), values["control_antialias_proj"]) <= 1e-4


def test_every_key_is_accounted_for(vitb: Conversion[SSLEncoder]) -> None:
    keys = set(weights_of("vitb"))
    assert set(vitb.loaded) | set(vitb.dropped) == keys
    assert not set(vitb.loaded) & set(vitb.dropped)
    assert set(vitb.loaded) == {k for k in keys if k.startswith("module.base_encoder.")}
    assert set(vitb.loaded.values()) == set(vitb.model.state_dict())
    assert {r.split()[1] for r in vitb.dropped.values()} == {"momentum", "predictor"}
    assert vitb.kind == "mocov3"


def test_file_without_the_usual_wrapper(vitb: Conversion[SSLEncoder], images: torch.Tensor, tmp_path: Path) -> None:
    weights = {k.removeprefix("module."): v for k, v in weights_of("vitb").items()}
    conversion = load(official_file(tmp_path / "x.pth.tar", weights), num_heads=4)
    assert {f"module.{k}": name for k, name in conversion.loaded.items()} == vitb.loaded
    assert conversion.notes == vitb.notes == []
    assert torch.equal(conversion.model(images), vitb.model(images))


def test_misspelt_keys_of_the_large_model(values: dict[str, np.ndarray], images: torch.Tensor, tmp_path: Path) -> None:
    weights = weights_of("d16")
    assert "module.base_encoder.blocks.13.mlp.fc13.weight" in weights
    conversion = load(official_file(tmp_path / "l.pth.tar", weights), num_heads=4)
    assert conversion.model.config.arch_kwargs["depth"] == 16
    assert conversion.loaded["module.base_encoder.blocks.14.norm14.bias"] == "backbone.blocks.14.norm2.bias"
    features = conversion.model.features(images)
    assert distance(features, values["d16_feat"]) <= TOLERANCE
    assert distance(conversion.model.project(features), values["d16_proj"]) <= TOLERANCE


def test_converted_encoder_survives_saving(vitb: Conversion[SSLEncoder], images: torch.Tensor, tmp_path: Path) -> None:
    vitb.model.save_pretrained(tmp_path)
    assert torch.equal(SSLEncoder.from_pretrained(tmp_path)(images), vitb.model(images))


@pytest.mark.parametrize(("width", "heads"), [(384, 12), (768, 12), (1024, 16)])
def test_heads_of_the_published_sizes_are_known(width: int, heads: int, tmp_path: Path) -> None:
    donor = SSLEncoder(
        "vit_base_patch16_224", {"img_size": 32, "embed_dim": width, "depth": 1, "num_heads": 1}, image_size=32
    )
    weights = {"module.base_encoder." + k: v for k, v in donor.backbone.state_dict().items()}
    encoder = load(official_file(tmp_path / "x.pth.tar", weights)).model
    assert encoder.config.arch_kwargs["num_heads"] == heads == encoder.backbone.blocks[0].attn.num_heads
    assert encoder.config.arch_kwargs["img_size"] == 32
    assert encoder.head is None
    assert encoder.representation_dim == width


def changed(**changes: Any) -> dict[str, torch.Tensor]:
    weights = {k: v for k, v in weights_of("vitb").items() if "momentum" not in k}
    for old, new in changes.items():
        key = "module.base_encoder." + old.replace("__", ".")
        value = weights.pop(key)
        if isinstance(new, str):
            weights[new] = value
        elif new is not None:
            weights[key] = new
    return weights


def test_keys_that_do_not_fit_name_the_nearest(tmp_path: Path) -> None:
    def refusal(weights: dict[str, torch.Tensor], heads: int | None = 4) -> str:
        with pytest.raises(UserError) as error:
            load(official_file(tmp_path / "x.pth.tar", weights), num_heads=heads)
        return str(error.value)

    renamed = refusal(changed(blocks__1__norm1__weight="module.base_encoder.blocks.1.nrm1.weight"))
    assert "backbone.blocks.1.norm1.weight" in renamed
    assert "nearest: backbone.blocks.1.nrm1.weight" in renamed
    assert "lacks 1 of" in refusal(changed(norm__bias=None))
    assert "[31]" in refusal(changed(norm__bias=torch.zeros(31)))
    assert "neither the encoder's nor" in refusal(changed(norm__bias="module.surprise.bias"))
    assert "--encoder-num-heads" in refusal(weights_of("vitb"), heads=None)
    assert "do not divide" in refusal(weights_of("vitb"), heads=5)


def test_files_of_another_kind_are_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = official_file(tmp_path / "whole.pth.tar", weights_of("vitb")).read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"state_dict": Path("x")}, protocol=2))
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {"mask_token": torch.zeros(3)}}, tmp_path / "mage.pth")
    save_file({"w": torch.zeros(2)}, tmp_path / "plain.safetensors")
    for name in ("truncated.pth", "empty.pth", "text.pth", "broken.safetensors", "code.pth"):
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="holds a list"):
        load(tmp_path / "list.pth")
    for name in ("mage.pth", "plain.safetensors"):
        with pytest.raises(UserError, match="no encoder checkpoint of a known format"):
            load(tmp_path / name)
    with pytest.raises(UserError, match=r"holds no base_encoder\.\* weights"):
        load(tmp_path / "mage.pth", format="mocov3")
    with pytest.raises(UserError, match="no checkpoint format 'dinosaur'"):
        load(tmp_path / "mage.pth", format="dinosaur")
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "absent.pth")
