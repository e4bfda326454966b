"""`rcg-train-generator` from the command line: from a cache, from images, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from rcg import MageTransformer, MaskGITScheduler, RCGPipeline, SSLEncoder, UserError, VQTokenizer
from rcg.core.components import load_any, load_model, load_scheduler
from rcg.core.rng import sample_generators
from rcg.data.build import Views
from rcg.data.cache import CacheField, build_cache
from rcg.data.sources import open_source
from rcg.image_gen.families import FAMILIES
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.image_gen.train import load_earlier
from rcg.published.inspection import inspect_path
from rcg.scripts import assemble, train_generator
from rcg.scripts._command import preset_arguments
from rcg.scripts.train_generator import main, open_data

SPEC = "shapes:n=40,size=16"
SMALL = [
    "--width", "16", "--depth", "1", "--num-heads", "2", "--decoder-depth", "1", "--decoder-num-heads", "2", "--steps", "3",
    "--batch-size", "8", "--device", "cpu", "--precision", "fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, another, an encoder, another, a cache of the first two, one of tokens only, one without labels."""
    folder = tmp_path_factory.mktemp("generator")
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    fields = {}
    for name in ("one", "two"):
        tokenizer = VQTokenizer(
            base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, num_codes=32, code_dim=6, norm_groups=4,
            image_size=16,
        )  # fmt: skip
        encoder = SSLEncoder("vit_tiny_patch16_224", kwargs, 16, head_layers=1, head_dim=6)
        tokenizer.save_pretrained(folder / f"tokenizer-{name}")
        encoder.save_pretrained(folder / f"encoder-{name}")
        fields[name] = {
            "tokens": CacheField(tokenizer, tokenizer.encode, "uint16"),
            "representations": CacheField(encoder, encoder, "float32"),
        }
    source = open_source(SPEC)
    build_cache(source, folder / "cache", fields["one"], 16, views=2, progress=False)
    build_cache(source, folder / "tokens-only", {"tokens": fields["one"]["tokens"]}, 16, views=2, progress=False)
    flat = folder / "flat"
    flat.mkdir()
    for i in range(12):
        source.image(i).save(flat / f"{i}.png")
    build_cache(open_source(flat), folder / "unlabelled", fields["one"], 16, views=2, progress=False)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("rcg-train-generator: error: ")
    return message


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
def test_the_papers_comparison_is_three_runs_of_one_command(condition: str, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(
        ["--data", str(work / "cache"), "--condition", condition, "--tokenizer", str(work / "tokenizer-one"), "--out", str(out),
         *SMALL]
    )  # fmt: skip
    model, scheduler = load_model(MageTransformer, out), load_scheduler(out, MaskGITScheduler)
    config = model.config
    assert (config.grid_size, config.num_codes, config.condition) == (4, 32, condition)
    assert config.representation_dim == (6 if condition == "representation" else None)
    assert (config.num_classes or 0) > 1 if condition == "class" else config.num_classes is None
    assert scheduler.config.num_inference_steps == 16  # 20, but there are 16 tokens
    assert generate_tokens(model, scheduler, batch_size=2, generator=sample_generators(0, 0, 2)).shape == (2, 4, 4)
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert any("eval/cross_entropy" in line and "eval/accuracy" in line for line in lines)
    assert list((out / "training" / "samples").glob("*.png"))


@pytest.mark.parametrize("ema", ["--ema", "--no-ema"])
def test_an_earlier_checkpoint_guides(ema: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--data", str(work / "cache"), "--condition", "none", "--tokenizer", str(work / "tokenizer-one"), *SMALL, ema,
        "--lr-schedule", "constant", "--warmup", "0", "--save-every", "3", "--lr", "1e-3",
    ]  # fmt: skip
    main([*flags, "--out", str(tmp_path / "short")])
    main([*flags, "--out", str(tmp_path / "long"), "--steps", "6"])
    earlier = tmp_path / "long/training/checkpoints/step-00000003"
    found, expected = load_earlier(earlier).state_dict(), load_model(MageTransformer, tmp_path / "short").state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    last = load_model(MageTransformer, tmp_path / "long").state_dict()
    assert any(not torch.allclose(found[name], value, atol=1e-4) for name, value in last.items())
    stages = ["--generator", str(tmp_path / "long"), "--tokenizer", str(work / "tokenizer-one")]
    assemble.main([*stages, "--guiding-model", str(earlier), "--out", str(tmp_path / "model")])
    guide = RCGPipeline.from_pretrained(tmp_path / "model").guiding_model
    assert all(torch.equal(found[name], value) for name, value in guide.state_dict().items())
    main([*flags, "--out", str(tmp_path / "wider"), "--width", "32"])
    strange = tmp_path / "wider/training/checkpoints/step-00000003"
    (tmp_path / "wider/config.json").write_bytes((tmp_path / "long/config.json").read_bytes())
    (tmp_path / "wider/diffusion_pytorch_model.safetensors").write_bytes(
        (tmp_path / "long/diffusion_pytorch_model.safetensors").read_bytes()
    )
    (earlier / "state.safetensors").write_bytes(b"torn")
    for checkpoint, says in (
        (strange, "is not of the generator in"),
        (earlier, "is damaged"),
        (tmp_path, "config.json"),
    ):
        with pytest.raises(SystemExit):
            assemble.main([*stages, "--guiding-model", str(checkpoint), "--out", str(tmp_path / "other")])
        assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="is no checkpoint of a run"):
        load_earlier(tmp_path)


def test_from_images_with_a_preset(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(
        ["--config", "generator-cifar10", "--data", SPEC, "--condition", "representation", "--tokenizer",
         str(work / "tokenizer-one"), "--encoder", str(work / "encoder-one"), "--out", str(out), *SMALL]
    )  # fmt: skip
    config = load_model(MageTransformer, out).config
    assert (config.width, config.dropout, config.representation_dim) == (16, 0.0, 6)


def test_a_cache_without_the_tokenizer_needs_the_number_of_codes(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", work / "tokens-only", "--condition", "none", "--out", out, *SMALL]
    assert "add --tokenizer DIR (or --num-codes)" in refused(capsys, *arguments)
    main([str(a) for a in [*arguments, "--num-codes", 40]])
    assert load_model(MageTransformer, out).config.num_codes == 40
    assert not (out / "training" / "samples").exists()


def test_what_rcg_inspect_advises_of_a_cache(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views, opened = Views(), list[Any]()
    build_cache(open_source(SPEC), tmp_path / "a b", {"images": CacheField(views, views, "uint8")}, 16, progress=False)

    def run(config: Any) -> None:
        family = FAMILIES[config.arch]
        opened.append(
            open_data(config, family, config.tokenizer and load_any(family.tokenizers, config.tokenizer), None)
        )

    monkeypatch.setattr(train_generator, "run", run)
    for cache in (tmp_path / "a b", work / "tokens-only"):
        advised = str(inspect_path(cache).next).replace("DIR", str(work / "tokenizer-one"))
        command, *arguments = shlex.split(advised.replace("RUN", str(tmp_path / "run")))
        assert command == "rcg-train-generator"
        main(arguments)
    assert [list(cache.fields) for cache in opened] == [["images"], ["tokens"]]


def test_what_cannot_be_used_is_one_sentence(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, cache, tokenizer = tmp_path / "out", work / "cache", work / "tokenizer-one"
    by_rep = ["--condition", "representation", "--out", out, *SMALL]
    wrong = refused(capsys, "--data", cache, "--tokenizer", work / "tokenizer-two", *by_rep)
    assert "computed by another VQTokenizer" in wrong
    wrong = refused(capsys, "--data", cache, "--tokenizer", tokenizer, "--encoder", work / "encoder-two", *by_rep)
    assert "computed by another SSLEncoder" in wrong
    missing = refused(capsys, "--data", work / "tokens-only", "--tokenizer", tokenizer, *by_rep)
    assert "holds no representations" in missing
    assert "add --tokenizer DIR" in refused(capsys, "--data", SPEC, *by_rep)
    assert "add --encoder DIR" in refused(capsys, "--data", SPEC, "--tokenizer", tokenizer, *by_rep)
    assert "there is no folder" in refused(capsys, "--data", "caches/mistyped", *by_rep)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()  # is not opened before
    assert "add --tokenizer DIR" in refused(capsys, "--data", tmp_path / "images", *by_rep)
    by_class = ["--condition", "class", "--out", out, *SMALL]
    labels = refused(capsys, "--data", work / "unlabelled", "--tokenizer", tokenizer, *by_class)
    assert "--condition class needs labels" in labels
    assert "--encoder has no effect" in refused(capsys, "--data", cache, "--encoder", work / "encoder-one", *by_class)
    plain = ["--data", cache, "--tokenizer", tokenizer, "--condition", "none", "--out", out, *SMALL]
    assert "--condition-dropout has no effect" in refused(capsys, *plain, "--condition-dropout", 0.2)
    assert "only 16 tokens" in refused(capsys, *plain, "--sampling-steps", 17)
    assert "--image-size has no effect with a cache" in refused(capsys, *plain, "--image-size", 16)
    assert "--num-codes is known from --tokenizer" in refused(capsys, *plain, "--num-codes", 16)
    assert "5 heads do not divide" in refused(capsys, *plain, "--num-heads", 5)
    assert "mask_ratio_mean is 0.2" in refused(capsys, *plain, "--mask-ratio-mean", 0.2)
    assert "dropout is 1.5" in refused(capsys, *plain, "--dropout", 1.5)
    odd = refused(
        capsys, "--data", SPEC, "--tokenizer", tokenizer, "--condition", "none", "--out", out, "--image-size", 18
    )
    assert "no multiple of 4" in odd
    assert not out.exists()


@pytest.mark.parametrize("name", ["generator-mage-b", "generator-mage-l", "generator-small", "generator-cifar10"])
def test_presets_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train_generator, "run", seen.append)
    main(["--config", name, "--data", "d", "--condition", "none", "--out", "o"])
    words = preset_arguments(name)
    assert seen[0].recipe.width == int(words[words.index("--width") + 1])
    if name == "generator-mage-b":  # the paper's learning rate: 1.5e-4 x 4096 / 256
        assert seen[0].training.peak_lr == pytest.approx(2.4e-3)
        assert not seen[0].ema
    assert seen[0].training.clip_grad == 3.0


@pytest.mark.parametrize("size", ["s", "b", "l", "xl"])
def test_the_papers_dit_clips_no_gradients(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train_generator, "run", seen.append)
    main(["--config", f"generator-dit-{size}", "--data", "d", "--condition", "none", "--out", "o"])
    assert seen[0].training.clip_grad is None
