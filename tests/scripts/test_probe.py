"""rcg-eval --probe: features once, then linear, k-NN, few-shot and zero-shot probes of one set or several."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from rcg.core.pictures import save_png
from rcg.core.rng import derive_seed
from rcg.data.sources import open_source
from rcg.encoders.language import LanguageTower
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval import probing
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.linear_probe import few_shot_accuracy, linear_probe
from rcg.eval.probes import knn_accuracy
from rcg.scripts.eval import main
from tests.data.shards import picture, write_tar
from tests.forked import Forked

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
ROOT = Path(__file__).parents[2]
CLASSES = ("a_dog", "boat", "cup", "door", "eye")


def write_set(folder: Path, seed: int, count: int, classes: tuple[str, ...] = CLASSES, side: int = 16) -> None:
    """Images of one colour a class, with noise."""
    g = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        for i in range(count):
            pixels = g.normal(50 + 40 * c, 40, (side, side, 3)).clip(0, 255)
            save_png(folder / name / f"{i:03d}.png", Image.fromarray(pixels.astype(np.uint8)))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of images, and encoders: with a MoCo head, of CLIP, of StableRep+."""
    path = tmp_path_factory.mktemp("probe")
    write_set(path / "train", 0, 24)
    write_set(path / "test", 1, 22)
    write_set(path / "both/train", 2, 10, CLASSES[:3])
    write_set(path / "both/val", 3, 6, CLASSES[1:3])
    torch.manual_seed(0)
    common: dict[str, Any] = {"arch": "vit_tiny_patch16_224", "arch_kwargs": VIT, "image_size": 16, "head_dim": 12}
    SSLEncoder(**common, head_layers=2, head_hidden_dim=8).save_pretrained(path / "encoder")
    SSLEncoder(**common, head_layers=1, head_type="linear").save_pretrained(path / "clip")
    SSLEncoder(**common, head_layers=2, head_hidden_dim=8, head_type="stablerep").save_pretrained(path / "plus")
    LanguageTower(12, 16, 1, 2, 32).save_pretrained(path / "clip/language")
    LanguageTower(8, 16, 1, 2, 32, image_dim=16).save_pretrained(path / "plus/language")
    return path


@pytest.fixture(autouse=True)
def _own_cache(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(room / "cache"))


def run(room: Path, *flags: str, encoder: str = "encoder", sets: tuple[str, ...] = ("train",)) -> dict[str, Any]:
    out = room / "out.json"
    out.unlink(missing_ok=True)
    main(["--probe", *(str(room / s) for s in sets), "--extractor", f"encoder:{room / encoder}", "--device", "cpu",
          "--probe-epochs", "5", "--probe-episodes", "20", "--out", str(out), *flags])  # fmt: skip
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def pooled(room: Path, name: str, encoder: str = "encoder") -> tuple[torch.Tensor, np.ndarray]:
    source = open_source(room / name)
    images = torch.from_numpy(np.stack([np.asarray(source.image(i)) for i in range(len(source))]))
    with torch.inference_mode():
        found = SSLEncoder.from_pretrained(room / encoder).features(images.permute(0, 3, 1, 2).float() / 255)
    assert source.labels is not None
    return found, source.labels


def test_the_figures_are_those_of_the_probes(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(room, "--probe-test", str(room / "test"))
    (x, y), (x_test, y_test) = pooled(room, "train"), pooled(room, "test")
    linear = linear_probe(x, y, x_test, y_test, epochs=5)
    assert found["metrics"]["linear"] == pytest.approx(linear.accuracy, abs=0.02)
    assert found["metrics"]["knn"] == pytest.approx(knn_accuracy(x, y, x_test, y_test))
    mean, interval = few_shot_accuracy(x_test, y_test, episodes=20)
    one = found["sets"]["train"]
    assert found["metrics"]["few_shot"] == pytest.approx(mean, abs=0.005)
    assert one["deviations"]["few_shot"] == pytest.approx(interval, abs=0.005)
    assert "caption encoder" in one["unavailable"]["zero_shot"]
    assert len(one["linear"]["by_rate"]) == 10
    assert (one["train"]["images"], one["test"]["images"]) == (120, 110)
    assert one["classes"] == list(CLASSES)
    assert found["config"]["probe_epochs"] == 5
    assert "zero-shot is left out" in capsys.readouterr().err


def test_features_are_computed_once(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(room, "--probe-with", "knn", "linear", sets=("train",))
    passes: list[int] = []
    forward = ModuleExtractor.forward
    monkeypatch.setattr(ModuleExtractor, "forward", lambda self, x: (passes.append(len(x)), forward(self, x))[1])
    assert run(room, "--probe-with", "knn", "linear", sets=("train",))["metrics"] == first["metrics"]
    assert not passes
    assert first["sets"]["train"]["train"]["images"] == 95  # a fifth of each class is kept for testing
    other = run(room, "--probe-with", "knn", "--probe-features", "representation", sets=("train",))
    assert sum(passes) == 120 + 1  # one image to see what comes out
    assert (first["extractor"]["dimensions"], other["extractor"]["dimensions"]) == (16, 12)
    run(room, "--probe-with", "knn", "--probe-cache", str(room / "elsewhere"))
    assert len(list((room / "elsewhere").iterdir())) == 1


def test_features_of_other_labels_lie_elsewhere(room: Path, tmp_path: Path) -> None:
    extractor: Any = SimpleNamespace(name="e", weights_hash="w", dim=4)

    def folder(name: str, classes: str) -> Path:
        (tmp_path / name).mkdir()
        members = [(f"{i}.cls", c.encode()) for i, c in enumerate(classes)]
        write_tar(tmp_path / name / "x.tar", [(f"{i}.png", picture(i)) for i in range(4)] + members)
        return probing.feature_folder(room, open_source(tmp_path / name), extractor, 16, "fp32")

    assert len({folder("fine", "abab"), folder("swapped", "baab"), folder("none", "")}) == 3
    source = open_source(room / "train")  # whose names tell the classes: what was kept before is found
    old = hashlib.sha256(f"{source.fingerprint} e w 4 16 fp32".encode()).hexdigest()[:24]
    assert probing.feature_folder(room, source, extractor, 16, "fp32") == room / old


def test_images_of_a_group_are_on_one_side() -> None:
    """And those of which each stands alone are divided as they always were."""
    families = np.arange(60) // 4
    labels = families % 3
    x = np.arange(60, dtype=np.float32)[:, None]
    train, test = probing.split(probing.Labelled(x, labels, ["a", "b", "c"], {}, families), 0)
    assert not set(train.families) & set(test.families)
    assert sorted([*train.features[:, 0], *test.features[:, 0]]) == list(range(60))
    assert len(test.labels) == 12
    _, alone = probing.split(probing.Labelled(x, labels, ["a", "b", "c"], {}, np.arange(60)), 0)
    expected = [np.random.default_rng(derive_seed(0, c)).permutation(np.flatnonzero(labels == c))[:4] for c in range(3)]
    assert alone.features[:, 0].tolist() == sorted(np.concatenate(expected).tolist())


def test_several_sets(room: Path) -> None:
    """A folder with train and val has both sides; test images may lack classes and have other numbers."""
    found = run(room, "--probe-with", "knn", sets=("both", "train"))
    assert found["sets"].keys() == {"both", "train"}
    knn = [one["metrics"]["knn"] for one in found["sets"].values()]
    assert found["metrics"]["knn"] == pytest.approx(sum(knn) / 2)
    x, y = pooled(room, "both/train")
    x_test, y_test = pooled(room, "both/val")
    assert knn[0] == pytest.approx(knn_accuracy(x, y, x_test, y_test + 1))


@pytest.mark.parametrize("method", ["clip", "plus"])
def test_zero_shot(method: str, room: Path) -> None:
    templates = ("one {}", "a {} here")
    found = run(room, "--probe-test", str(room / "test"), "--probe-templates", *templates, encoder=method)
    x, y = pooled(room, "test", method)
    encoder = SSLEncoder.from_pretrained(room / method)
    language = LanguageTower.from_pretrained(room / method / "language")
    with torch.inference_mode():
        images = F.normalize(encoder.project(x) if method == "clip" else language.project_images(x), dim=1)
        texts = [[language.encode([t.format(c.replace("_", " "))])[0] for t in templates] for c in CLASSES]
        right = 0
        for image, label in zip(images, y, strict=True):
            scores = [float(image @ F.normalize((a + b) / 2, dim=0)) for a, b in texts]
            right += int(np.argmax(scores)) == label
    assert found["metrics"]["zero_shot"] == pytest.approx(right / len(y), abs=1.5 / len(y))
    (room / "names.txt").write_text("\n".join(["one", "two", "three", "four", "five"]))
    other = run(room, "--probe-class-names", str(room / "names.txt"), "--probe-with", "zero-shot", encoder=method)
    assert other["metrics"].keys() == {"zero_shot"}


def test_an_interrupted_pass_goes_on(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.data.build._SAMPLES_PER_SHARD", 32)
    source = probing.open_labelled(room / "train")
    extractor = ModuleExtractor("encoder", SSLEncoder.from_pretrained(room / "encoder"))
    whole = probing.cached_features(source, extractor, root=tmp_path / "a").features
    forward, seen = ModuleExtractor.forward, [0]

    def stop(self: Any, x: torch.Tensor) -> Any:
        seen[0] += len(x)
        if seen[0] > 70:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(ModuleExtractor, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        probing.cached_features(source, extractor, root=tmp_path / "b")
    seen[0] = -1000
    assert np.array_equal(probing.cached_features(source, extractor, root=tmp_path / "b").features, whole)
    assert seen[0] < -1000 + 70


@pytest.mark.timeout(900)  # busy machines take long
def test_two_processes_give_the_figures_of_one(room: Path, tmp_path: Path) -> None:
    """Features are shared out; the first process probes, and all learn what is wrong."""
    flags = ["--probe", str(room / "train"), "--extractor", f"encoder:{room / 'encoder'}", "--device", "cpu",
             "--probe-epochs", "2", "--probe-episodes", "20", "--probe-learning-rates", "0.1", "0.5", "--probe-cache"]  # fmt: skip
    write_set(tmp_path / "bad", 0, 1)
    code = (
        "import json, sys; from rcg.scripts.eval import main; flags, cache, out, bad = json.loads(sys.argv[1]);"
        "main([*flags, cache, '--out', out]);"
        "main([*flags, cache, '--probe', bad])"
    )
    words = ["-c", code, json.dumps([flags, *(str(tmp_path / n) for n in ("two", "two.json", "bad"))])]
    port = str(20000 + (os.getpid() + 7) % 20000)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    running = [Forked(*words, env=os.environ | world | {"RANK": str(rank)}) for rank in range(2)]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [2, 2], said
    assert all("has a single image" in errors.splitlines()[-1] for _, errors in said)
    assert "linear" in said[0][0]
    assert not said[1][0].strip()
    main([*flags, str(tmp_path / "one"), "--out", str(tmp_path / "one.json")])
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one["metrics"] == two["metrics"]
    assert one["sets"]["train"]["linear"] == two["sets"]["train"]["linear"]
    (whole,), parts = (
        sorted(p for p in (tmp_path / n).glob("*/shard-*/features.npy") if len(np.load(p)) > 5) for n in ("one", "two")
    )
    assert [len(np.load(p)) for p in parts] == [64, 56]
    assert np.array_equal(np.load(whole), np.concatenate([np.load(p) for p in parts]))


def test_mistakes(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*flags: str, **how: Any) -> str:
        with pytest.raises(SystemExit) as stop:
            run(room, *flags, **how)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("rcg-eval: error: ")
        return error

    write_set(room / "sizes", 0, 2)
    write_set(room / "sizes", 9, 1, ("other",), side=20)
    write_set(room / "odd/train", 0, 1)
    write_set(room / "single", 0, 1)
    assert "--probe looks at features; leave out --generated" in said("--generated", "x")
    assert "leave out --metrics" in said("--metrics", "fid")
    assert "leave out --temperature" in said("--temperature", "2")
    assert "leave out --sweep-guidance" in said("--sweep-guidance", "2")
    assert "give one for each" in said("--probe-test", "x", "y")
    assert "--probe-templates: 'dog' must hold {}" in said("--probe-templates", "dog")
    assert "there is no folder" in said(sets=("nowhere",))
    assert "are the same images; test on others" in said("--probe-test", f"{room}/./train")
    assert "zero-shot needs" in said("--probe-with", "zero-shot")
    assert "few-shot episodes need 5 classes" in said("--probe-with", "few-shot")
    assert "give --image-size S" in said(sets=("sizes",))
    assert "do not say what to train" in said(sets=("odd",))
    assert "has a single image" in said(sets=("single",))
    assert "has no labels of two" in said(sets=("train/boat",))
    assert "have a class 'a_dog' that the training images lack" in said(
        "--probe-test", str(room / "test"), sets=("both/val",)
    )
    (room / "two.txt").write_text("one\ntwo\n")
    assert "2 names of classes are given" in said("--probe-class-names", str(room / "two.txt"))
    assert "leave it out" in said("--probe-features", "representation", "--extractor", "timm:resnet18")
    assert "is a folder" in said("--out", str(room))
    with pytest.raises(SystemExit):
        main(["--generated", "x", "--probe-epochs", "3"])
    assert "--probe-epochs is for --probe IMAGES" in capsys.readouterr().err
