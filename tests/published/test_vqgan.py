"""Official tokenizer files: sizes are inferred, every key is accounted for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import Conversion, read_checkpoint
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.published.vqgan import convert_vqgan


def load(path: Path) -> Conversion[VQTokenizer]:
    return convert_vqgan(read_checkpoint(path), str(path))


@pytest.fixture(scope="module")
def model() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(base_channels=32, channel_multipliers=(1, 2, 1), num_codes=20, code_dim=6)


def test_reads_the_official_layout(model: VQTokenizer, tmp_path: Path) -> None:
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "x.ckpt")
    loaded = load(tmp_path / "x.ckpt").model
    assert not loaded.training
    assert list(loaded.config.channel_multipliers) == [1, 2, 1]
    assert (loaded.config.num_res_blocks, loaded.config.num_codes, loaded.config.code_dim) == (2, 20, 6)
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded.encode_latents(images), model.eval().encode_latents(images))


def test_reads_the_tokenizer_of_a_mage_file(model: VQTokenizer, tmp_path: Path) -> None:
    weights = {f"vqgan.{k}": v for k, v in model.state_dict().items()} | {"cls_token": torch.zeros(1)}
    torch.save({"model": weights, "args": argparse.Namespace()}, tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth").model
    assert torch.equal(loaded.quantize.embedding.weight, model.quantize.embedding.weight)


def without(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("decoder.mid.block_1.norm1.bias"), "first decoder.mid.block_1.norm1.bias"),
        (without("encoder.conv_in.weight"), "encoder.conv_in.weight is missing"),
        (without("quantize.embedding.weight"), "quantize.embedding.weight is missing"),
        (without("encoder.down.1.block.0.conv1.weight"), "encoder.down.1.block.0.conv1.weight is missing"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "first extra.weight"),
        (lambda s: s.update({"decoder.conv_out.bias": torch.zeros(4)}), "decoder.conv_out.bias has shape"),
    ],
)
def test_every_key_is_accounted_for(model: VQTokenizer, change: Callable[..., object], words: str) -> None:
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(UserError, match=words):
        convert_vqgan({"state_dict": state}, "file")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def test_unusable_files_are_user_errors(model: VQTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no file"):
        load(tmp_path / "none.ckpt")
    torch.save({"state_dict": model.state_dict(), "evil": Evil()}, "evil.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "evil.ckpt")
    assert not Path("touched").exists()
    Path("half.ckpt").write_bytes(Path("evil.ckpt").read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "half.ckpt")
    torch.save({"model": {"cls_token": torch.zeros(1)}}, "mage.pth")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load(tmp_path / "mage.pth")
