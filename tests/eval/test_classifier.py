"""Classifiers on real, generated and mixed sets: the recipe, the split, the parts of sets, what is written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.components import load_model
from rcg.core.errors import UserError
from rcg.eval.classifier import (
    ImageClassifier,
    Pictures,
    Recipe,
    accuracy,
    hold_out,
    is_resnet,
    train_classifier,
    views,
)
from rcg.eval.labelled import LabelledSet, joined, part_of
from rcg.eval.usefulness import Amount, Sets, Study, membership, nearest_generated, summarise

SIDE = 16
COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40)}
QUICK = Recipe(arch="resnet10t", arch_kwargs={"channels": [8, 8, 8, 8]}, steps=30, batch_size=16, checks=3, lr=0.05)


def paint(folder: Path, count: int, seed: int, classes: Any = COLOURS, flat: bool = False) -> Path:
    """Noisy pictures of a class's colour."""
    rng = np.random.default_rng(seed)
    for name in classes:
        for i in range(count):
            array = np.clip(np.array(COLOURS[name]) + rng.normal(0, 40, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            file = folder / (f"{name}-{i:03d}.png" if flat else f"{name}/{i:03d}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    return folder


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sets")
    for seed, (name, count) in enumerate({"real": 10, "fake": 20, "test": 8}.items()):
        paint(path / name, count, seed)
    return path


@pytest.fixture
def sets(room: Path) -> Sets:
    real = LabelledSet(room / "real", "training")
    names = real.class_names
    return Sets(LabelledSet(room / "test", "held-out", names), real, [LabelledSet(room / "fake", "generated", names)])


def test_it_learns_and_is_the_same_again(sets: Sets, tmp_path: Path) -> None:
    assert sets.real is not None
    made = [train_classifier(sets.real.pictures(), sets.test.class_names, SIDE, QUICK, 3) for _ in range(2)]
    shares = [accuracy(m.model, sets.test.pictures()) for m in made]
    assert shares[0] == shares[1] > 0.8
    for name, value in made[0].model.state_dict().items():
        assert torch.equal(value, made[1].model.state_dict()[name]), name
    assert made[0].validated_on == 3
    assert made[0].best_step in (10, 20, 30)
    made[0].model.save_pretrained(tmp_path / "c")
    again = load_model(ImageClassifier, tmp_path / "c")
    images = torch.rand(2, 3, SIDE, SIDE)
    torch.testing.assert_close(again(images), made[0].model(images))
    assert list(again.config.class_names) == ["blue", "green", "red"]


def test_the_state_is_chosen_by_held_out_training_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test images play no part: they are not even an argument. Held-out ones are never trained on."""
    labels = np.repeat([0, 1], 20)
    seen: list[np.ndarray] = []

    def pixels(rows: np.ndarray) -> torch.Tensor:
        seen.append(rows)
        return torch.zeros(len(rows), 3, SIDE, SIDE, dtype=torch.uint8)

    found = {1: 0.9, 2: 0.1, 3: 0.9}
    calls = iter(found.values())
    judged: list[np.ndarray] = []

    def judge(model: Any, pictures: Any, rows: np.ndarray, **_: Any) -> float:
        judged.append(rows)
        return next(calls)

    monkeypatch.setattr("rcg.eval.classifier.accuracy", judge)
    made = train_classifier(Pictures(pixels, labels), ["a", "b"], SIDE, QUICK, 0)
    held = hold_out(labels, 0.1, 0)
    assert all(np.array_equal(rows, held) for rows in judged)
    assert not set(np.concatenate(seen)) & set(held)
    assert (made.validation, made.best_step) == (0.9, 30)


def test_held_out_images_are_of_each_class_and_of_those_allowed() -> None:
    labels = np.repeat([0, 1, 2], [20, 10, 2])
    held = hold_out(labels, 0.1, 5)
    assert np.bincount(labels[held]).tolist() == [2, 1, 1]
    assert not np.array_equal(held, hold_out(labels, 0.1, 6))
    real = np.zeros(32, bool)
    real[[0, 1, 20, 21, 30, 31]] = True
    assert real[hold_out(labels, 0.5, 5, real)].all()
    with pytest.raises(UserError, match="single training image"):
        hold_out(np.array([0, 0, 1]), 0.1, 0)


def test_views_are_crops_and_flips_of_the_image() -> None:
    image = torch.arange(3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE).to(torch.uint8)
    some = views(image.expand(40, -1, -1, -1), 1, 0.125)
    assert some.shape == (40, 3, SIDE, SIDE)
    assert len({bytes(x.numpy()) for x in some}) > 20
    wide = torch.nn.functional.pad(image.float(), (2,) * 4, mode="reflect").to(torch.uint8)[0]
    crops = [wide[:, top : top + SIDE, left : left + SIDE] for top in range(5) for left in range(5)]
    possible = {bytes(x.contiguous().numpy()) for crop in crops for x in (crop, crop.flip(2))}
    assert {bytes(x.contiguous().numpy()) for x in some} <= possible
    assert torch.equal(some, views(image.expand(40, -1, -1, -1), 1, 0.125))
    assert any(torch.equal(x, image[0]) for x in views(image.expand(4, -1, -1, -1), 0, 0.0))


def test_stems_and_architectures() -> None:
    small = ImageClassifier("resnet18", ["a", "b"], 32, stem="small")
    assert small.network.conv1.weight.shape == (64, 3, 3, 3)
    maps = small.network.forward_features(torch.zeros(1, 3, 32, 32))
    assert maps.shape[2:] == (4, 4)
    half = ImageClassifier("resnet18", ["a", "b"], 32, {"channels": [8, 8, 8, 8]}, "half").network
    assert half.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 2, 2)
    vit = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    assert ImageClassifier("vit_tiny_patch16_224", ["a", "b"], 32, vit)(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    names = ("resnet18", "resnet18.a1_in1k", "resnet18.no_such_weights", "vit_tiny_patch16_224", "resnet81")
    assert [is_resnet(name) for name in names] == [True, True, True, False, False]
    for arguments, says in (
        (("resnet81", ["a", "b"], 32), "no architecture 'resnet81'"),
        (("resnet18.no_such_weights", ["a", "b"], 32), "Invalid pretrained tag"),
        (("resnet18", ["a"], 32), "two classes"),
        (("resnet18", ["a", "b"], 32, {"width": 3}), "cannot be built"),
        (("vit_tiny_patch16_224", ["a", "b"], 32, vit | {"num_heads": 0}), "cannot be built"),
        (("vit_tiny_patch16_224", ["a", "b"], 32, vit, "small"), "for ResNets"),
    ):
        with pytest.raises(UserError, match=says):
            ImageClassifier(*arguments)
    for arch, how in (("convnext_atto", {}), ("vgg11", {}), ("resnet18", {"layers": [2]})):
        model = ImageClassifier(arch, ["a", "b"], 8, how)
        with pytest.raises(UserError, match=f"timm's '{arch}' cannot take images of 8 px"):
            model.check()
        assert model.training == ImageClassifier("resnet10t", ["a", "b"], 32).training


def test_parts_are_balanced_and_a_smaller_one_is_in_a_larger_one(sets: Sets) -> None:
    assert sets.real is not None
    labels = sets.real.labels
    small, large = part_of(labels, [2, 2, 2], 4), part_of(labels, [5, 5, 5], 4)
    assert np.bincount(labels[small]).tolist() == [2, 2, 2]
    assert set(small) < set(large)
    assert not np.array_equal(small, part_of(labels, [2, 2, 2], 5))
    with pytest.raises(UserError, match="11 images of class number 0"):
        part_of(labels, [11, 1, 1], 0)
    both = joined([(sets.real, small), (sets.generated[0], np.array([0, 59]))])
    picked = both.pixels(np.array([7, 0, 6]))
    assert torch.equal(picked[0], sets.generated[0].pixels(np.array([59]))[0])
    assert torch.equal(picked[1], sets.real.pixels(small[:1])[0])
    sets.real.load(progress=False)
    assert torch.equal(both.pixels(np.array([7, 0, 6])), picked)


def test_a_study_is_written_down_and_gone_on_with(sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    amounts = [Amount(times=1), Amount(times=2), Amount(0.5, times=1)]
    quick = Recipe(arch="resnet10t", arch_kwargs={"channels": [8, 8, 8, 8]}, steps=2, batch_size=8, checks=1)

    def study() -> Study:
        return Study(sets, quick, out=tmp_path / "a.json", progress=False)

    stopped = 0

    def stop(run: dict[str, Any]) -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study().run(["real", "generated", "mixed"], amounts, [0, 1], on_run=stop)
    assert len(json.loads((tmp_path / "a.json").read_text())["runs"]) == 3
    trained: list[int] = []
    real_train = train_classifier

    def counting(*given: Any, **more: Any) -> Any:
        trained.append(1)
        return real_train(*given, **more)

    monkeypatch.setattr("rcg.eval.usefulness.train_classifier", counting)
    report = study().run(["real", "generated", "mixed"], amounts, [0, 1])
    rows = {row["name"]: row for row in report["summary"]}
    assert list(rows) == [
        "accuracy-real", "accuracy-real-50%", "accuracy-generated-1x", "accuracy-generated-2x", "accuracy-generated-50%-1x",
        "accuracy-mixed-1x", "accuracy-mixed-2x", "accuracy-mixed-50%-1x",
    ]  # fmt: skip
    assert len(trained) == 16 - 3
    assert (rows["accuracy-mixed-2x"]["real"], rows["accuracy-mixed-2x"]["generated"]) == (30, 60)
    assert (rows["accuracy-mixed-50%-1x"]["real"], rows["accuracy-mixed-50%-1x"]["generated"]) == (15, 15)
    assert all(row["seeds"] == 2 and row["deviation"] is not None for row in rows.values())
    again = study().run(["real", "generated", "mixed"], amounts, [0, 1])
    assert len(trained) == 13
    assert again == report
    with pytest.raises(UserError, match="other recipe"):
        Study(sets, QUICK, out=tmp_path / "a.json")
    one, other = study(), study()  # two jobs on one file, as those of an array of seeds
    one.run(["real"], amounts[:1], [2], {"extractor": "x", "class_coverage": 0.5})
    held = other.run(["real"], amounts[:1], [3])
    assert len(held["runs"]) == 16 + 2
    assert held["class_coverage"] == 0.5
    assert "class_coverage" not in study().run(["real"], amounts[:1], [3], {"extractor": "y"})
    assert len(study().runs) == 18
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match="something else"):
        Study(sets, QUICK, out=tmp_path / "b.json")


def test_shots_and_what_cannot_be(sets: Sets, tmp_path: Path) -> None:
    quick = Recipe(arch="resnet10t", arch_kwargs={"channels": [8, 8, 8, 8]}, steps=1, batch_size=8, checks=1)
    report = Study(sets, quick, progress=False).run(["real"], [Amount(shots=3)], [0], save=tmp_path / "c")
    assert report["summary"][0]["name"] == "accuracy-real-3shot"
    assert report["summary"][0]["real"] == 9
    assert load_model(ImageClassifier, tmp_path / "c").config.arch == "resnet10t"
    alone = Sets(sets.test, None, sets.generated)
    found = Study(alone, quick, progress=False).run(["generated"], [Amount(0.5)], [0])["summary"]
    assert found[0]["generated"] == 30
    for study, kinds, amount, says in (
        (Study(alone, quick), ["mixed"], Amount(), "needs --train-data"),
        (Study(sets, quick), ["generated"], Amount(times=3), "30 images of class number 0 are needed"),
        (Study(sets, quick), ["real"], Amount(shots=1), "at least 2"),
        (Study(sets, quick), ["real"], Amount(shots=11), "has 10"),
    ):
        with pytest.raises(UserError, match=says):
            study.run(kinds, [amount], [0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing to train on"):
        Study(Sets(sets.test), quick)


def test_the_classifier_that_is_kept_is_that_of_the_study(sets: Sets, tmp_path: Path) -> None:
    quick = Recipe(arch="resnet10t", arch_kwargs={"channels": [8, 8, 8, 8]}, steps=1, batch_size=8, checks=1)
    kept, held = tmp_path / "c", tmp_path / "a.json"

    def run(kind: Any, out: Path | None) -> bytes:
        Study(sets, quick, out=out, progress=False).run([kind], [Amount()], [0], save=kept)
        return (kept / "diffusion_pytorch_model.safetensors").read_bytes()

    first = run("real", held)
    assert run("generated", None) != first  # and no longer the one before
    assert run("real", None) == first
    (kept / "mine.txt").write_text("mine")
    changed = (kept / "config.json").stat().st_mtime_ns
    assert run("real", held) == first
    assert (kept / "config.json").stat().st_mtime_ns == changed  # what --out holds is not done again
    assert run("generated", None) != first
    assert run("real", held) == first  # another study had put its own there
    (kept / "config.json").unlink()
    assert run("real", held) == first
    assert (kept / "mine.txt").exists()
    (kept / "config.json").write_text('{"_class_name": "SSLEncoder"}')
    with pytest.raises(UserError, match="holds another model"):
        run("real", held)


def test_summary_is_mean_and_deviation() -> None:
    run = {"set": "real", "share": 1.0, "shots": None, "times": None, "real": 4, "generated": 0}
    rows = summarise([{**run, "accuracy": a} for a in (0.5, 0.7)])
    assert rows[0]["accuracy"] == pytest.approx(0.6)
    assert rows[0]["deviation"] == pytest.approx(np.std([0.5, 0.7], ddof=1))


# ---------------------------------------------------------------------- labels


def test_labels_come_from_folders_manifests_and_the_settings_of_samples(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["blue", "green", "red"]
    flat = paint(tmp_path / "flat", 2, 0, flat=True)
    with pytest.raises(UserError, match="no classes"):
        LabelledSet(flat, "generated", names)
    lines = [json.dumps({"file": p.name, "class": p.name.split("-")[0]}) for p in flat.glob("*.png")]
    (flat / "images.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match="does not name"):
        LabelledSet(flat, "generated", names)
    (flat / "images.jsonl").write_text("\n".join(lines))
    real = LabelledSet(room / "real", "training")
    old = f"{real.images.source.fingerprint} 16×16 none {names}".encode() + np.arange(30).astype("<i8").tobytes()
    assert real.fingerprint == hashlib.sha256(old).hexdigest()[:16]  # what studies of such sets hold goes on
    assert LabelledSet(flat, "generated", names).labels.tolist() == [0, 0, 1, 1, 2, 2]
    drawn = tmp_path / "drawn"
    for i, p in enumerate(sorted(flat.glob("*.png"))):
        drawn.mkdir(exist_ok=True)
        (drawn / f"{i:06d}.png").write_bytes(p.read_bytes())
    (drawn / "sampling.json").write_text(json.dumps({"settings": {"class_labels": [2, 0]}}))
    before = LabelledSet(drawn, "generated", names)
    assert before.labels.tolist() == [2, 0, 2, 0, 2, 0]
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("drawn", "flat"):
        assert (
            LabelledSet(f"~/{name}", "generated", names).fingerprint
            == LabelledSet(tmp_path / name, "generated", names).fingerprint
        )
    (drawn / "sampling.json").write_text(json.dumps({"settings": {"class_labels": [2, 1]}}))
    assert LabelledSet(drawn, "generated", names).fingerprint != before.fingerprint
    (drawn / "sampling.json").write_text(json.dumps({"settings": {"class_labels": [3]}}))
    with pytest.raises(UserError, match="class number 3"):
        LabelledSet(drawn, "generated", names)
    numbers = paint(tmp_path / "numbers", 1, 0)
    for i, name in enumerate(names):
        (numbers / name).rename(numbers / str(2 - i))
    assert LabelledSet(numbers, "generated", names).labels.tolist() == [0, 1, 2]
    (numbers / "0").rename(numbers / "cat")
    with pytest.raises(UserError, match="a class '1'"):
        LabelledSet(numbers, "generated", names)


def test_labels_of_an_npz_that_may_be_names_or_numbers(tmp_path: Path) -> None:
    def npz(*labels: int) -> Path:
        file = tmp_path / f"{labels[0]}-{len(labels)}.npz"
        np.savez(file, arr_0=np.zeros((len(labels), 16, 16, 3), np.uint8), arr_1=np.array(labels))
        return file

    from_zero, from_one = [str(i) for i in range(3)], [str(i) for i in range(1, 4)]
    assert LabelledSet(npz(0, 2), "generated", from_zero).labels.tolist() == [0, 2]
    assert LabelledSet(npz(0, 2), "generated", from_one).labels.tolist() == [0, 2]  # 0 is no name
    assert LabelledSet(npz(3, 1), "generated", from_one).labels.tolist() == [2, 0]  # 3 is no number
    with pytest.raises(
        UserError, match=r"may be names of classes or their numbers .1 is one's name and the number of '2'"
    ):
        LabelledSet(npz(1, 2), "generated", from_one)
    real = LabelledSet(npz(1, 2, 3), "training")
    assert real.numbered
    assert LabelledSet(npz(1, 2), "generated", real.class_names, numbered=True).labels.tolist() == [0, 1]


# ---------------------------------------------------------------------- neighbours


class Means(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_coverage_and_membership_as_by_hand(sets: Sets) -> None:
    from rcg.eval.extractors import ModuleExtractor

    found = nearest_generated(sets, ModuleExtractor("means", Means()))
    every = [
        each.pixels(np.arange(len(each))).double().mean(dim=(2, 3)) / 255 for each in (sets.test, sets.generated[0])
    ]
    distances, numbers = torch.cdist(*every).min(dim=1)
    assert found.test_distances == pytest.approx(distances.numpy(), abs=1e-6)
    expected = (sets.generated[0].labels[numbers.numpy()] == sets.test.labels).mean()
    assert found.class_coverage() == expected == 1.0
    assert len(found.member_distances) == 30


def test_membership_by_the_definition() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(0, 1, 300).round(1), rng.normal(1, 1, 200).round(1)
    nearer = (members[:, None] < others).mean() + 0.5 * (members[:, None] == others).mean()
    found = membership(members, others)
    assert found["auc"] == pytest.approx(nearer)
    assert 0.01 < found["auc_error"] < 0.03
    threshold = np.sort(others)[2]
    assert found["tpr_at_1_percent"] == pytest.approx((members < threshold).mean())
    same = membership(others, others)
    assert same["auc"] == pytest.approx(0.5)
    with pytest.raises(UserError, match="training images"):
        membership(members[:0], others)
