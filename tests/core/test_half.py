"""Pipelines in half the bytes: rounded once, float32 when loaded, in files of a limited size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rcg import RCGPipeline, SSLEncoder, UserError
from rcg.core import shipped
from rcg.core.card import CardInfo
from rcg.core.components import load_model
from rcg.core.half import halve_weights
from rcg.hub import pack_for_box
from rcg.scripts import assemble, push
from tests.components import get_dummy_pipeline
from tests.scripts.test_assemble import save_stages


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def close(a: RCGPipeline, b: RCGPipeline) -> None:
    for name in ("encoder", "rdm", "image_generator", "tokenizer"):
        states = [getattr(pipe, name).state_dict() for pipe in (a, b)]
        for key, full in states[0].items():
            assert states[1][key].dtype == full.dtype
            if full.ndim < 2:
                assert torch.equal(states[1][key], full)
            else:
                assert torch.allclose(states[1][key], full, rtol=2**-11, atol=2**-25)


def test_saved_in_half(tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path / "full")
    pipe.save_pretrained(tmp_path / "half", half=True)
    assert size(tmp_path / "half") < 0.75 * size(tmp_path / "full")  # the tiny models have many short vectors
    stored = load_file(tmp_path / "half/encoder/diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values() if t.ndim > 1} == {torch.float16}
    assert {t.dtype for t in stored.values() if t.ndim < 2} <= {torch.float32, torch.int64}
    loaded = RCGPipeline.from_pretrained(tmp_path / "half")
    close(pipe, loaded)
    assert loaded.identity() != pipe.identity()
    loaded.save_pretrained(tmp_path / "again", half=True)  # rounded once, and never again
    loaded.save_pretrained(tmp_path / "whole")
    for other in ("again", "whole"):
        assert RCGPipeline.from_pretrained(tmp_path / other).identity() == loaded.identity()
    draws = [
        p(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="pt").representations
        for p in (pipe, loaded)
    ]
    assert torch.allclose(*draws, atol=0.05)


def test_too_large_a_weight_is_refused(tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    with torch.no_grad():
        pipe.rdm.input_proj.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"input_proj\.weight in rdm is too large for float16"):
        pipe.save_pretrained(tmp_path / "half", half=True)
    assert list((tmp_path / "half").iterdir()) == []


@pytest.mark.parametrize("name", ["encoder", "image_generator"])
def test_sharded_weights(name: str, tmp_path: Path) -> None:
    model = getattr(get_dummy_pipeline(), name)
    model.save_pretrained(tmp_path, max_shard_size=6000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    halve_weights(tmp_path)
    total = json.loads(next(tmp_path.glob("*.index.json")).read_text())["metadata"]["total_size"]
    assert total == sum(t.nbytes for file in tmp_path.glob("*.safetensors") for t in load_file(file).values())
    loaded = load_model(type(model), tmp_path)
    for key, full in model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[key].float(), full.float(), rtol=2**-11, atol=2**-25)
    if isinstance(loaded, SSLEncoder):
        assert torch.isfinite(loaded(torch.rand(2, 3, 16, 16))).all()


def test_commands(tmp_path: Path) -> None:
    stages = save_stages(tmp_path)
    flags: dict[str, Any] = {**stages, "out": tmp_path / "model"}
    assemble.main(["--half", *(a for k, v in flags.items() for a in (f"--{k}", str(v)))])
    loaded = RCGPipeline.from_pretrained(tmp_path / "model")
    close(get_dummy_pipeline(), loaded)
    arguments = ["--model", tmp_path / "model", "--repo", "user/tiny", "--dry-run", tmp_path / "dry"]
    push.main([*map(str, arguments), "--half", "--recipe", "`sh train.sh`"])
    assert size(tmp_path / "dry") == size(tmp_path / "model")
    assert RCGPipeline.from_pretrained(tmp_path / "dry").identity() == loaded.identity()
    assert "## Recipe\n\n`sh train.sh`" in (tmp_path / "dry/README.md").read_text()


def test_packing_for_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = tmp_path / "box"
    monkeypatch.setattr(shipped, "BOX", box)
    pipe, info = get_dummy_pipeline(), CardInfo("pictures", "mit", {"fid": 3.0}, recipe="`sh train.sh`")
    monkeypatch.setattr("rcg.hub.BOX_SHARD_BYTES", 12_000)
    folder = pack_for_box(pipe, "rcg/tiny", info)
    assert folder == box / "tiny" == shipped.locate("rcg/tiny")
    assert len(list(folder.glob("tokenizer/*.safetensors"))) > 1
    card = (folder / "README.md").read_text()
    for piece in (
        'RCGPipeline.from_pretrained("rcg/tiny")',
        "license: mit",
        "pictures",
        "| fid | 3 |",
        "`sh train.sh`",
    ):
        assert piece in card
    first = RCGPipeline.from_pretrained("rcg/tiny")
    close(pipe, first)
    total = sum(file.stat().st_size for file in box.rglob("*") if file.is_file())
    monkeypatch.setattr(shipped, "MAX_BOX_BYTES", total)  # another one of that size has no room, but in its place
    pack_for_box(pipe, "rcg/tiny", info)
    with pytest.raises(UserError, match=r"the box would hold .* take a smaller model"):
        pack_for_box(pipe, "rcg/other", info)
    monkeypatch.setattr(shipped, "MAX_FILE_BYTES", 5000)
    with pytest.raises(UserError, match="but a file in the box may have"):
        pack_for_box(get_dummy_pipeline(seed=1), "rcg/tiny", info)
    with pytest.raises(UserError, match="no name for the box"):
        pack_for_box(pipe, "user/tiny", info)
    assert shipped.names() == ["rcg/tiny"]
    assert RCGPipeline.from_pretrained("rcg/tiny").identity() == first.identity()
