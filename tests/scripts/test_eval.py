"""rcg-eval from the command line: folders, statistics, pipelines, and mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.components import load_model
from rcg.core.pictures import save_png, to_pil
from rcg.core.rng import sample_generators
from rcg.data.cache import CacheField, build_cache
from rcg.data.sources import open_source
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval.frechet import frechet_distance
from rcg.eval.inception import InceptionV3
from rcg.rdm import draw
from rcg.scripts.eval import main
from tests.components import get_dummy_components, get_dummy_pipeline


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, a pipeline, and two folders of 60 images of 16 px."""
    path = tmp_path_factory.mktemp("eval")
    get_dummy_components()["encoder"].save_pretrained(path / "encoder")
    get_dummy_pipeline().save_pretrained(path / "model")
    g = np.random.default_rng(0)
    for name, low in (("real", 0), ("fake", 90)):
        for i in range(60):
            picture = Image.fromarray(g.integers(low, 256, (16, 16, 3)).astype(np.uint8))
            save_png(path / name / f"{i:06d}.png", picture)
    return path


@pytest.fixture(autouse=True)
def _own_cache(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(room / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(room / "torch"))
    monkeypatch.setenv("RCG_OFFLINE", "1")


def evaluate(room: Path, *flags: str, generated: str = "fake", reference: str | None = "real") -> dict[str, Any]:
    out = room / "out" / "metrics.json"
    sides = ["--generated", str(room / generated)]
    sides += ["--reference", str(room / reference)] if reference is not None else []
    encoder = [] if "--extractor" in flags else ["--extractor", f"encoder:{room / 'encoder'}"]
    main([*sides, *encoder, "--device", "cpu", "--out", str(out), *flags])
    return json.loads(out.read_text())


def fails(room: Path, capsys: pytest.CaptureFixture[str], *flags: str, **sides: Any) -> str:
    (room / "out" / "metrics.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit) as e:
        evaluate(room, *flags, **sides)
    assert e.value.code == 2
    assert not (room / "out" / "metrics.json").exists()
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rcg-eval: error: ")]
    assert len(error) == 1
    return error[0]


def encode(room: Path, images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return load_model(SSLEncoder, room / "encoder")(images.float() / 255).numpy()


def pixels(folder: Path) -> torch.Tensor:
    arrays = [np.asarray(Image.open(p)) for p in sorted(folder.glob("0*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_folders(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(room, "--metrics", "fid,isc,kid", "prc")
    expected = frechet_distance(encode(room, pixels(room / "fake")), encode(room, pixels(room / "real")))
    assert found["metrics"]["frechet-encoder"] == pytest.approx(expected, rel=1e-4)
    assert set(found["metrics"]) == {
        "frechet-encoder", "kid-encoder", "kid_std-encoder", "precision-encoder", "recall-encoder", "f_score-encoder",
    }  # fmt: skip
    assert set(found["unavailable"]) == {"isc-encoder"}
    assert found["counts"] == {"generated": 60, "reference": 60}
    assert found["command"][:2] == ["rcg-eval", "--generated"]
    assert found["config"]["extractor"] == f"encoder:{room / 'encoder'}"
    output = capsys.readouterr()
    assert "| frechet-encoder |" in output.out
    assert "isc-encoder is left out" in output.err


def test_batch_size_does_not_matter(room: Path) -> None:
    one = evaluate(room, "--metrics", "fid", "--batch-size", "7")["metrics"]
    other = evaluate(room, "--metrics", "fid", "--batch-size", "60")["metrics"]
    assert one["frechet-encoder"] == pytest.approx(other["frechet-encoder"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["7", "32"])
def test_two_processes_give_the_number_of_one(room: Path, batch: str) -> None:
    metrics = ["--metrics", "fid,kid,prc,dc,vendi", "--feature-sample", "55"]
    alone = evaluate(room, *metrics)
    out, root = room / "out" / f"two-{batch}.json", Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "rcg.scripts.eval",
    ]
    sides = ["--generated", room / "fake", "--reference", room / "real", "--extractor", f"encoder:{room / 'encoder'}"]
    flags = [*sides, "--device", "cpu", "--batch-size", batch, "--out", out, *metrics]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *map(str, flags)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| frechet-encoder |") == 1  # the first process speaks for both
    found = json.loads(out.read_text())
    assert found["counts"] == alone["counts"]
    assert found["metrics"].keys() == alone["metrics"].keys()
    for name, value in alone["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_limit(room: Path) -> None:
    found = evaluate(room, "--metrics", "fid", "--limit", "20")
    assert found["counts"] == {"generated": 20, "reference": 20}
    assert len([n for n in found["notes"] if "20 of the 60" in n]) == 2


def test_make_stats(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, full = room / "bare.npz", room / "full.npz"
    whole = evaluate(room)
    main(["--reference", str(room / "real"), "--make-stats", str(full), "--extractor", f"encoder:{room / 'encoder'}"])
    assert "The statistics of 60 images" in capsys.readouterr().out
    evaluate(room, "--metrics", "fid", "--make-stats", str(bare), "--feature-sample", "0")
    again = evaluate(room, reference="full.npz")
    assert again["metrics"] == pytest.approx(whole["metrics"], rel=1e-4, nan_ok=True)  # a GPU's last bits vary
    assert again["sets"]["reference"] == whole["sets"]["reference"]
    assert again["sets"]["reference"]["formats"] == {"png": 60}
    only = evaluate(room, reference="bare.npz")
    assert list(only["metrics"]) == ["frechet-encoder"]
    assert only["metrics"]["frechet-encoder"] == pytest.approx(whole["metrics"]["frechet-encoder"], rel=1e-4)
    assert set(only["unavailable"]) == {"isc-encoder", "kid-encoder", "prc-encoder", "dc-encoder"}
    assert only["counts"]["reference"] == 60
    assert "needs the features of the reference" in fails(room, capsys, "--metrics", "kid", reference="bare.npz")
    get_dummy_components(seed=1)["encoder"].save_pretrained(room / "other")
    error = fails(room, capsys, "--extractor", f"encoder:{room / 'other'}", reference="full.npz")
    assert "other weights" in error


def test_repeats_and_more_metrics(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--metrics", "fid,mind", "--fid-infinity", "--num-images", "8", "--seed", "5", "--repeats", "2"]
    found = evaluate(room, *flags, generated="model")
    assert set(found["metrics"]) == {"frechet-encoder", "mind-encoder", "frechet_infinity-encoder"}
    assert [r["pipeline"]["seed"] for r in found["repeats"]] == [5, 6]
    single = evaluate(room, *flags[:-2], generated="model")["metrics"]
    assert found["repeats"][0]["metrics"] == single
    assert " ± " in capsys.readouterr().out
    two = ["--generated", str(room / "fake"), str(room / "real")]
    assert len(evaluate(room, *two, "--metrics", "fid")["repeats"]) == 2


def test_an_rdm_of_classes_is_asked_for_them_as_often_as_the_real_ones_have_them(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = get_dummy_components(num_classes=3)
    for name in ("rdm", "rdm_scheduler"):
        components[name].save_pretrained(room / "by-class")
    encoder = load_model(SSLEncoder, room / "encoder")
    for i, image in enumerate(sorted((room / "real").glob("0*.png"))):
        save_png(room / "uneven" / "abc"[(i > 5) + (i > 20)] / image.name, Image.open(image))
    fields = {"representations": CacheField(encoder, encoder, "float32")}
    build_cache(open_source(room / "uneven"), room / "cache-uneven", fields, 16, 1)
    asked: list[torch.Tensor] = []
    drawn = draw.draw_many

    def draw_many(rdm: Any, count: int, seed: int, labels: torch.Tensor, **more: Any) -> torch.Tensor:
        asked.append(labels)
        return drawn(rdm, count, seed, labels, **more)

    monkeypatch.setattr(draw, "draw_many", draw_many)
    flags = ["--rdm", str(room / "by-class"), "--cache", str(room / "cache-uneven"), "--device", "cpu"]
    main(
        [*flags, "--metrics", "fid", "--repeats", "8", "--rdm-num-inference-steps", "2", "--out", str(room / "u.json")]
    )
    assert json.loads((room / "u.json").read_text())["rdm"]["labels"] == "random, as often as in the cache"
    shares = torch.cat(asked).bincount(minlength=3) / sum(map(len, asked))
    assert shares.tolist() == pytest.approx([0.1, 0.25, 0.65], abs=0.12)  # by far not a third each


def test_an_rdm_without_images(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    components = get_dummy_components(num_classes=3)
    for name in ("rdm", "rdm_scheduler"):
        components[name].save_pretrained(room / "rdm")
    encoder = load_model(SSLEncoder, room / "encoder")
    stranger = get_dummy_components(seed=1)["encoder"]
    for name, one in (("cache-real", encoder), ("cache-other", stranger)):
        build_cache(
            open_source(room / "real"), room / name, {"representations": CacheField(one, one, "float32")}, 16, 1
        )
    (room / "rdm/training").mkdir()
    record = room / "rdm/training/config.yaml"
    record.write_text(f"data: {room / 'cache-real'}")
    out = room / "rdm.json"
    flags = ["--rdm", str(room / "rdm"), "--cache", str(room / "cache-real"), "--device", "cpu", "--out", str(out)]
    main([*flags, "--metrics", "fid,prc,isc", "--repeats", "2", "--rdm-num-inference-steps", "3"])
    found = json.loads(out.read_text())
    assert set(found["metrics"]) == {"rep_fd", *(f"{n}-representation" for n in ("precision", "recall", "f_score"))}
    assert found["counts"] == {"generated": 30, "reference": 30}
    assert found["floor"]["rep_fd"] < found["metrics"]["rep_fd"]
    assert found["deviations"]["rep_fd"] > 0
    assert "isc-representation" in found["unavailable"]
    assert found["rdm"]["labels"] == "random"
    assert (found["rdm"]["guidance_scale"], found["rdm"]["num_inference_steps"]) == (1.0, 3)
    sampling = {"rdm_guidance_scale": 0.0, "rdm_num_inference_steps": 3}
    rdm = ["rcg.rdm.representation_mlp", "RepresentationMLP"]
    index = {"_class_name": "RCGPipeline", "rdm": rdm, "sampling": sampling}
    (room / "whole").mkdir()
    (room / "whole/model_index.json").write_text(json.dumps(index))
    for part, file in (("rdm", "config.json"), ("rdm_scheduler", "scheduler_config.json")):
        components[part].save_pretrained(room / "whole" / part)
        assert (room / "whole" / part / file).is_file()
    main(["--rdm", str(room / "whole"), *flags[2:], "--metrics", "fid"])
    own = json.loads(out.read_text())
    assert (own["rdm"]["guidance_scale"], own["rdm"]["num_inference_steps"]) == (0.0, 3)
    main([*flags, "--metrics", "fid", "--rdm-num-inference-steps", "3", "--rdm-guidance-scale", "0"])
    assert json.loads(out.read_text())["metrics"] == own["metrics"]
    capsys.readouterr()
    main([*flags, "--metrics", "fid,prc,isc", "--repeats", "2", "--rdm-num-inference-steps", "3"])
    printed, told = capsys.readouterr()
    assert "| real (the floor) |" in printed
    assert "rep_fd" in printed
    assert "isc-representation is left out: it needs images" in told
    main(
        [
            *flags,
            "--metrics",
            "fid",
            "--rdm-num-inference-steps",
            "3",
            "--rdm-guidance-scale",
            "0",
            "--num-images",
            "60",
        ]
    )
    assert "rcg-eval: 30 representations are drawn, half as many" in capsys.readouterr().err
    assert json.loads(out.read_text())["metrics"] != {"rep_fd": found["metrics"]["rep_fd"]}
    record.write_text(f"data: {room / 'cache-other'}")
    with pytest.raises(SystemExit):
        main([*flags, "--metrics", "fid"])
    assert "cache-real go with representations of different models" in capsys.readouterr().err


def test_copies_of_training_images(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    g = np.random.default_rng(5)
    for i in range(110):
        picture = Image.fromarray(g.integers(0, 256, (16, 16, 3)).astype(np.uint8))
        save_png(room / "unseen" / f"{i:06d}.png", picture)
    for i in range(30):
        for name, other in (("real", "copied"), ("fake", "copied")):
            save_png(room / other / f"{name}{i}.png", Image.open(room / name / f"{i:06d}.png"))
    flags = ["--train-data", str(room / "real"), "--held-out", str(room / "unseen"), "--metrics", "fid"]
    sheet = room / "sheet.png"
    found = evaluate(room, *flags, "--neighbors", str(sheet), generated="copied", reference="unseen")
    assert set(found["metrics"]) == {"frechet-encoder", "copies-encoder", "ct-encoder"}
    assert found["metrics"]["copies-encoder"] >= 0.5
    assert found["counts"] == {"generated": 60, "reference": 110, "held-out": 110, "train": 60}
    assert found["sources"]["train"] == str(room / "real")
    assert Image.open(sheet).width > 6 * 64
    assert "the model copies" in capsys.readouterr().err
    made = ["--make-stats", str(room / "copies.npz")]
    same = evaluate(room, "--held-out", str(room / "unseen"), "--metrics", "copies,ct", *made, generated="copied")
    assert same["metrics"] == {k: found["metrics"][k] for k in ("copies-encoder", "ct-encoder")}


def test_report(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--metrics", "fid", "--num-images", "9", "--report", str(room / "page")]
    flags += ["--sweep-guidance", "1", "2", "--sweep-images", "5"]
    found = evaluate(room, *flags, generated="model")
    assert "The report: " in capsys.readouterr().out
    report = json.loads((room / "page" / "report.json").read_text())
    assert report["metrics"] == found["metrics"]
    assert report["command"][0] == "rcg-eval"
    assert report["config"]["sweep_guidance"] == [1.0, 2.0]
    assert [p["value"] for p in report["sweeps"][0]["points"]] == [1.0, 2.0]
    page = (room / "page" / "index.html").read_text()
    assert "--sweep-guidance 1 2" in page
    assert "From one representation to another" in page


def test_figures_are_written_before_the_page(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("rcg.eval.page.write_evaluation", fail)
    out = room / "early.json"
    with pytest.raises(RuntimeError):
        evaluate(room, "--metrics", "fid", "--report", str(room / "late"), "--out", str(out))
    assert "frechet-encoder" in json.loads(out.read_text())["metrics"]


def test_pipeline_draws_the_images_of_the_seed(room: Path) -> None:
    pipe = get_dummy_pipeline()
    images = pipe(batch_size=12, generator=sample_generators(5, 0, 12), guidance_scale=2.0, output_type="pt").images
    for i, picture in enumerate(to_pil(images)):
        save_png(room / "drawn" / f"{i:06d}.png", picture)
    expected = evaluate(room, "--metrics", "fid", generated="drawn")["metrics"]["frechet-encoder"]
    flags = ["--metrics", "fid", "--num-images", "12", "--seed", "5", "--batch-size", "5"]
    found = evaluate(room, *flags, "--guidance-scale", "2.0", generated="model")
    assert found["metrics"]["frechet-encoder"] == pytest.approx(expected, rel=1e-4)
    assert found["counts"] == {"generated": 12, "reference": 60}
    assert found["pipeline"]["settings"]["guidance_scale"] == 2.0
    assert found["pipeline"]["identity"] == pipe.identity()
    unguided = evaluate(room, *flags, generated="model")["metrics"]["frechet-encoder"]
    assert unguided != pytest.approx(expected, rel=1e-4)


def test_whole_inception_has_a_score_without_reference(room: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(InceptionV3(tail=True).state_dict(), tmp_path / "w.pth")
    flags = ["--extractor", "inception", "--extractor-weights", str(tmp_path / "w.pth"), "--limit", "2"]
    found = evaluate(room, *flags, "--metrics", "isc", reference=None)
    assert set(found["metrics"]) == {"isc", "isc_std"}
    assert found["counts"] == {"generated": 2, "reference": None}


def test_sizes_that_differ(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        save_png(room / "large" / f"{i}.png", Image.new("RGB", (24, 20), (i * 20, 9, 99)))
    error = fails(room, capsys, "--metrics", "fid", reference="large")
    assert "16×16 px and the reference 24×20 px" in error
    alike = evaluate(room, "--metrics", "fid", "--image-size", "16", "--resize", "plain", reference="large")
    assert alike["sets"]["reference"]["resize"] == "bicubic, without antialias, centre crop"
    assert alike["sets"]["generated"]["resize"] == "none"
    save_png(room / "mixed" / "a.png", Image.new("RGB", (24, 20)))
    save_png(room / "mixed" / "b.png", Image.new("RGB", (16, 16)))
    assert "differ in size" in fails(room, capsys, "--metrics", "fid", generated="mixed")


def test_nothing_to_do(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--reference", str(room / "real")])
    assert "give --generated DIR" in capsys.readouterr().err


def test_mistakes(room: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*flags: str, **sides: Any) -> str:
        return fails(room, capsys, *flags, **sides)

    assert "--resize says how --image-size S is reached" in said("--resize", "plain")
    (room / "trained/training").mkdir(parents=True)
    (room / "trained/training/config.yaml").write_text("{}")
    assert "holds a training run, not images" in said(generated="trained")
    assert "--batch-size is 0" in said("--batch-size", "0")
    assert "no metric 'fud'" in said("--metrics", "fud")
    assert "isc-encoder: the Inception Score needs" in said("--metrics", "isc")
    assert "give --reference" in said("--metrics", "fid", reference=None)
    assert "there is no folder" in said(generated="nowhere")
    assert "no statistics file" in said(reference="nowhere.npz")
    assert "no weights file" in said("--extractor", "inception", "--extractor-weights", "nowhere.pth")
    assert "inception-768 with --extractor-weights" in said("--extractor", "inception")
    assert "Unknown extractor" in said("--extractor", "vgg")
    assert "there is no folder" in said("--extractor", f"encoder:{room / 'nowhere'}")
    assert "leave out --extractor-weights" in said("--extractor-weights", "x.pth")
    assert "--num-images is for a pipeline" in said("--num-images", "5")
    assert "--num-images N" in said(generated="model")
    assert "ends in .npz" in said("--make-stats", "stats")
    assert "needs --reference DIR" in said("--make-stats", "stats.npz", reference=None)
    assert "--repeats is for a pipeline" in said("--repeats", "2")
    assert "--labels is for a pipeline" in said("--labels", "balanced")
    assert "has none" in said("--labels", "balanced", "--num-images", "4", generated="model")
    assert "one pipeline only" in said("--generated", str(room / "model"), str(room / "fake"), "--num-images", "4")
    assert "give both" in said("--rdm", "x")
    assert "leave out --generated" in said("--rdm", "x", "--cache", "y")
    for flags in (
        ["--image-size", "8"], ["--extractor", "dinov2"], ["--temperature", "2"], ["--precision", "bf16"],
        ["--feature-sample", "5"],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["--rdm", "x", "--cache", "y", *flags])
        assert f"without images; leave out {flags[0]}." in capsys.readouterr().err
    with monkeypatch.context() as two:
        two.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit):
            main(["--rdm", "x", "--cache", "y"])
        assert "--rdm runs in one process; start it without torchrun." in capsys.readouterr().err
    assert "--extractor clip" in said("--metrics", "cmmd")
    assert "--held-out" in said("--metrics", "fld")
    assert "is a folder" in said("--out", str(room))
    assert "cannot be used (Not a directory)" in said("--out", str(room / "real" / "000000.png" / "m.json"))
    page = ["--report", str(room / "new-page")]
    of_model = [*page, "--num-images", "4"]
    assert "--sweep-images is for the page of --report" in said("--sweep-images", "5")
    assert "--sweep-guidance is for a pipeline" in said(*page, "--sweep-guidance", "1")
    assert "--sweep-metric has no sweep" in said(*of_model, "--sweep-metric", "kid", generated="model")
    assert "--sweep-guidance[1] is -1" in said(*of_model, "--sweep-guidance", "1", "-1", generated="model")
    assert "--sweep-steps[0] is 0" in said(*of_model, "--sweep-steps", "0", generated="model")
    assert "--sweep-temperature[0] is -2" in said(*of_model, "--sweep-temperature", "-2", generated="model")
    assert "--sweep-rdm-steps[0] is 0" in said(*of_model, "--sweep-rdm-steps", "0", generated="model")
    assert "--sweep-images is 1" in said(*of_model, "--sweep-steps", "2", "--sweep-images", "1", generated="model")
    training = ["--sweep-steps", "2", "--sweep-metric", "ct"]
    assert "needs training images" in said(*of_model, *training, generated="model")
    assert "is a file" in said("--report", str(room / "real" / "000000.png"))
    assert "--feature-sample must be above 0" in said(*page, "--feature-sample", "0")
    with pytest.raises(SystemExit):
        main([*page, "--reference", "z", "--make-stats", "s.npz"])
    assert "--report needs --generated" in capsys.readouterr().err
    for flags in (["--out", "m.json"], ["--held-out", "y"], ["--metrics", "fid"], ["--fid-infinity"]):
        with pytest.raises(SystemExit):
            main(["--reference", "z", "--make-stats", "s.npz", *flags])
        assert f"{flags[0]} needs --generated" in capsys.readouterr().err
    assert not (room / "new-page").exists()
    assert "--train-data needs --held-out" in said("--train-data", "x")
    both = ["--train-data", str(room / "real"), "--held-out", str(room / "real")]
    assert "as training and as held-out" in said(*both)
    assert "there is no folder" in said("--train-data", "nowhere", "--held-out", str(room / "real"))
    assert "ends in .png" in said("--neighbors", "x.jpg", "--held-out", "x")
    assert "--neighbors needs" in said("--neighbors", "x.png")
    with pytest.raises(SystemExit):
        main(["--train-data", "x", "--held-out", "y", "--reference", "z", "--make-stats", "s.npz"])
    assert "--train-data needs --generated" in capsys.readouterr().err
    of_scale = ["--num-images", "4", "--guidance-interval", "0", "0.5"]
    assert "guidance_interval has no effect, as guidance is off" in said(*of_scale, generated="model")
    off = [*of_scale, "--guidance-scale", "1"]
    assert "--guidance-interval has no effect with --guidance-scale 1.0" in said(*off, generated="model")
    assert "--guidance-scale is -1" in said("--num-images", "4", "--guidance-scale", "-1", generated="model")
