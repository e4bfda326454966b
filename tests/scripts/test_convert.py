"""rcg-convert and rcg-inspect as a user meets them: presets, one sentence for every unusable file, nothing half-written."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from rcg import RCGPipeline, RepresentationMLP, SSLEncoder, VQTokenizer
from rcg.core.components import load_model, load_scheduler
from rcg.scripts import convert, inspect
from rcg.scripts._command import preset_arguments
from tests.official import FLAGS_OF, HEAD_FLAGS, official_contents, write_official_files

Contents = dict[str, Any]
NAMES = {
    "mocov3": "mocov3_vitb.pth.tar",
    "vqgan": "vqgan_jax_strongaug.ckpt",
    "rdm_uncond": "rdm_uncond.pth",
    "mage": "mage_b_rep.pth",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_official_files(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def contents() -> dict[str, Contents]:
    return official_contents()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, out: Path) -> str:
    """The one sentence that rcg-convert ends with; nothing may be left in `out`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        convert.main([*map(str, arguments), f"--out={out}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("rcg-convert: error: ")
    assert not out.exists()
    assert not [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")]
    return error[0].removeprefix("rcg-convert: error: ")


# ---------------------------------------------------------------- what works


def test_single_files_become_loadable_components(files: dict[str, Path], tmp_path: Path) -> None:
    for name, cls in (("mocov3", SSLEncoder), ("vqgan", VQTokenizer), ("rdm_classcond", RepresentationMLP)):
        convert.main([str(files[name]), *FLAGS_OF.get(name, []), f"--out={tmp_path / name}"])
        load_model(cls, tmp_path / name)
        assert json.loads((tmp_path / name / "conversion.json").read_text())["files"][0]["name"] == files[name].name
    assert isinstance(load_scheduler(tmp_path / "rdm_classcond"), DPMSolverMultistepScheduler)


@pytest.mark.parametrize(("size", "temperature", "guidance"), [("b", 6.0, 2.0), ("l", 11.0, 7.0)])
def test_presets_store_the_papers_settings(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: str,
    temperature: float,
    guidance: float,
) -> None:
    arguments = [files["mage"], files["rdm_uncond"], *HEAD_FLAGS, "--config", f"rcg-{size}"]
    assert f"but size {size} was asked for" in refused(capsys, *arguments, out=tmp_path / "model")
    preset = [a for a in preset_arguments(f"rcg-{size}") if a not in ("--size", size)]
    convert.main([*map(str, arguments[:-2]), *preset, f"--out={tmp_path / 'model'}"])
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    assert dict(pipe.settings()) == {
        "num_inference_steps": 20, "guidance_scale": guidance, "temperature": temperature,
        "guidance_schedule": "linear", "guidance_interval": [0.0, 1.0],
        "rdm_num_inference_steps": None, "rdm_guidance_scale": 1.0,
    }  # fmt: skip
    assert isinstance(pipe.rdm_scheduler, DPMSolverMultistepScheduler)  # the paper's own with exact=True


def test_sampling_flags_and_overwriting(files: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(files["mage"]), str(files["rdm_uncond"]), *HEAD_FLAGS, "--temperature=3"]
    convert.main([*arguments, f"--out={tmp_path / 'model'}"])
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    assert pipe.config.sampling["temperature"] == 3
    with pytest.raises(SystemExit):
        convert.main([*arguments, f"--out={tmp_path / 'model'}"])
    convert.main([*arguments, "--temperature=4", "--overwrite", f"--out={tmp_path / 'model'}"])
    assert RCGPipeline.from_pretrained(tmp_path / "model").config.sampling["temperature"] == 4


# ---------------------------------------------------------------- fuzz


def state_of(contents: Contents) -> dict[str, torch.Tensor]:
    return contents["state_dict" if "state_dict" in contents else "model"]


def altered(contents: Contents, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Contents:
    name = "state_dict" if "state_dict" in contents else "model"
    return contents | {name: change(dict(contents[name]))}


def live_key(state: dict[str, torch.Tensor]) -> str:
    """Some weight that the conversion needs."""
    wanted = ("module.base_encoder.blocks.1.mlp.fc1.weight", "decoder.mid.block_1.conv1.weight",
              "model_ema.diffusion_modelres_blocks3in_layers2weight", "blocks.1.mlp.fc1.weight")  # fmt: skip
    return next(key for key in wanted if key in state)


@pytest.mark.parametrize("kind", NAMES)
def test_damaged_files(files: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = files[kind].read_bytes()
    rng = random.Random(kind)
    buffer = io.BytesIO()
    pickle.dump({"model": Path("x")}, buffer)
    damaged = {
        **{
            f"cut at {n}": whole[:n]
            for n in (0, 1, 100, *(rng.randrange(len(whole)) for _ in range(4)), len(whole) - 1)
        },
        "a web page": b"<!DOCTYPE html><html>Google Drive - Quota exceeded</html>",
        "a pickle": buffer.getvalue(),
        "noise": rng.randbytes(5000),
    }
    for name, data in damaged.items():
        (tmp_path / "file.pth").write_bytes(data)
        message = refused(capsys, tmp_path / "file.pth", *HEAD_FLAGS, out=tmp_path / "out")
        assert "cannot be read as a checkpoint" in message, (name, message)


@pytest.mark.parametrize("kind", NAMES)
def test_keys_that_do_not_fit(
    contents: dict[str, Contents], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, given = tmp_path / "file.pth", contents[NAMES[kind]]
    key = live_key(state_of(given))
    wrong = key[:-2] + "ht_"

    def message(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> str:
        torch.save(altered(given, change), file)
        return refused(capsys, file, *FLAGS_OF.get(kind, []), out=tmp_path / "out")

    short = key.removeprefix("module.base_encoder.")
    renamed = message(lambda s: {(wrong if k == key else k): v for k, v in s.items()})
    assert short in renamed
    assert "nearest: " in renamed
    assert short in message(lambda s: {k: v for k, v in s.items() if k != key})
    assert "surprise" in message(lambda s: s | {key.replace(short, "surprise.weight"): torch.zeros(3)})
    assert "shape" in message(lambda s: s | {key: s[key][:-1]})


@pytest.mark.parametrize("kind", NAMES)
def test_half_precision_and_wrapped_files_work_and_say_so(
    contents: dict[str, Contents], files: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, flags = contents[NAMES[kind]], FLAGS_OF.get(kind, [])
    halved = altered(given, lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()})
    torch.save(halved, tmp_path / "half.pth")
    convert.main([str(tmp_path / "half.pth"), *flags, f"--out={tmp_path / 'half'}"])
    assert "weights are float16; they were converted to float32" in capsys.readouterr().out
    torch.save(altered(given, lambda s: {f"module.{k}": v for k, v in s.items()}), tmp_path / "ddp.pth")
    convert.main([str(tmp_path / "ddp.pth"), *flags, f"--out={tmp_path / 'ddp'}"])
    convert.main([str(files[kind]), *flags, f"--out={tmp_path / 'plain'}"])
    for written in (tmp_path / "plain").rglob("*.safetensors"):
        twin = tmp_path / "ddp" / written.relative_to(tmp_path / "plain")
        assert twin.read_bytes() == written.read_bytes()


def test_options_that_a_file_does_not_offer(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    heads, raw = "--generator-num-heads=4", "--weights=raw"
    message = refused(capsys, files["vqgan"], heads, out=out)
    assert message == f"--generator-num-heads has no effect on {files['vqgan']}, which is of kind vqgan; leave it out."
    assert "--head has no effect" in refused(capsys, files["rdm_uncond"], "--head=none", out=out)
    for given in (raw, "--weights=ema"):  # what is given counts, also where it is the default
        assert "--weights has no effect on any of" in refused(capsys, files["mage"], *HEAD_FLAGS, given, out=out)
    pair = (files["mage"], files["mocov3"], *HEAD_FLAGS)
    assert "mage_b_rep.pth (mage), " in refused(capsys, *pair, "--generator-image-size=8", out=out)
    convert.main([str(files["mage"]), str(files["rdm_uncond"]), *HEAD_FLAGS, raw, f"--out={out}"])


def test_an_rdm_without_averaged_weights(
    contents: dict[str, Contents], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = altered(contents["rdm_uncond.pth"], lambda s: {k: v for k, v in s.items() if "model_ema" not in k})
    torch.save(bare, tmp_path / "rdm.pth")
    message = refused(capsys, tmp_path / "rdm.pth", out=tmp_path / "out")
    assert "holds no averaged weights" in message
    assert "--weights raw" in message
    convert.main([str(tmp_path / "rdm.pth"), "--weights=raw", f"--out={tmp_path / 'out'}"])
    load_model(RepresentationMLP, tmp_path / "out")


def test_files_of_another_kind(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    out = tmp_path / "out"
    assert "holds fc.weight and is no published checkpoint" in refused(capsys, tmp_path / "other.pth", out=out)
    assert "holds a list" in refused(capsys, tmp_path / "list.pth", out=out)
    assert "holds nothing" in refused(capsys, tmp_path / "empty.pth", out=out)
    assert "there is no file" in refused(capsys, tmp_path / "absent.pth", out=out)
    assert "is a folder" in refused(capsys, tmp_path, out=out)
    assert "num_heads" in refused(capsys, files["mocov3"], out=out).replace("-", "_")
    assert "has no sampling settings" in refused(capsys, files["vqgan"], "--temperature=3", out=out)
    assert "must be at least 1" in refused(capsys, files["mocov3"], "--encoder-num-heads=0", out=out)
    assert "is a MAGE, LDM or ADM generator" in refused(capsys, files["vqgan"], files["rdm_uncond"], out=out)


# ---------------------------------------------------------------- rcg-inspect


def test_inspect_says_what_a_file_is(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(path: Path) -> dict[str, Any]:
        capsys.readouterr()
        inspect.main([str(path), "--json"])
        return json.loads(capsys.readouterr().out)

    rdm = look(files["rdm_uncond"])
    assert (rdm["kind"], rdm["ema"], rdm["carries"][0]) == ("rdm", True, "encoder")
    assert rdm["bytes"] == files["rdm_uncond"].stat().st_size
    assert rdm["next"].startswith("rcg-convert ")
    assert look(files["vqgan"])["kind"] == "vqgan"
    moco = look(files["mocov3"])
    assert moco["kind"] == "mocov3"
    assert "--encoder-num-heads" in moco["problem"]
    convert.main([str(files["mage"]), str(files["rdm_uncond"]), *HEAD_FLAGS, f"--out={tmp_path / 'model'}"])
    model = look(tmp_path / "model")
    assert model["kind"] == "pipeline"
    assert model["next"] == f"rcg-sample --model {tmp_path / 'model'} --out samples"
    part = look(tmp_path / "model" / "rdm")
    assert part["kind"] == "RepresentationMLP"
    assert part["parameters"] == sum(
        p.numel() for p in load_model(RepresentationMLP, tmp_path / "model/rdm").parameters()
    )
    assert look(tmp_path / "model" / "rdm" / "diffusion_pytorch_model.safetensors")["kind"] == "RepresentationMLP"
    torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    other = look(tmp_path / "other.pth")
    assert other["kind"] is None
    assert other["details"]["first keys"] == "fc.weight"
    inspect.main([str(files["mage"])])
    text = capsys.readouterr().out
    assert "a MAGE image generator of RCG" in text
    assert "encoder, tokenizer" in text


def test_inspect_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.pth").write_text("<html>")
    for path, words in (
        (tmp_path / "page.pth", "cannot be read as a checkpoint"),
        (tmp_path / "absent", "there is no file or folder"),
        (tmp_path, "neither weights nor a cache"),
    ):
        with pytest.raises(SystemExit) as stop:
            inspect.main([str(path)])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
