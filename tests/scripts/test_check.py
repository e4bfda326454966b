"""rcg-check from the command line: data alone, components, pipelines, and mistakes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.check.generation import DRAWN
from rcg.check.run import _seconds, timed
from rcg.core.pictures import save_png
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.scripts.check import main
from tests.components import get_dummy_components, get_dummy_pipeline

DATA = "shapes:n=120,size=16"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check")
    parts = get_dummy_components()
    for name in ("encoder", "tokenizer", "rdm", "image_generator"):
        parts[name].save_pretrained(path / name)
    get_dummy_pipeline().save_pretrained(path / "pipeline")
    get_dummy_pipeline(condition="none").save_pretrained(path / "unconditional")
    get_dummy_pipeline(without=("encoder",)).save_pretrained(path / "blind")
    return path


def check(room: Path, *flags: str, models: tuple[str, ...] = (), data: str = DATA) -> dict[str, Any]:
    given = ["--model", *(str(room / m) for m in models)] if models else []
    main(["--data", data, *given, "--device", "cpu", "--json", str(room / "check.json"), *flags])
    found: dict[str, Any] = json.loads((room / "check.json").read_text())
    return found | {"parts": {part["name"]: part for part in found["parts"]}}


def test_data_alone(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(room)
    assert set(found["parts"]) == {"data"}
    assert found["config"]["data"] == DATA
    printed = capsys.readouterr().out
    assert "This will take about" in printed
    assert found["advice"].split()[:3] == printed[printed.index(found["advice"][:20]) :].split()[:3]


def test_names_that_a_terminal_cannot_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8, breaks and escapes; equal images in two classes."""
    for name in (b"a\xff", b"b\n\x1b[31m"):
        folder = tmp_path / "set" / os.fsdecode(name)
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / "broken.png").write_bytes(b"x")
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    main(["--data", str(tmp_path / "set"), "--device", "cpu"])
    out.flush()
    err.flush()
    printed = out.buffer.getvalue().decode()
    assert r"a\udcff/broken.png: not an image." in printed
    assert r"b\n\x1b[31m/broken.png: not an image." in printed
    assert "4 exact and 0 near duplicates among 8 compared (4 of the exact ones in different classes)" in " ".join(
        printed.split()
    )
    (warned,) = [line for line in err.buffer.getvalue().decode().splitlines() if line.startswith("warning: ")]
    assert r"b\n\x1b[31m/broken.png (not an image)" in warned


def test_a_whole_pipeline(room: Path) -> None:
    found = check(room, "--num-images", "60", models=("pipeline",))
    assert list(found["parts"]) == ["data", "encoder", "tokenizer", "rdm", "image generator"]
    figures = {name: part["figures"] for name, part in found["parts"].items()}
    assert figures["encoder"]["images"] == figures["tokenizer"]["images"] == 60
    assert figures["rdm"]["representations"] == 30
    assert figures["image generator"]["pictures"] == 32
    assert 0 <= figures["image generator"]["found by their representation"] <= 1
    assert "linear probe" in figures["encoder"]
    again = check(room, "--num-images", "60", models=("pipeline",))
    for name, part in again["parts"].items():
        same = {k: v for k, v in part["figures"].items() if k != "seconds a picture"}
        assert same == {k: v for k, v in figures[name].items() if k != "seconds a picture"}


def test_pipelines_without_some_parts(room: Path) -> None:
    found = check(room, "--num-images", "40", models=("unconditional",))["parts"]
    assert "rdm" not in found
    assert "rcg-eval tells" in found["image generator"]["notes"][0]
    blind = check(room, "--num-images", "40", models=("blind",))["parts"]
    assert "rFID is left out" in blind["tokenizer"]["notes"][0]
    assert "no real representations" in blind["rdm"]["notes"][0]


def test_components(room: Path) -> None:
    found = check(room, "--num-images", "40", models=("tokenizer", "encoder"))["parts"]
    assert list(found) == ["data", "encoder", "tokenizer"]
    assert "reconstruction frechet-encoder" in found["tokenizer"]["figures"]
    other = check(room, "--num-images", "40", "--extractor", f"encoder:{room / 'encoder'}", models=("tokenizer",))[
        "parts"
    ]
    key = "reconstruction frechet-encoder"
    assert other["tokenizer"]["figures"][key] == found["tokenizer"]["figures"][key]
    alone = check(room, "--num-images", "40", "--image-size", "8", models=("tokenizer",))["parts"]
    assert alone["tokenizer"]["figures"]["size"] == "8×8"


def test_images_of_several_sizes_are_framed(room: Path, tmp_path: Path) -> None:
    for i in range(20):
        save_png(tmp_path / f"{i}.png", Image.effect_noise((20 + i % 3, 24), 80.0).convert("RGB"))
    found = check(room, models=("pipeline",), data=str(tmp_path))["parts"]
    assert found["tokenizer"]["figures"]["size"] == "16×16"
    assert any(f["verdict"] == "bad" for f in found["data"]["findings"])


def test_a_collapsed_encoder_is_reported_and_no_error(room: Path) -> None:
    encoder = get_dummy_components()["encoder"]
    for parameter in encoder.parameters():
        parameter.data.zero_()
    encoder.save_pretrained(room / "dead")
    found = check(room, models=("dead", "tokenizer"))["parts"]
    assert "cannot be standardised" in found["encoder"]["notes"][0]
    assert found["encoder"]["findings"][0]["verdict"] == "bad"
    assert "rFID is left out: the encoder is of no use for it, give --extractor" in found["tokenizer"]["notes"][0]


def test_an_encoder_of_its_own_judges_a_pipeline_without(room: Path) -> None:
    apart = check(room, "--num-images", "16", models=("blind", "encoder"))["parts"]
    whole = check(room, "--num-images", "16", models=("pipeline",))["parts"]
    for part in ("rdm", "image generator"):
        times = {"seconds a picture": 0}
        assert apart[part]["figures"] | times == whole[part]["figures"] | times
    assert "found by their representation" in apart["image generator"]["figures"]


def test_what_cannot_be_checked_costs_no_other_part(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        save_png(tmp_path / f"{i}.png", Image.effect_noise((16, 16), 80.0).convert("RGB"))
    save_png(tmp_path / "icon.png", Image.effect_noise((4, 4), 80.0).convert("RGB"))
    found = check(room, models=("pipeline",), data=str(tmp_path))["parts"]
    assert "1 of 7 images" in capsys.readouterr().err  # just as training says
    assert found["data"]["figures"]["images"] == 6
    assert "needs at least 8 images; there are 6" in found["encoder"]["notes"][0]
    assert found["encoder"]["findings"][0]["what"] == "the encoder could not be checked"
    assert found["tokenizer"]["figures"]["images"] == 6
    assert found["image generator"]["figures"]["pictures"] == 6


def test_a_gpu_is_waited_for_where_time_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[object]()
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device = SimpleNamespace(type="cuda")
    timed(lambda: None, device)  # type: ignore[arg-type]
    assert waited == [device]


def test_the_time_of_drawing_is_that_of_several_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a single one takes as long as those that it could have been computed with."""
    now = [0.0]

    def pipe(generator: list[torch.Generator], output_type: str) -> None:
        now[0] += -(-len(generator) // 8) * 10.0

    pipe.rdm, models = object(), SimpleNamespace(tokenizer=None, pipeline=pipe)  # type: ignore[attr-defined]
    monkeypatch.setattr("rcg.check.run.time", SimpleNamespace(perf_counter=lambda: now[0]))
    found = _seconds([None] * 10, models, {}, None, None, torch.device("cpu"))  # type: ignore[arg-type]
    assert found == 1.0 + DRAWN / 8 * 10.0


def test_mistakes(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*flags: str, models: tuple[str, ...] = (), data: str = DATA) -> str:
        (room / "check.json").unlink(missing_ok=True)
        with pytest.raises(SystemExit) as e:
            check(room, *flags, models=models, data=data)
        assert e.value.code == 2
        assert not (room / "check.json").exists()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rcg-check: error: ")]
        assert len(errors) == 1
        return errors[0]

    assert "there is no folder" in said(data="nowhere")
    assert "there is no such folder" in said(models=("nowhere",))
    small = SSLEncoder(**dict(get_dummy_components()["encoder"].config) | {"head_dim": 5})
    small.save_pretrained(room / "small")
    assert "of 12 numbers, but the encoder makes 5" in said(models=("blind", "small"))
    assert "there is no folder rcg/none" in said("--model", "rcg/none")
    assert "cannot be checked by itself" in said(models=("rdm",))
    assert "cannot be checked by itself" in said(models=("image_generator",))
    assert "holds no model" in said("--model", str(tmp_path))
    assert "a second encoder" in said(models=("pipeline", "encoder"))
    assert "--num-images is 7" in said("--num-images", "7")
    assert "--image-size is 0" in said("--image-size", "0")
    assert "not a multiple of 4" in said("--image-size", "18", models=("tokenizer",))
    models = {"extractor": "encoder", "extractor-weights": "x.pth", "num-images": "100", "image-size": "32"}
    for flag, value in models.items():
        assert f"--{flag} is for what --model names" in said(f"--{flag}", value)
    assert "there is none among --model" in said("--extractor", "inception", models=("encoder",))
    assert "brings its weights along" in said(
        "--extractor", "encoder", "--extractor-weights", "x", models=("pipeline",)
    )
    assert "there is no folder" in said("--extractor", f"encoder:{room / 'x'}", models=("tokenizer",))
    assert "there is no encoder" in said("--extractor", "encoder", models=("tokenizer",))
    assert "Unknown extractor" in said("--extractor", "vgg", models=("tokenizer",))
    assert "belongs to an --extractor" in said("--extractor-weights", "x.pth", models=("tokenizer",))
    assert "no weights file" in said(
        "--extractor", "inception-768", "--extractor-weights", "x.pth", models=("tokenizer",)
    )
    assert "is a folder" in said("--json", str(tmp_path))
    assert "--seed is -1" in said("--seed", "-1")
