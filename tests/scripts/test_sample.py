"""rcg-sample: one image of a seed is one image, whoever makes it; no run is mixed with another."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg import RCGPipeline, UserError
from rcg.core.files import claimed
from rcg.core.parts import Share
from rcg.core.pictures import png_text
from rcg.core.rng import sample_generators
from rcg.core.shipped import DEFAULT
from rcg.data.sources import open_source
from rcg.sampling.drawing import draw_images
from rcg.sampling.folder import SamplingFolder
from rcg.scripts import sample
from tests.components import CLASSES, SIZE, get_dummy_pipeline
from tests.forked import Forked

COUNT = 17


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    get_dummy_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole run of one process, 5 images at a time."""
    out = tmp_path_factory.mktemp("reference") / "out"
    run(model, out, batch_size=5)
    return contents(out)


def run(model: Path, out: Path, *more: str, **flags: Any) -> None:
    arguments = {"model": model, "out": out, "num_images": COUNT, "seed": 3, "device": "cpu", **flags}
    sample.main([a for k, v in arguments.items() for a in (f"--{k.replace('_', '-')}", str(v))] + list(more))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def refused(capsys: pytest.CaptureFixture[str], *args: Any, **flags: Any) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run(*args, **flags)
    assert e.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("rcg-sample: error: ")
    return message


def test_what_a_run_writes(model: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    assert set(reference) == {f"{i:06d}.png" for i in range(COUNT)} | {"grid.png", "sampling.json"}
    for name, content in reference.items():
        (tmp_path / name).write_bytes(content)
    pipe = RCGPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    direct = pipe(generator=sample_generators(3, 0, COUNT)).images
    for i, image in enumerate(direct):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{i:06d}.png")), np.asarray(image))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (4 * (SIZE + 2) - 2, 5 * (SIZE + 2) - 2, 3)  # 17 images in 5 columns
    np.testing.assert_array_equal(grid[:SIZE, SIZE + 2 : 2 * SIZE + 2], np.asarray(direct[1]))
    manifest = json.loads((tmp_path / "sampling.json").read_text())
    assert manifest["settings"]["model"] == pipe.identity()
    assert manifest["settings"]["num_inference_steps"] == 5
    assert png_text(tmp_path / "000000.png") == {"rcg-run": manifest["run"]}


@pytest.mark.parametrize("batch_size", [1, 16])
def test_batch_size_does_not_matter(model: Path, reference: dict[str, bytes], tmp_path: Path, batch_size: int) -> None:
    run(model, tmp_path / "out", batch_size=batch_size)
    assert contents(tmp_path / "out") == reference


@pytest.mark.timeout(1200)  # busy machines take long
def test_process_count_does_not_matter(model: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    """Two real processes, with other thread counts, against one."""
    arguments = ["--model", str(model), "--out", str(tmp_path / "out"), "--num-images", str(COUNT), "--seed", "3"]
    processes = [
        Forked(
            "-m",
            "rcg.scripts.sample",
            *arguments,
            "--batch-size",
            "16",
            "--device",
            "cpu",
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": str(rank + 1)},
        )
        for rank in range(2)
    ]
    outputs = [p.communicate() for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert contents(tmp_path / "out") == reference


def test_threads_do_not_matter() -> None:
    pipe = get_dummy_pipeline()
    torch.set_num_threads(1)
    runs = [draw_images(pipe, range(2, 9), 3, [], threads) for threads in (1, 2, 3, 16)]
    for other in runs[1:]:
        assert [np.asarray(i).tolist() for i in other] == [np.asarray(i).tolist() for i in runs[0]]


def test_resume(model: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, out, num_images=9, batch_size=4)
    (out / "000003.png").write_bytes(reference["000003.png"][:-20])  # cut off
    (out / "000005.png").unlink()
    (out / ".000007.png.0123abcd.png").write_bytes(b"half")  # left by a kill
    kept = (out / "000002.png").stat().st_mtime_ns
    run(model, out, "--resume", batch_size=4)
    assert contents(out) == reference
    assert (out / "000002.png").stat().st_mtime_ns == kept
    (out / ".grid.png.0123abcd.png").write_bytes(b"half")
    run(model, out, "--resume")  # nothing left to do
    assert contents(out) == reference


def test_a_process_that_starts_late_finds_the_others_at_work(tmp_path: Path) -> None:
    first, second = (SamplingFolder(tmp_path, Share(rank, 2)) for rank in (0, 1))
    fresh = {"resume": False, "overwrite": False}
    half = [
        tmp_path / n for n in (".sampling.json.0123abcd.json", ".grid.png.89abcdef.png", ".000002.png.01234567.png")
    ]
    for number, path in enumerate(half):
        path.write_bytes(b"half")
        assert second.inspect({"seed": 0}, **fresh) == []
        assert set(first.inspect({"seed": 0}, **fresh)) == set(half[1 : number + 1])
    first.claim({"seed": 0}, model="m", **fresh)
    for name in ("000000.png", "grid.png"):
        (tmp_path / name).write_bytes(b"whole")
    assert second.inspect({"seed": 0}, **fresh) == []
    with pytest.raises(UserError, match="already holds images of this run"):
        first.inspect({"seed": 0}, **fresh)
    (tmp_path / ".holiday.png.0123abcd.png").touch()
    with pytest.raises(UserError, match="pictures that rcg-sample did not write"):
        second.inspect({"seed": 0}, **fresh)


def test_a_folder_where_another_run_is_at_work_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RCGPipeline, "from_pretrained", lambda *_: pytest.fail("loaded"))
    with claimed(tmp_path / "out"):
        assert "another process is writing into" in refused(capsys, tmp_path / "model", tmp_path / "out")
    with claimed(tmp_path / "out", shared=True):
        assert "another process is writing into" in refused(capsys, tmp_path / "model", tmp_path / "out")
        with pytest.raises(pytest.fail.Exception, match="loaded"):
            run(tmp_path / "model", tmp_path / "out", "--part", "1/2")


def test_another_run_is_not_mixed_in(
    model: Path, reference: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(model, out, num_images=4)
    before = contents(out)
    assert "already holds images of this run; add --resume" in refused(capsys, model, out)
    for flags, what in (
        ({"seed": 4}, "seed 3, not 4"),
        ({"guidance_scale": 2.0}, "guidance_scale 1.0, not 2.0"),
        ({"temperature": 0.5}, "temperature 2.0, not 0.5"),
    ):
        for more in ((), ("--resume",)):
            assert f"holds another run ({what})" in refused(capsys, model, out, *more, **flags)
    assert contents(out) == before
    run(model, out, "--overwrite", num_images=2, guidance_scale=2.0)
    assert set(contents(out)) == {"000000.png", "000001.png", "grid.png", "sampling.json"}
    assert json.loads((out / "sampling.json").read_text())["settings"]["guidance_scale"] == 2.0
    run(model, out, "--overwrite")
    assert contents(out) == reference


def test_folders_that_may_not_be_used(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "there is no run to resume" in refused(capsys, model, out, "--resume")
    assert not out.exists()
    out.mkdir()
    (out / "cat.jpg").write_bytes(b"")
    for more in ((), ("--overwrite",)):
        assert "holds no rcg-sample run (cat.jpg)" in refused(capsys, model, out, *more)
    (out / "cat.jpg").unlink()
    run(model, out, num_images=1)
    (out / "cat.jpg").write_bytes(b"")
    for more in (("--resume",), ("--overwrite",)):
        assert "pictures that rcg-sample did not write (cat.jpg)" in refused(capsys, model, out, *more)
    (out / "cat.jpg").unlink()
    (out / "sampling.json").write_text("{}")
    assert "sampling.json: format is missing" in refused(capsys, model, out)
    (tmp_path / "file").touch()
    assert "is a file" in refused(capsys, model, tmp_path / "file")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"num_images": 0}, "--num-images is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"num_inference_steps": 99}, "only 16 tokens"),
        ({"rdm_num_inference_steps": 2000}, "2000 steps were asked for, but their number must lie between 1 and 1000"),
        ({"guidance_scale": -3}, "--guidance-scale is -3"),
        ({"rdm_guidance_scale": 3}, "no null class"),
        (
            {"guidance_schedule": "cosine"},
            "guidance_schedule has no effect, as guidance is off (guidance_scale is 1.0); give another",
        ),
        (
            {"guidance_schedule": "cosine", "guidance_scale": 1},
            "--guidance-schedule has no effect with --guidance-scale 1.0",
        ),
        ({"class_labels": 1}, "class_labels have no effect"),
        ({"model": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
    ],
)
def test_bad_flags(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, Any], message: str
) -> None:
    assert message in refused(capsys, **{"model": model, "out": tmp_path / "out", **flags})
    assert not (tmp_path / "out").exists()


def test_class_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = get_dummy_pipeline(condition="class")
    pipe.save_pretrained(tmp_path / "model")
    labels = ["--class-labels", "4", "1"]
    run(tmp_path / "model", tmp_path / "out", *labels, num_images=5, batch_size=2, seed=0)
    direct = pipe(generator=sample_generators(0, 0, 5), class_labels=[4, 1, 4, 1, 4]).images
    for i, image in enumerate(direct):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/{i:06d}.png")), np.asarray(image))
    message = refused(capsys, tmp_path / "model", tmp_path / "out2", class_labels=CLASSES)
    assert f"class label {CLASSES} is out of range: this model knows 0 to {CLASSES - 1}" in message


def test_help_says_which_labels_there_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The RDM in the box knows clusters, which are drawn as often as they occur."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "or of clusters where generator or RDM know these" in said
    assert "a class uniformly, a cluster as often as it occurs" in said
    box = RCGPipeline.from_pretrained(DEFAULT)
    assert box.num_classes == len(box.rdm.config.label_counts) == 100


def test_bf16_is_another_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(model, tmp_path / "out", num_images=2, precision="bf16")
    message = refused(capsys, model, tmp_path / "out", "--resume", precision="fp32")
    assert "holds another run (precision bf16, not fp32)" in message


def test_exact_is_the_pipelines_exact(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(model, tmp_path / "out", "--exact", num_images=2, rdm_num_inference_steps=5)
    pipe = RCGPipeline.from_pretrained(model)
    direct = pipe(generator=sample_generators(3, 0, 2), exact=True, rdm_num_inference_steps=5).images
    for i, image in enumerate(direct):
        drawn = np.asarray(Image.open(tmp_path / f"out/{i:06d}.png")).astype(int)
        assert np.abs(drawn - np.asarray(image).astype(int)).max() <= 1
    assert "exact True, not False" in refused(capsys, model, tmp_path / "out", "--resume", rdm_num_inference_steps=5)
    assert "leave out --precision bf16" in refused(capsys, model, tmp_path / "other", "--exact", precision="bf16")


def test_a_full_disk_leaves_no_half_image(
    model: Path, reference: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, written = Image.Image.save, []

    def save(self: Image.Image, path: Path, *args: Any, **kwargs: Any) -> None:
        written.append(path)
        if len(written) > 3:
            Path(path).write_bytes(b"\x89PNG half an image")
            raise OSError(28, "No space left on device")
        whole(self, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        assert "the disk is full" in refused(capsys, model, tmp_path / "out", batch_size=2)
    assert set(contents(tmp_path / "out")) == {"000000.png", "000001.png", "000002.png", "sampling.json"}
    run(model, tmp_path / "out", "--resume")
    assert contents(tmp_path / "out") == reference


def test_waiting_for_the_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 images of other processes are missing .the first is 000000.png.*--resume"):
        SamplingFolder(tmp_path).wait_for(2, "run", patience=0.0)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, world in (("2", "2"), ("-1", "2"), ("one", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(UserError, match="torchrun"):
            Share.from_environment()


def test_truncation_is_at_most_one_level_darker(model: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    run(model, tmp_path / "rounded", num_images=2)
    run(model, tmp_path / "cut", num_images=2, rounding="truncate")
    rounded, cut = (np.asarray(Image.open(tmp_path / name / "000001.png")).astype(int) for name in ("rounded", "cut"))
    assert set(np.unique(rounded - cut)) == {0, 1}


def test_shards(
    model: Path, reference: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "user-cache"))
    out = tmp_path / "out"
    run(model, out, "--shards", images_per_shard=6, batch_size=5)
    assert sorted(contents(out)) == ["000000.tar", "000001.tar", "000002.tar", "grid.png", "sampling.json"]
    assert contents(out)["grid.png"] == reference["grid.png"]
    source = open_source(out)
    for i in range(COUNT):
        (tmp_path / "one.png").write_bytes(reference[f"{i:06d}.png"])
        np.testing.assert_array_equal(np.asarray(source.image(i)), np.asarray(Image.open(tmp_path / "one.png")))
    assert "--images-per-shard is for --shards" in refused(capsys, model, tmp_path / "o", images_per_shard=6)
    assert "--images-per-shard is 0" in refused(capsys, model, tmp_path / "o", "--shards", images_per_shard=0)
    assert "add --shards" in refused(capsys, model, out, "--resume")


def test_help_is_broken_where_lines_are_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "or user/name on the Hub." in line for line in lines
    )  # the docstring goes on in a new line before "user"
