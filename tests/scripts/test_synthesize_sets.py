"""rcg-synthesize's labelled sets: from an inversion, from images, from an RDM; filtered, hard, in folders and shards."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rcg.data.sources import open_source
from rcg.eval.classifier import ImageClassifier
from rcg.scripts._sets import SetSettings, _from_images, _own_scale
from rcg.scripts.invert import main as invert
from rcg.scripts.synthesize import Config, main
from tests.components import SIZE as OWN_SIZE
from tests.components import get_dummy_pipeline
from tests.data.shards import picture, write_tar
from tests.inversion.tiny import SIZE, pictures, stable_diffusion


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines, pictures of two classes, and inversions of both kinds."""
    folder = tmp_path_factory.mktemp("room")
    stable_diffusion(folder / "sd")
    pictures(folder / "data")
    pictures(folder / "flat", classes=("only",))
    for file in (folder / "flat/only").iterdir():
        file.rename(folder / "flat" / file.name)
    (folder / "flat/only").rmdir()
    get_dummy_pipeline().save_pretrained(folder / "rcg")
    get_dummy_pipeline(seed=1).save_pretrained(folder / "other")
    get_dummy_pipeline(num_classes=2).save_pretrained(folder / "classes")
    get_dummy_pipeline(without=("rdm", "encoder")).save_pretrained(folder / "bare")
    ImageClassifier("resnet10t", ["cat", "dog"], SIZE, {"channels": [8, 8, 8, 8]}).save_pretrained(folder / "judge")
    ImageClassifier("resnet10t", ["cat", "dog"], 32, {"channels": [8, 8, 8, 8]}).save_pretrained(folder / "big-judge")
    quick = [
        "--steps",
        "2",
        "--batch-size",
        "6",
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--data",
        str(folder / "data"),
    ]
    invert([*quick, "--model", str(folder / "sd"), "--image-size", str(SIZE), "--out", str(folder / "of-sd")])
    invert([*quick, "--model", str(folder / "rcg"), "--out", str(folder / "of-rcg")])
    assert OWN_SIZE == SIZE
    return folder


def base(room: Path, out: Path, model: str, *more: str, count: int = 8) -> list[str]:
    return ["--model", str(room / model), "--out", str(out), "--num-images", str(count), "--num-inference-steps", "2",
            "--device", "cpu", "--precision", "fp32", *more]  # fmt: skip


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["sd", "rcg"])
def test_from_an_inversion(model: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--from-inversion", str(room / f"of-{model}"), "--interpolation", "0", "0.3", "--guidance-scales", "1", "2"]
    main(base(room, tmp_path / "a", model, *more))
    assert "8 images are in" in capsys.readouterr().out
    found = records(tmp_path / "a")
    assert [r["class"] for r in found] == ["cat"] * 4 + ["dog"] * 4
    assert all(source["id"].startswith(r["class"]) for r in found for source in r["sources"])
    assert all(len({source["row"] for source in r["sources"]}) == len(r["sources"]) for r in found)
    assert found[0]["sources"][0]["id"] == found[3]["sources"][0]["id"]  # four images of three conditions
    assert found[0]["seed"] != found[3]["seed"]
    assert {r["guidance"] for r in found} <= {1.0, 2.0}
    assert all((tmp_path / "a" / r["file"]).is_file() for r in found)
    main(base(room, tmp_path / "b", model, *more, "--batch-size", "3", count=4))
    main(base(room, tmp_path / "b", model, *more, "--batch-size", "1", "--resume"))
    assert records(tmp_path / "b") == found
    for r in found:
        assert (tmp_path / "a" / r["file"]).read_bytes() == (tmp_path / "b" / r["file"]).read_bytes()


def test_alpha_and_lambda_of_zero_draw_from_the_learned_condition_itself(room: Path, tmp_path: Path) -> None:
    zero = ["--from-inversion", str(room / "of-rcg"), "--noise", "0", "--interpolation", "0"]
    main(base(room, tmp_path / "a", "rcg", *zero))
    found = records(tmp_path / "a")
    assert all(r["noise"] == 0 and [s["share"] for s in r["sources"]] == [1.0] for r in found)


def test_from_images_filtered_hard_and_in_shards(room: Path, tmp_path: Path) -> None:
    more = ["--from-images", str(room / "data"), "--noise", "0.2", "--interpolation", "0.3", "--filter-data",
            str(room / "data"), "--neighbors", "2", "--agreement", "0.5", "--attempts", "4", "--hard", str(room / "judge"),
            "--candidates", "2"]  # fmt: skip
    main(base(room, tmp_path / "a", "rcg", *more))
    main(base(room, tmp_path / "s", "rcg", *more, "--shards", "--images-per-shard", "3"))
    found = records(tmp_path / "a")
    assert found
    assert all(0 <= r["entropy"] <= np.log(2) + 1e-9 and r["agreement"] >= 0.5 for r in found)
    assert all(Path(s["id"]).parts[0] == r["class"] for r in found for s in r["sources"])
    shards = records(tmp_path / "s")
    assert {r["seed"] for r in shards} == {r["seed"] for r in found}
    source = open_source(tmp_path / "s")
    assert source.labels is not None
    assert sorted(source.class_names[label] for label in source.labels) == sorted(r["class"] for r in found)


def test_other_labels_of_the_same_images_are_another_set(tmp_path: Path) -> None:
    generator = SimpleNamespace(pipe=get_dummy_pipeline(), image_size=SIZE)

    def table(name: str, classes: str) -> str:
        (tmp_path / name).mkdir()
        members = [(f"{i}.cls", c.encode()) for i, c in enumerate(classes)]
        write_tar(tmp_path / name / "x.tar", [(f"{i}.png", picture(i)) for i in range(4)] + members)
        config = Config("m", tmp_path / "out", sets=SetSettings(from_images=str(tmp_path / name)))
        found: str = _from_images(config, generator, torch.device("cpu"))[0].settings()["table"]
        return found

    assert len({table("fine", "abab"), table("swapped", "baab"), table("none", "")}) == 3


def test_from_an_rdm_with_and_without_classes(room: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    main(base(room, tmp_path / "a", "classes", "--from-rdm", "--classes", str(tmp_path / "names.txt")))
    found = records(tmp_path / "a")
    assert [r["class"] for r in found] == ["cat"] * 4 + ["dog"] * 4
    assert all(r["sources"] == [] and r["rdm_seed"] for r in found)
    main(base(room, tmp_path / "n", "classes", "--from-rdm", "--filter-data", str(room / "data"), "--neighbors", "2"))
    assert {p.name for p in (tmp_path / "n").iterdir() if p.is_dir()} <= {"0", "1"}
    main(base(room, tmp_path / "b", "rcg", "--from-rdm", count=3))
    assert [r["class"] for r in records(tmp_path / "b")] == [None] * 3
    assert len(list((tmp_path / "b").glob("*.png"))) == 3


def test_clusters_are_no_classes(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = get_dummy_pipeline(num_classes=2)
    pipe.rdm.register_to_config(label_counts=[0, 5])
    pipe.save_pretrained(tmp_path / "clusters")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    model = str(tmp_path / "clusters")
    for flag, value in (("--classes", tmp_path / "names.txt"), ("--filter-data", room / "data")):
        with pytest.raises(SystemExit):
            main(base(room, tmp_path / "a", model, "--from-rdm", flag, str(value)))
        assert f"{flag} is for classes, but the RDM of {model} draws 2 clusters" in capsys.readouterr().err
    main(base(room, tmp_path / "a", model, "--from-rdm", count=3))
    assert [r["class"] for r in records(tmp_path / "a")] == [None] * 3
    assert json.loads((tmp_path / "a/set.json").read_text())["conditions"]["label_counts"] == [0, 5]


def test_guidance_of_nothing_is_not_guidance_that_is_off(room: Path, tmp_path: Path) -> None:
    main(base(room, tmp_path / "a", "classes", "--from-rdm", "--rdm-guidance-scale", "0", count=1))
    assert json.loads((tmp_path / "a/set.json").read_text())["conditions"]["rdm_guidance"] == 0
    pipe = get_dummy_pipeline()
    pipe.register_to_config(sampling={"guidance_scale": 0.0})
    assert _own_scale(SimpleNamespace(pipe=pipe)) == 0


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("rcg", ["--from-rdm", "--from-images", "DATA"], "exclude each other"),
        ("rcg", ["--from-rdm", "--captions", "x.txt"], "exclude each other"),
        ("rcg", ["--noise", "0.2"], "--noise is for labelled sets"),
        ("rcg", ["--from-rdm", "--noise", "0.2"], "leave it out with --from-rdm"),
        ("rcg", ["--from-images", "DATA", "--images-per-caption", "2"], "--images-per-caption has no effect"),
        ("rcg", ["--from-images", "DATA", "--classes", "x.txt"], "--classes has no effect"),
        ("rcg", ["--from-images", "DATA", "--attempts", "3"], "--attempts is for --filter-data"),
        ("rcg", ["--from-images", "DATA", "--candidates", "3"], "--candidates is for --hard"),
        ("rcg", ["--from-images", "DATA", "--eta", "0.5"], "--eta is for --from-inversion"),
        ("rcg", ["--from-images", "DATA", "--partners", "any"], "--partners has no effect without --interpolation"),
        ("rcg", ["--from-images", "DATA", "--format", "jpg"], "leave out --format jpg"),
        ("rcg", ["--from-images", "DATA", "--hard", "BIG"], "takes 32 px"),
        ("rcg", ["--from-images", "FLAT", "--interpolation", "0.1"], "have no labels"),
        ("rcg", ["--from-images", "FLAT", "--filter-data", "DATA"], "judges by classes"),
        ("rcg", ["--from-images", "DATA", "--filter-data", "FLAT"], "have no classes"),
        ("bare", ["--from-images", "DATA"], "no encoder"),
        ("bare", ["--from-rdm"], "has no RDM"),
        ("sd", ["--from-images", "DATA"], "need an RCG pipeline"),
        ("rcg", ["--from-inversion", "DATA"], "holds no learned conditions"),
        ("other", ["--from-inversion", "OF-RCG"], "conditions of another generator"),
        ("sd", ["--from-inversion", "OF-RCG"], "conditions of another generator"),
        ("rcg", ["--from-inversion", "OF-SD"], "conditions of another generator"),
        ("rcg", ["--from-inversion", "OF-RCG", "--unconditional", "mean"], "takes no text"),
        ("rcg", ["--from-inversion", "OF-RCG", "--eta", "0.5"], "--eta has no effect with an RCG pipeline"),
        ("sd", ["--from-inversion", "OF-SD", "--unconditional", "empty"], "empty prompt"),
        ("sd", ["--from-inversion", "OF-SD", "--num-inference-steps", "5000"], "5000 steps"),
        (
            "sd",
            ["--from-inversion", "OF-SD", "--num-inference-steps", "1000"],
            "1000 steps",
        ),  # beginning with the second
    ],
)
def test_refusals(
    model: str, more: list[str], says: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "400")
    places = {"DATA": "data", "FLAT": "flat", "BIG": "big-judge", "OF-RCG": "of-rcg", "OF-SD": "of-sd"}
    words = [str(room / places[w]) if w in places else w for w in more]
    with pytest.raises(SystemExit) as stopped:
        main(base(room, tmp_path / "out", model, *words))
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("classes", ["--from-rdm", "--filter-encoder", "rcg", "--filter-data", "flat"], "have no classes"),
        ("rcg", ["--from-images", "data", "--hard", "big-judge"], "takes 32 px"),
        ("rcg", ["--from-images", "data", "--out", "data"], "holds no such set"),
        ("rcg", ["--from-images", "data", "--out", "data", "--shards"], "holds no rcg-synthesize run"),
        ("rcg", ["--from-images", "data", "--out", "set"], "add --resume"),
        ("rcg", ["--from-images", "data", "--out", "shards", "--shards"], "add --resume"),
    ],
)
def test_what_cannot_be_is_said_before_images_are_encoded(
    model: str, more: list[str], says: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    (room / "set/x").mkdir(parents=True, exist_ok=True)
    (room / "set/set.json").write_text("{}")
    (room / "set/x/000000.png").touch()
    (room / "shards").mkdir(exist_ok=True)
    (room / "shards/shards.json").write_text('{"format": 1, "run": "x", "model": "x", "settings": {}}')
    (room / "shards/000000.tar").touch()
    monkeypatch.setattr("rcg.inversion.representations.encode_images", never)
    words = [word if word.startswith("--") else str(room / word) for word in more]
    with pytest.raises(SystemExit):
        main(base(room, tmp_path / "out", model, *words))
    assert says in capsys.readouterr().err


def test_the_number_of_images_must_be_said(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", str(room / "rcg"), "--out", str(tmp_path / "o"), "--from-rdm"])
    assert "--num-images N" in capsys.readouterr().err
