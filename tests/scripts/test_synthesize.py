"""`rcg-synthesize` end to end: a tiny Stable Diffusion and a tiny RCG pipeline; killed, resumed, shared out."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.data.sources import open_source
from rcg.scripts.synthesize import main
from rcg.synthesis import drawers
from rcg.synthesis.prompts import representation_prompts
from tests.components import get_dummy_pipeline
from tests.synthesis.tiny import save_tiny_pipeline

CAPTIONS = ["a dog", "two cats", "a ship", "a dog", "an owl"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    return str(save_tiny_pipeline(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("captions") / "captions.txt"
    file.write_text("\n".join(CAPTIONS))
    return str(file)


def arguments(model: str, captions: str, out: Path, *more: str) -> list[str]:
    return ["--model", model, "--captions", captions, "--out", str(out), "--images-per-caption", "3", "--device", "cpu",
            "--num-inference-steps", "2", "--captions-per-shard", "2", "--precision", "fp32", "--format", "png",
            *more]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Members of all shards."""
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def by_caption(folder: Path) -> dict[tuple[str, int, float], bytes]:
    """Images by caption, seed and guidance scale."""
    members = contents(folder)
    described = {name.split(".")[0]: json.loads(data) for name, data in members.items() if name.endswith(".json")}
    return {
        (said["caption"], image["seed"], image["guidance_scale"]): members[f"{key}.{image['file']}"]
        for key, said in described.items()
        for image in said["images"]
    }


@pytest.fixture(scope="module")
def made(model: str, captions: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    main(arguments(model, captions, out))
    return out


def test_shards_hold_captions_seeds_and_scales(made: Path, model: str) -> None:
    members = contents(made)
    assert sorted(p.name for p in made.iterdir()) == ["000000.tar", "000001.tar", "synthesis.json"]
    assert list(members)[:5] == [
        "000000000.json", "000000000.0.png", "000000000.1.png", "000000000.2.png", "000000001.json"
    ]  # fmt: skip
    assert len(members) == 4 * 4
    said = json.loads(members["000000001.json"])
    assert said["caption"] == "two cats"
    assert {image["guidance_scale"] for image in said["images"]} == {2.0, 3.0}
    image = said["images"][1]
    pipe = drawers.TextToImage(model, torch.device("cpu")).pipe
    again = pipe(
        "two cats", generator=torch.Generator().manual_seed(image["seed"]), guidance_scale=image["guidance_scale"],
        num_inference_steps=2,
    ).images[0]  # fmt: skip
    kept = np.asarray(Image.open(io.BytesIO(members["000000001.1.png"])))
    assert np.array_equal(kept, np.asarray(again))
    assert len({members[f"00000000{k}.{j}.png"] for k in range(4) for j in range(3)}) == 12
    source = open_source(made)
    assert len(source) == 12
    assert source.groups().captions == list(dict.fromkeys(CAPTIONS))  # type: ignore[union-attr]


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 7])
def test_a_killed_run_goes_on_to_the_same_shards(
    after: int, made: Path, model: str, captions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = drawers.TextToImage.draw
    calls = 0

    def dying(self: drawers.TextToImage, *given: Sequence[object]) -> object:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return draw(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(drawers.TextToImage, "draw", dying)
    with pytest.raises(Killed):
        main(arguments(model, captions, tmp_path / "o"))
    work = tmp_path / "o" / f".00000{after // 6}.work"
    images = sorted(work.glob("*.png"))
    assert len(images) == after % 6
    images[0].write_bytes(images[0].read_bytes()[:40])  # torn by a power failure
    calls = -100
    main(arguments(model, captions, tmp_path / "o", "--resume", "--batch-size", "3"))
    assert calls == -100 + 12 - after + 1
    for shard in ("000000.tar", "000001.tar"):
        assert (tmp_path / "o" / shard).read_bytes() == (made / shard).read_bytes()
    assert not list((tmp_path / "o").glob(".*"))


def test_two_processes_and_other_shards_give_the_same_images(
    made: Path, model: str, captions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        main(arguments(model, captions, tmp_path / "o"))
    assert (tmp_path / "o/000001.tar").read_bytes() == (made / "000001.tar").read_bytes()
    assert contents(tmp_path / "o") == contents(made)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    other = tmp_path / "other.txt"
    other.write_text("an owl\na dog\n")
    main(arguments(model, str(other), tmp_path / "p", "--captions-per-shard", "1", "--images-per-caption", "2"))
    found, all_of_them = by_caption(tmp_path / "p"), by_caption(made)
    assert len(found) == 4
    assert all(all_of_them[key] == image for key, image in found.items())


def test_scheduler_size_and_precision(model: str, captions: str, tmp_path: Path) -> None:
    more = ["--scheduler", "LCMScheduler", "--image-size", "8", "--format", "jpg", "--guidance-scales", "1", "--precision",
            "bf16", "--resolution", "24"]  # fmt: skip
    main(arguments(model, captions, tmp_path / "o", *more))
    images = [data for name, data in contents(tmp_path / "o").items() if name.endswith(".jpg")]
    assert len(images) == 12
    assert {Image.open(io.BytesIO(data)).size for data in images} == {(8, 8)}
    settings = json.loads((tmp_path / "o/synthesis.json").read_text())["settings"]
    assert settings["scheduler"]["class"] == "LCMScheduler"
    assert settings["height"] == 24


def test_what_the_safety_checker_refuses_is_left_out(
    model: str, captions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = drawers.TextToImage.draw

    def strict(self: drawers.TextToImage, pictures: Sequence[object], prompts: Sequence[object]) -> list[object]:
        images = draw(self, pictures, prompts)  # type: ignore[arg-type]
        refused = [p.text == "a ship" and q.number == 1 for p, q in zip(prompts, pictures, strict=True)]  # type: ignore[attr-defined]
        return [None if no else image for image, no in zip(images, refused, strict=True)]

    monkeypatch.setattr(drawers.TextToImage, "draw", strict)
    main(arguments(model, captions, tmp_path / "o"))
    members = contents(tmp_path / "o")
    assert "000000002.1.png" not in members
    assert [i["file"] for i in json.loads(members["000000002.json"])["images"]] == ["0.png", "2.png"]
    assert "1 images were kept back" in capsys.readouterr().out


def test_representations_of_an_rcg_pipeline(tmp_path: Path) -> None:
    """Images of one representation; for any batch size, the same."""
    get_dummy_pipeline().save_pretrained(str(tmp_path / "rcg"))
    base = ["--model", str(tmp_path / "rcg"), "--representations", "3", "--images-per-caption", "2", "--device", "cpu",
            "--precision", "fp32", "--format", "png", "--captions-per-shard", "2"]  # fmt: skip
    main([*base, "--out", str(tmp_path / "a"), "--batch-size", "1"])
    main([*base, "--out", str(tmp_path / "b"), "--batch-size", "5"])
    for shard in ("000000.tar", "000001.tar"):
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()
    groups = open_source(tmp_path / "a").groups()
    assert groups is not None
    assert groups.numbers.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(groups.identities().tolist())) == 3
    members = contents(tmp_path / "a")
    assert len({data for name, data in members.items() if name.endswith(".png")}) == 6


def test_classes_of_representations_follow_the_counts_of_the_rdm(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seen = representation_prompts(12), []
    for counts in (None, [0, 5, 0]):
        pipe = get_dummy_pipeline(num_classes=3)
        pipe.rdm.register_to_config(label_counts=counts)
        images = drawers.RCGImages(pipe, pipe.settings(), 0, 12)
        assert images.identity().get("label_counts") == counts
        kind = type(pipe.representation_generator)
        monkeypatch.setattr(kind, "draw", lambda self, request: seen.append(request.class_labels) or torch.zeros(12, 1))  # type: ignore[func-returns-value]
        images._representations(prompts)
    assert [labels.tolist() for labels in seen] == [[p.number % 3 for p in prompts], [1] * 12]


def test_a_pipeline_may_lie_at_home(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(model).parent))
    assert drawers.TextToImage(f"~/{Path(model).name}", torch.device("cpu")).at_once == 1


def test_classes_become_labels(model: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    words = arguments(model, "x", tmp_path / "o", "--classes", str(tmp_path / "classes.txt"), "--templates", "a {}")
    main([w for i, w in enumerate(words) if "--captions" not in (w, words[i - 1])])
    source = open_source(tmp_path / "o")
    assert source.class_names == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guidance-scales", "high"], "--guidance-scales 'high' is neither"),
        (["--scheduler", "LCM"], "diffusers has no scheduler 'LCM'"),
        (["--scheduler", "FlowMatchEulerDiscreteScheduler"], "does not fit this pipeline and its steps (it has no"),
        (
            ["--scheduler", "KarrasVeScheduler"],
            "does not fit this pipeline and its steps (KarrasVeScheduler.step() missing",
        ),
        (["--scheduler", "VQDiffusionScheduler"], "does not fit this pipeline"),
        (["--guidance-scales", "0.5"], "not guided below 1, which is off; raise --guidance-scales"),
        (["--representations", "3"], "one of --captions FILE, --classes FILE"),
        (["--templates", "a {}"], "--templates are for --classes"),
        (["--column", "text"], "captions.txt, which holds captions alone; leave it out"),
        (["--model", "nowhere"], "nowhere is no folder of a pipeline"),
        (["--resume"], "there is no run to resume"),
        (["--captions", "absent.txt"], "there is no file absent.txt"),
    ],
)
def test_mistakes_end_with_one_sentence(
    flags: list[str], message: str, model: str, captions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(model, captions, tmp_path / "o", *flags))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_a_scheduler_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lacking(type):
        def __getattr__(cls, name: str) -> object:
            raise ImportError("LackingScheduler requires the lacking library")

    monkeypatch.setattr("diffusers.LackingScheduler", Lacking("LackingScheduler", (), {}), raising=False)
    with pytest.raises(UserError, match="requires the lacking library"):
        drawers._scheduler("LackingScheduler")


def test_a_pipeline_is_loaded_without_alarms(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms: list[str] = []
    monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", lambda text, *_: alarms.append(text))
    for bf16 in (False, True):
        drawer = drawers.TextToImage(model, torch.device("cpu"), bf16=bf16)
        assert drawer.pipe.unet.dtype == drawer.pipe.text_encoder.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert not alarms


def test_a_missing_package_is_named(
    model: str, captions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(arguments(model, captions, tmp_path / "o"))
    assert "needs the package transformers" in capsys.readouterr().err
    monkeypatch.undo()
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "unet" / "config.json").unlink()
    with pytest.raises(SystemExit):
        main(arguments(str(broken), captions, tmp_path / "o"))
    assert f"the pipeline in {broken} cannot be loaded" in capsys.readouterr().err


def test_another_run_is_not_touched(
    made: Path, model: str, captions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(made)
    with pytest.raises(SystemExit):  # before the model is looked at
        main(arguments("nowhere", captions, made))
    assert "add --resume" in capsys.readouterr().err
    with claimed(made), pytest.raises(SystemExit):
        main(arguments("nowhere", captions, made, "--resume"))
    assert "another process is writing" in capsys.readouterr().err
    for more, message in ((["--seed", "1", "--resume"], "holds another run (seed 0, not 1)"), ([], "add --resume")):
        with pytest.raises(SystemExit):
            main(arguments(model, captions, made, *more))
        assert message in capsys.readouterr().err
    assert contents(made) == before
    (tmp_path / "mine.doc").write_text("x")
    with pytest.raises(SystemExit):
        main(arguments(model, captions, tmp_path))
    assert "holds no rcg-synthesize run (mine.doc)" in capsys.readouterr().err
