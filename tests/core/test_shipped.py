"""The box: models that come with the library are found by name, everywhere where a folder of a model is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.functional import to_tensor

from rcg import RCGPipeline, RepresentationMLP, SSLEncoder, UserError
from rcg.core import shipped
from rcg.core.card import CardInfo
from rcg.core.components import load_any, load_model, load_scheduler
from rcg.core.files import model_hash
from rcg.data.cache import Cache
from rcg.data.sources import open_source
from rcg.hub import pack_component_for_box, pack_for_box
from rcg.image_gen.families import MODELS, SCHEDULERS, TOKENIZERS
from rcg.image_gen.tokenizers.codec import codec_of
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.scripts import assemble, cache, inspect, sample
from rcg.scripts import eval as evaluate
from tests.components import SIZE, get_dummy_pipeline

ROOT = Path(__file__).parents[2]
SMALL = "rcg/small"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box with two models."""
    root = tmp_path_factory.mktemp("box")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "BOX", root)
        info = CardInfo("drawn pictures", "mit", {"fid": 3.0}, recipe="sh train.sh")
        pack_for_box(get_dummy_pipeline(), SMALL, info)
        pack_for_box(get_dummy_pipeline(seed=1), shipped.DEFAULT, info)
    return root


@pytest.fixture
def box(filled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """It stands in for the library's own, in a working directory that holds nothing, without a network."""
    monkeypatch.setattr(shipped, "BOX", filled)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.chdir(tmp_path)
    return filled


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def command(main: Any, *more: str, **flags: Any) -> None:
    main([a for k, v in flags.items() for a in (f"--{k.replace('_', '-')}", str(v))] + list(more))


def test_names(box: Path) -> None:
    assert shipped.names() == [shipped.DEFAULT, SMALL]
    assert shipped.locate(SMALL) == shipped.locate(Path(SMALL)) == box / "small"
    for name in ("rcg/absent", "small", "other/small", "rcg/small/rdm", "rcg/..", "rcg/"):
        assert shipped.locate(name) is None
    assert shipped.local_folder("user/model") is None
    (box / ".small.0123abcd").mkdir()  # what a killed packing leaves
    (box / ".small.0123abcd" / "model_index.json").touch()
    assert shipped.names() == [shipped.DEFAULT, SMALL]
    (box / ".small.0123abcd" / "model_index.json").unlink()
    (box / ".small.0123abcd").rmdir()


def test_a_pipeline_by_its_name(box: Path, tmp_path: Path) -> None:
    pipe = RCGPipeline.from_pretrained(SMALL)
    assert pipe.identity() == RCGPipeline.from_pretrained(box / "small").identity()
    assert {p.dtype for p in pipe.image_generator.parameters()} == {torch.float32}
    get_dummy_pipeline(seed=2).save_pretrained(tmp_path / SMALL)  # a folder of that name wins
    assert RCGPipeline.from_pretrained(SMALL).identity() != pipe.identity()
    with pytest.raises(UserError, match="no folder rcg/absent, and the box holds rcg/cifar10, rcg/small only"):
        RCGPipeline.from_pretrained("rcg/absent")
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        RCGPipeline.from_pretrained("user/absent")


def test_its_components_by_their_name(box: Path) -> None:
    pipe = RCGPipeline.from_pretrained(SMALL)
    assert pipe.encoder is not None
    named = SSLEncoder.from_pretrained(SMALL, subfolder="encoder")
    assert model_hash(named) == model_hash(load_model(SSLEncoder, SMALL)) == model_hash(pipe.encoder)
    assert model_hash(RepresentationMLP.from_pretrained(SMALL, subfolder="rdm")) == model_hash(pipe.rdm)
    assert model_hash(load_any(MODELS, Path(SMALL))) == model_hash(pipe.image_generator)
    assert model_hash(load_model(VQTokenizer, box / "small")) == model_hash(pipe.tokenizer)  # any pipeline's folder
    with pytest.raises(UserError, match="small is a pipeline; say which part of it is meant"):
        SSLEncoder.from_pretrained(SMALL)
    for part, own in (("image_scheduler", SCHEDULERS), ("rdm_scheduler", ())):
        assert dict(load_scheduler(SMALL, *own, part=part).config) == dict(getattr(pipe, part).config)
    for ask in (lambda: SSLEncoder.from_pretrained("rcg/absent"), lambda: load_model(SSLEncoder, "rcg/absent")):
        with pytest.raises(UserError, match="the box holds"):
            ask()


def test_a_pipeline_without_the_component(box: Path, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline(without=("encoder",))
    pipe.save_pretrained(tmp_path / "mine")
    with pytest.raises(UserError, match="mine has no SSLEncoder; give the folder of one"):
        load_model(SSLEncoder, tmp_path / "mine")
    weaker = get_dummy_pipeline(seed=3).image_generator
    RCGPipeline(**{**pipe.components, "guiding_model": weaker}).save_pretrained(tmp_path / "guided")
    assert model_hash(load_any(MODELS, tmp_path / "guided")) == model_hash(pipe.image_generator) != model_hash(weaker)


def test_sampling_without_a_model(box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(sample.main, out="pictures", num_images=3, device="cpu")
    manifest = json.loads((tmp_path / "pictures/sampling.json").read_text())
    assert manifest["model"] == shipped.DEFAULT
    assert manifest["settings"]["model"] == RCGPipeline.from_pretrained(shipped.DEFAULT).identity()
    first = {p.name: p.read_bytes() for p in (tmp_path / "pictures").glob("0*.png")}
    command(sample.main, "--resume", out="pictures", num_images=5, device="cpu")
    assert len(list((tmp_path / "pictures").glob("0*.png"))) == 5
    assert all((tmp_path / "pictures" / name).read_bytes() == content for name, content in first.items())


def test_an_empty_box(box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shipped, "BOX", box / "nothing")
    with pytest.raises(SystemExit) as stopped:
        command(sample.main, out="pictures")
    assert stopped.value.code == 2
    message = "there is no folder rcg/cifar10, and no model comes with this version of the library; give a folder"
    assert message in capsys.readouterr().err


def test_commands_take_frozen_parts_from_the_box(box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(cache.main, data="shapes:n=6,size=16", image_size=SIZE, encoder=SMALL, tokenizer=box / "small", out="cache")
    pipe = RCGPipeline.from_pretrained(SMALL)
    made = Cache("cache")
    made.require("representations", pipe.encoder)
    made.require("tokens", pipe.tokenizer)
    parts = dict.fromkeys(("generator", "tokenizer", "rdm", "encoder", "guiding_model"), SMALL)
    command(assemble.main, out="mine", **parts)
    mine = RCGPipeline.from_pretrained("mine")
    assert model_hash(mine.rdm) == model_hash(pipe.rdm)
    assert model_hash(mine.guiding_model) == model_hash(pipe.image_generator)
    command(inspect.main, SMALL)
    assert "a pipeline (RCGPipeline)" in capsys.readouterr().out
    assert evaluate.EvalConfig((SMALL,)).is_pipeline
    config = evaluate.EvalConfig(("images",), extractor=f"encoder:{SMALL}")
    assert evaluate._extractor(config).name == "encoder"  # type: ignore[union-attr]


def test_a_single_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shipped, "BOX", tmp_path / "box")
    monkeypatch.chdir(tmp_path)
    get_dummy_pipeline().tokenizer.save_pretrained("runs/tokenizer")
    tokenizer = load_model(VQTokenizer, "runs/tokenizer")
    folder = pack_component_for_box(tokenizer, "rcg/squares", "A card.")
    assert "runs" not in (folder / "config.json").read_text()  # where it came from
    assert shipped.names() == ["rcg/squares"]
    assert folder == shipped.locate("rcg/squares")
    assert (folder / "README.md").read_text() == "A card."
    for weight, packed in zip(tokenizer.parameters(), load_model(VQTokenizer, "rcg/squares").parameters(), strict=True):
        assert packed.dtype == torch.float32
        torch.testing.assert_close(packed, weight, rtol=1e-3, atol=1e-6)
    command(cache.main, data="shapes:n=6,size=16", image_size=SIZE, tokenizer="rcg/squares", out="cache")
    Cache("cache").require("tokens", load_model(VQTokenizer, "rcg/squares"))
    with pytest.raises(SystemExit):
        command(sample.main, model="rcg/squares", out="pictures")
    assert "holds a single VQTokenizer, not a pipeline" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()


def test_the_box_of_this_library() -> None:
    """What is in it, if anything, is small enough, complete, described, and installed with the library."""
    shipped.check_sizes()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, folder in (("rcg.box", shipped.BOX), ("rcg.data.embedded", ROOT / "rcg/data/embedded")):
        patterns = ["*.py", *(pattern.removeprefix("**/") for pattern in declared[package])]
        for file in (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            assert any(fnmatch(file.name, pattern) for pattern in patterns), file
            assert file.suffix != ".json" or "_name_or_path" not in file.read_text(), file  # a maintainer's folder
    for name in shipped.names():
        folder = shipped.locate(name)
        assert folder is not None
        card = (folder / "README.md").read_text()
        assert "license:" in card
        assert "not stated" not in card
        if (folder / "model_index.json").is_file():
            assert RCGPipeline.from_pretrained(name).generator.condition
            continue
        codec, photographs = codec_of(load_any(TOKENIZERS, name)), open_source("clothing:split=test,size=32")
        images = torch.stack([to_tensor(photographs.image(i)) for i in range(32)])
        with torch.no_grad():
            error = (codec.decode(codec.encode(images)) - images).square().mean()
        assert -10 * error.log10() > 31  # dB, on photographs of a kind that it has not seen


def test_the_name_is_looked_up_before_torch_is_needed() -> None:
    code = "import sys; from rcg.core import shipped; shipped.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
