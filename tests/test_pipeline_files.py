"""The pipeline's folders: their format, saving, loading, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from rcg import RCGPipeline, UserError
from tests.components import DIM, get_dummy_pipeline

GOLDEN = Path(__file__).parent / "golden" / "model_index.json"


@pytest.fixture(scope="module")
def pipe() -> RCGPipeline:
    return get_dummy_pipeline()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shape_of(index: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in index.items() if k != "_diffusers_version"}


def test_folder_format(pipe: RCGPipeline, tmp_path: Path) -> None:
    """What a saved pipeline looks like is a contract: published models name these modules and files."""
    pipe.save_pretrained(tmp_path)
    assert _shape_of(json.loads((tmp_path / "model_index.json").read_text())) == json.loads(GOLDEN.read_text())
    weights = {f"{m}/diffusion_pytorch_model.safetensors" for m in ("encoder", "image_generator", "rdm", "tokenizer")}
    configs = {f"{m}/config.json" for m in ("encoder", "image_generator", "rdm", "tokenizer")}
    schedulers = {f"{s}/scheduler_config.json" for s in ("image_scheduler", "rdm_scheduler")}
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"model_index.json"} | weights | configs | schedulers


@pytest.mark.parametrize("without", [(), ("encoder",), ("encoder", "rdm")])
def test_save_and_load(tmp_path: Path, without: tuple[str, ...]) -> None:
    pipe = get_dummy_pipeline(without=without)
    pipe.save_pretrained(tmp_path / "a")
    loaded = RCGPipeline.from_pretrained(tmp_path / "a")
    loaded.set_progress_bar_config(disable=True)
    for name in without:
        assert getattr(loaded, name) is None
    assert loaded.identity() == pipe.identity()
    arguments: dict[str, Any] = {"representations": torch.randn(2, DIM)} if "rdm" in without else {"batch_size": 2}
    results = [p(**arguments, generator=seeded(), output_type="pt").images for p in (pipe, loaded)]
    assert torch.equal(*results)
    loaded.save_pretrained(tmp_path / "b")  # a round trip leaves no trace of where it was loaded from
    for file in (tmp_path / "a").rglob("*.json"):
        assert (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_text() == file.read_text()


def test_load_with_another_scheduler_or_dtype(pipe: RCGPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "rdm_scheduler")
    with pytest.raises(UserError, match="rdm_scheduler holds no scheduler_config"):
        RCGPipeline.from_pretrained(tmp_path)
    loaded = RCGPipeline.from_pretrained(tmp_path, rdm_scheduler=pipe.rdm_scheduler, torch_dtype=torch.bfloat16)
    assert loaded.rdm.dtype == torch.bfloat16


def test_a_scheduler_that_keeps_the_settings_of_another_loads(pipe: RCGPipeline, tmp_path: Path) -> None:
    other = get_dummy_pipeline()
    other.rdm_scheduler = PNDMScheduler.from_config({**pipe.rdm_scheduler.config, "prediction_type": "sample"})
    other.save_pretrained(tmp_path)
    assert isinstance(RCGPipeline.from_pretrained(tmp_path).rdm_scheduler, PNDMScheduler)
    file = tmp_path / "rdm_scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "timestep_spacing": "wide"}))
    with pytest.raises(UserError, match=r"no PNDMScheduler can be made of it|timestep_spacing"):
        RCGPipeline.from_pretrained(tmp_path)


def test_identity_notices_what_matters(pipe: RCGPipeline) -> None:
    same, other = get_dummy_pipeline(), get_dummy_pipeline(seed=1)
    assert same.identity() == pipe.identity() != other.identity()
    same.rdm_scheduler = FlowMatchEulerDiscreteScheduler()
    assert same.identity() != pipe.identity()
    assert get_dummy_pipeline(without=("encoder",)).identity() == pipe.identity()  # sampling does not need it


def test_a_save_that_fails_leaves_nothing(pipe: RCGPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(pipe.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        pipe.save_pretrained(tmp_path / "model")
    assert list((tmp_path / "model").rglob("*")) == []


def test_folders_that_are_no_pipeline(pipe: RCGPipeline, tmp_path: Path) -> None:
    good = tmp_path / "good"
    pipe.save_pretrained(good)
    (tmp_path / "empty").mkdir()
    for folder, message in (
        ("empty", "is not a saved pipeline .it holds nothing"),
        ("good/rdm", "holds a single RepresentationMLP, not a pipeline; .* rcg-assemble"),
        ("good/image_scheduler", "holds a single MaskGITScheduler"),
    ):
        with pytest.raises(UserError, match=message):
            RCGPipeline.from_pretrained(tmp_path / folder)
    with pytest.raises(UserError, match=r"is not a saved pipeline \(it holds empty, good"):
        RCGPipeline.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="safetensors only"):
        pipe.save_pretrained(tmp_path / "x", safe_serialization=False)


def test_damaged_folders(pipe: RCGPipeline, tmp_path: Path) -> None:
    good = tmp_path / "good"
    pipe.save_pretrained(good)

    def spoiled(name: str) -> Path:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(good, tmp_path / "bad")
        return tmp_path / "bad" / name

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            RCGPipeline.from_pretrained(tmp_path / "bad")

    weights = spoiled("image_generator/diffusion_pytorch_model.safetensors")
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if not k.startswith("decoder_norm")}, weights)
    refused("lack decoder_norm.bias, decoder_norm.weight of MageTransformer; take a complete checkpoint")
    save_file({**state, "stranger": torch.zeros(1)}, weights)
    refused("hold stranger, which MageTransformer does not have")
    save_file({**state, "norm.bias": torch.zeros(3)}, weights)
    refused("do not fit its config.json .norm.bias differ in shape")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("is damaged")
    weights.unlink()
    refused("holds no weights")
    shutil.rmtree(spoiled("tokenizer"))
    refused("there is no folder .*tokenizer")
    spoiled("rdm/config.json").write_text("{")
    refused("is not valid JSON")
    shutil.copy(good / "rdm/config.json", spoiled("tokenizer/config.json"))
    refused("holds a RepresentationMLP, but a VQTokenizer is needed")
    index = spoiled("model_index.json")
    index.write_text(index.read_text().replace("rcg.encoders.ssl_encoder", "os"))
    refused("neither rcg nor diffusers")
    spoiled("model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    refused("holds a DiTPipeline, not an RCGPipeline")
