"""The thin thread: a folder goes in, every stage trains (and survives kill -9), images and figures come out."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg import RCGPipeline
from rcg.data.sources import open_source
from tests.forked import Forked
from tests.training.test_loop import curve

RUN = ["--save-every", "4", "--log-every", "1", "--eval-every", "20", "--precision", "fp32", "--lr", "1e-3"]
RUN += ["--device", "cpu"]  # where bits repeat
STAGES: dict[str, tuple[str, list[str]]] = {
    "encoder": (
        "train_encoder",
        ["--data", "{images}", "--image-size", "16", "--width", "32", "--depth", "1", "--heads", "2", "--patch-size", "4",
         "--representation-dim", "16", "--head-hidden-dim", "32", "--eval-samples", "40"],
    ),
    "tokenizer": (
        "train_tokenizer",
        ["--data", "{images}", "--image-size", "16", "--base-channels", "8", "--num-codes", "32", "--code-dim", "8",
         "--adversarial-weight", "0.1", "--discriminator-channels", "8", "--held-out", "8"],
    ),
    "rdm": ("train_rdm", ["--data", "{cache}", "--encoder", "{encoder}", "--width", "32", "--depth", "2", "--eval-samples", "40", "--held-out-share", "0.3"]),
    "generator": (
        "train_generator",
        ["--data", "{cache}", "--tokenizer", "{tokenizer}", "--condition", "representation", "--width", "32", "--depth", "1",
         "--num-heads", "2", "--decoder-depth", "1", "--decoder-num-heads", "2", "--held-out", "8", "--ema"],
    ),
}  # fmt: skip
STEPS = 40


def call(command: str, *arguments: str | Path) -> None:
    import_module(f"rcg.scripts.{command}").main([str(a) for a in arguments])


def train_and_kill(command: str, arguments: list[str], out: Path) -> None:
    """Start a run and kill -9 it at a random moment after its first steps; again if it was done before the signal came."""
    wanted = random.Random(str(out)).randrange(2, STEPS - 8)
    file = out / "training/log.jsonl"
    for _ in range(5):
        process = Forked("-m", f"rcg.scripts.{command}", *arguments, "--out", out)
        while not (file.is_file() and file.read_text().count("\n") >= wanted):
            if process.returncode is not None:
                break
            time.sleep(0.005)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            return
        assert process.returncode == 0, process.communicate()[1][-2000:]
        shutil.rmtree(out)
    raise AssertionError(f"{command} was always done before it could be killed")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every stage trained twice: unbroken, and killed and resumed under `cut-…`."""
    root = tmp_path_factory.mktemp("house")
    images = root / "images"
    source = open_source("shapes:n=48,size=16,seed=0")
    for i in range(len(source)):
        folder = images / str(i % 3)
        folder.mkdir(parents=True, exist_ok=True)
        source.image(i).save(folder / f"{i}.png")
    places = {"root": root, "images": images, "cache": root / "cache", **{s: root / s for s in STAGES}}
    for stage, (command, template) in STAGES.items():
        if stage == "rdm":
            call("cache", "--data", images, "--out", root / "cache", "--image-size", "16",
                 "--encoder", root / "encoder", "--tokenizer", root / "tokenizer")  # fmt: skip
        arguments = [a.format(**places) for a in template] + RUN + ["--steps", str(STEPS), "--batch-size", "8"]
        call(command, *arguments, "--out", root / stage)
        train_and_kill(command, arguments, root / f"cut-{stage}")
        call(command, *arguments, "--out", root / f"cut-{stage}", "--resume")
    call("assemble", "--encoder", root / "encoder", "--rdm", root / "rdm", "--generator", root / "generator",
         "--tokenizer", root / "tokenizer", "--out", root / "model")  # fmt: skip
    return places | {"model": root / "model"}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_equals_unbroken(house: dict[str, Path], stage: str) -> None:
    whole, cut = house["root"] / stage, house["root"] / f"cut-{stage}"
    assert curve(whole) == curve(cut)
    files = sorted(whole.glob("*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (cut / file.name).read_bytes()


def test_images_do_not_depend_on_batch_size_or_processes(house: dict[str, Path]) -> None:
    root = house["root"]
    base = ["--model", house["model"], "--num-images", "6", "--seed", "5", "--guidance-scale", "2"]
    for size in (1, 5, 16):
        call("sample", *base, "--batch-size", str(size), "--out", root / f"b{size}")
    images = {size: [Image.open(root / f"b{size}/{i:06d}.png") for i in range(6)] for size in (1, 5, 16)}
    for i in range(6):
        assert np.array_equal(images[1][i], images[5][i])
        assert np.array_equal(images[1][i], images[16][i])
    assert not np.array_equal(images[1][0], images[1][1])
    assert (root / "b5/grid.png").is_file()


def test_eval_scores_them(house: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = house["root"]
    call("sample", "--model", house["model"], "--num-images", "24", "--out", root / "many")
    call("eval", "--generated", root / "many", "--reference", house["images"], "--metrics", "fid,prc",
         "--extractor", f"encoder:{house['encoder']}", "--out", root / "metrics.json")  # fmt: skip
    report = json.loads((root / "metrics.json").read_text())
    assert all(np.isfinite(v) for v in report["metrics"].values() if v is not None)
    assert "fid" not in report["metrics"]  # other features, other name


def test_pipeline_runs_from_python(house: dict[str, Path]) -> None:
    pipe = RCGPipeline.from_pretrained(house["model"])
    pipe.set_progress_bar_config(disable=True)
    images = torch.rand(2, 3, 16, 16)
    assert pipe.encode(images).shape == (2, 16)
    assert pipe.reconstruct(images, output_type="pt").images.shape == (2, 3, 16, 16)
    assert len(pipe.interpolate(images[0], images[1], num=3).images) == 3


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train_encoder", ["--data", "{root}/empty", "--out", "{root}/new"], "no images"),
        ("train_tokenizer", ["--data", "{root}/nowhere", "--out", "{root}/new"], "nowhere"),
        ("train_rdm", ["--data", "{cache}", "--encoder", "{root}/cut-encoder2", "--out", "{root}/new"], "another|other"),
        ("train_rdm", ["--data", "{cache}", "--out", "{root}/nowhere", "--resume"], "no run to go on with"),
        ("train_rdm", ["--data", "{cache}", "--out", "{rdm}"], "already holds a run"),
        ("train_rdm", ["--data", "{cache}", "--out", "{root}/new", "--batch-size", "0"], "batch-size"),
        ("train_generator", ["--data", "{cache}", "--out", "{root}/new", "--condition", "representation", "--tokenizer", "{root}/broken"], "lack"),
        ("sample", ["--model", "{model}", "--out", "{root}/new", "--batch-size", "0"], "batch-size"),
        ("sample", ["--model", "{model}", "--out", "{root}/new", "--class-labels", "7"], "class"),
        ("sample", ["--model", "{model}", "--out", "{images}"], "holds|already"),
        ("sample", ["--model", "{root}/nowhere", "--out", "{root}/new"], "nowhere"),
        ("train_generator", ["--data", "{cache}", "--out", "{root}/new", "--condition", "representation", "--config", "nope"], "preset"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(
    house: dict[str, Path], command: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = house["root"]
    (root / "empty").mkdir(exist_ok=True)
    if not (root / "broken").exists():
        from safetensors.torch import load_file, save_file

        shutil.copytree(house["tokenizer"], root / "broken")
        file = next((root / "broken").glob("*.safetensors"))
        weights = load_file(file)
        weights.pop(sorted(weights)[0])
        save_file(weights, file)
        other = [a.format(images=house["images"]) for a in STAGES["encoder"][1]]
        call(
            "train_encoder",
            *other,
            *RUN,
            "--steps",
            "1",
            "--batch-size",
            "8",
            "--seed",
            "9",
            "--out",
            root / "cut-encoder2",
        )
    capsys.readouterr()
    places = {k: str(v) for k, v in house.items()}
    with pytest.raises(SystemExit) as stopped:
        call(command, *[a.format(**places) for a in arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error:" in error
    assert any(word in error for word in message.split("|")), error
    assert not (root / "new").exists() or not any((root / "new").rglob("*.*"))
