"""Published checkpoints: every key accounted for."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.state_dicts import Conversion, read_checkpoint
from rcg.published.rdm import convert_official_rdm
from rcg.rdm.representation_mlp import RepresentationMLP
from tests.rdm import golden


def load(path: Path) -> Conversion[RepresentationMLP]:
    return convert_official_rdm(read_checkpoint(path), source=str(path))


def _official_file(path: Path, kind: str, under: str = "model") -> Path:
    state = golden.state(kind) | {"pretrained_encoder.cls_token": torch.zeros(1, 1, 32), "betas": torch.zeros(1000)}
    torch.save({under: state, "model_ema": None, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, path)
    return path


@pytest.mark.parametrize("kind", golden.KINDS)
@pytest.mark.parametrize("under", ["model", "state_dict"])
def test_every_key_is_loaded_or_dropped_with_a_reason(tmp_path: Path, kind: str, under: str) -> None:
    file = _official_file(tmp_path / "rdm.pth", kind, under)
    report = load(file)
    rdm = report.model
    with torch.serialization.safe_globals([argparse.Namespace]):  # of the file's training flags
        keys = set(torch.load(file, weights_only=True)[under])
    assert report.loaded.keys() | report.dropped.keys() == keys
    assert not report.loaded.keys() & report.dropped.keys()
    assert sorted(report.loaded.values()) == sorted(rdm.state_dict())
    assert all(report.dropped.values())
    expected = {"representation_dim": 24, "width": 40, "depth": 12, "num_classes": 1000 if kind == "classcond" else 0}
    assert {k: rdm.config[k] for k in expected} == expected
    assert ("cond_stage_model.embedding.weight" in report.dropped) == (kind == "uncond")
    with torch.no_grad():
        out = rdm(golden.tensor(kind, "x"), golden.tensor(kind, "t"), golden.labels(kind)).sample
    assert golden.relative(out, golden.tensor(kind, "out_ema")) < 1e-5


def test_without_averaged_weights_the_raw_ones_must_be_asked_for() -> None:
    state = {k: v for k, v in golden.state("uncond").items() if not k.startswith("model_ema.")}
    with pytest.raises(UserError, match="ask for the raw ones"):
        convert_official_rdm({"model": state})
    rdm = convert_official_rdm({"model": state}, "raw").model
    assert torch.equal(rdm.input_proj.weight, state["model.diffusion_model.input_proj.weight"])


def test_what_is_not_an_rdm_is_refused(tmp_path: Path) -> None:
    state = golden.state("uncond")
    with pytest.raises(UserError, match=r"lacks model_ema\.diffusion_modelout0weight"):
        convert_official_rdm({"model": {k: v for k, v in state.items() if k != "model_ema.diffusion_modelout0weight"}})
    with pytest.raises(UserError, match="holds mask_token, which no RDM has"):
        convert_official_rdm({"model": state | {"mask_token": torch.zeros(1)}})
    with pytest.raises(UserError, match="no RDM checkpoint"):
        convert_official_rdm({"model": {"blocks.0.attn.qkv.weight": torch.zeros(2, 2)}})
    with pytest.raises(UserError, match="another noise schedule"):
        convert_official_rdm({"model": state | {"alphas_cumprod": torch.linspace(1, 0, 1000)}})
    with pytest.raises(UserError, match="has shape"):
        convert_official_rdm({"model": state | {"model_ema.diffusion_modelout0bias": torch.zeros(3)}})
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "text.pth")
    torch.save({"model": {"a": [1, 2]}}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="there are no weights"):
        load(tmp_path / "odd.pth")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"model": golden.state("uncond"), "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
