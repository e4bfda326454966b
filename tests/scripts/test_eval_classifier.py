"""rcg-eval --classifier from the command line, and what it refuses, in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rcg.core.components import load_model
from rcg.eval.classifier import ImageClassifier
from rcg.scripts.eval import main
from tests.components import get_dummy_components, get_dummy_pipeline
from tests.eval.test_classifier import paint

QUICK = ["--classifier-kwargs", '{"channels": [8, 8, 8, 8]}', "--classifier-steps", "2", "--classifier-batch-size", "8",
         "--classifier-precision", "fp32", "--device", "cpu", "--classifier-seeds", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier")
    for seed, (name, count) in enumerate({"real": 6, "fake": 12, "test": 4}.items()):
        paint(path / name, count, seed)
    paint(path / "flat", 2, 4, flat=True)
    get_dummy_components()["encoder"].save_pretrained(path / "encoder")
    get_dummy_pipeline().save_pretrained(path / "model")
    return path


def sides(room: Path, **other: str) -> list[str]:
    names = {"train_data": "real", "held_out": "test", "generated": "fake"} | other
    return [w for k, v in names.items() if v for w in (f"--{k.replace('_', '-')}", str(room / v))]


def test_a_study(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.json"
    more = ["--times", "1", "2", "--class-coverage", "--membership", "--extractor", f"encoder:{room / 'encoder'}"]
    arguments = ["--classifier", "resnet10t", *sides(room), *QUICK, "--out", str(out), *more]
    main(arguments)
    said = capsys.readouterr().out
    found: dict[str, Any] = json.loads(out.read_text())
    assert set(found["metrics"]) == {
        f"accuracy-{n}" for n in ("real", "generated-1x", "generated-2x", "mixed-1x", "mixed-2x")
    }
    assert "| mixed-2x | 18 | 36 |" in re.sub(" +", " ", said)
    assert found["class_coverage"]["images"] == 12
    assert set(found["membership"]) == {"auc", "auc_error", "tpr_at_1_percent", "members", "others"}
    assert found["settings"]["recipe"]["stem"] == "small"
    assert found["command"][:3] == ["rcg-eval", "--classifier", "resnet10t"]
    assert found["config"]["times"] == [1, 2]
    main(arguments)  # all is there
    assert json.loads(out.read_text()) == found
    one = ["--train-on", "generated", "--classifier-out", str(tmp_path / "kept")]
    main(["--classifier", "resnet10t", *sides(room, train_data=""), *QUICK, *one])
    assert load_model(ImageClassifier, tmp_path / "kept").config.arch == "resnet10t"


@pytest.mark.parametrize(
    ("more", "other", "says"),
    [
        (["--classifier", "resnet81"], {}, "no architecture 'resnet81'"),
        ([], {"held_out": ""}, "--classifier needs --held-out"),
        (["--reference", "x"], {}, "--reference has no effect with --classifier"),
        (["--guidance-scale", "2"], {}, "--guidance-scale has no effect with --classifier"),
        (["--repeats", "2"], {}, "--repeats has no effect"),
        ([], {"generated": "model"}, "is a pipeline, but --classifier trains on images"),
        ([], {"generated": "flat"}, "have no classes"),
        (["--shots", "2", "--fractions", "0.5"], {}, "exclude each other"),
        (["--times", "2"], {"generated": ""}, "--times counts generated images"),
        (["--times", "3"], {}, "18 images of class number 0 are needed"),
        (["--train-on", "mixed"], {"generated": ""}, "needs --generated"),
        (["--membership"], {"train_data": ""}, "--membership needs --train-data"),
        (["--class-coverage"], {"generated": ""}, "are about generated images"),
        (["--precision", "bf16"], {}, "--precision is for --class-coverage and --membership"),
        (["--extractor", "dinov2"], {}, "--extractor is for --class-coverage and --membership"),
        (["--classifier-kwargs", "[1]"], {}, "no JSON object"),
        (["--classifier-out", "kept"], {}, "keeps one classifier"),
        ([], {"train_data": "test"}, "are the same images"),
        (["--fractions", "1.5"], {}, "it must lie in (0, 1]"),
    ],
)
def test_refusals(
    more: list[str], other: dict[str, str], says: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["--classifier", "resnet10t", *sides(room, **other), *QUICK, *more, "--out", str(tmp_path / "c.json")])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "c.json").exists()


def test_flags_of_classifiers_need_one(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--generated", str(room / "fake"), "--reference", str(room / "real"), "--times", "2"])
    assert "--times is for --classifier NAME" in capsys.readouterr().err
