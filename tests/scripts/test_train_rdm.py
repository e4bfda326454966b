"""`rcg-train-rdm` from the command line: from a cache, from images, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rcg import RepresentationMLP, SSLEncoder
from rcg.core.components import load_any, load_model, load_scheduler
from rcg.core.rng import Noise
from rcg.data.cache import Cache, CacheField, build_cache
from rcg.data.clusters import add_clusters, cluster_counts
from rcg.data.sources import open_source
from rcg.rdm.methods import METHODS, MODELS, SCHEDULERS, open_rdm
from rcg.rdm.protocol import Request
from rcg.rdm.recipes import MethodName
from rcg.rdm.sampling import sample_representations
from rcg.scripts.train_rdm import main

SPEC = "shapes:n=40,size=16"
WHOLE = [
    "--width", "16", "--depth", "1", "--steps", "3", "--batch-size", "8", "--eval-samples", "4", "--device", "cpu",
    "--precision", "fp32",
]  # fmt: skip
SMALL = [*WHOLE, "--held-out-share", "0.3"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders, a cache of each."""
    folder = tmp_path_factory.mktemp("rdm")
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    for name in ("one", "two"):
        encoder = SSLEncoder("vit_tiny_patch16_224", kwargs, 16, head_layers=1, head_dim=6)
        encoder.save_pretrained(folder / name)
        build_cache(
            open_source(SPEC), folder / f"{name}-cache", {"representations": CacheField(encoder, encoder)}, 16, views=2,
            progress=False,
        )  # fmt: skip
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("rcg-train-rdm: error: ")
    return message


def test_from_a_cache(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["--data", str(work / "one-cache"), "--encoder", str(work / "one"), "--out", str(out), *SMALL])
    rdm, scheduler = load_model(RepresentationMLP, out), load_scheduler(out)
    assert (rdm.config.representation_dim, rdm.config.width, rdm.config.num_classes) == (6, 16, 0)
    assert sample_representations(rdm, scheduler, 3).shape == (3, 6)
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert any("eval/rep_fd" in line and "eval/rep_fd_floor" in line for line in lines)


def test_from_images_class_conditional_with_a_preset(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(
        ["--config", "rdm-small", "--data", SPEC, "--val-data", "shapes:n=12,size=16,seed=1", "--encoder", str(work / "one"),
         "--out", str(out), *WHOLE, "--condition", "class", "--prediction-type", "v_prediction"]
    )  # fmt: skip
    rdm, scheduler = load_model(RepresentationMLP, out), load_scheduler(out)
    assert rdm.config.num_classes > 1
    assert scheduler.config.prediction_type == "v_prediction"
    assert sample_representations(rdm, scheduler, 2, class_labels=[0, 1], guidance_scale=2.0).shape == (2, 6)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("flow", ["--width", "16", "--depth", "1", "--time-std", "0.8"]),
        ("codes", ["--width", "16", "--depth", "1", "--num-heads", "2", "--num-codes", "8", "--positions", "3"]),
    ],
)
def test_other_methods(work: Path, tmp_path: Path, method: MethodName, own: list[str]) -> None:
    out = tmp_path / "out"
    rest = SMALL[4:]
    main(
        ["--method", method, "--data", str(work / "one-cache"), "--condition", "class", "--out", str(out), *own, *rest]
    )
    generator = open_rdm(load_any(MODELS, out), load_scheduler(out, *SCHEDULERS))
    config = generator.model.config
    assert isinstance(generator.model, METHODS[method].model)
    assert config.representation_dim == 6
    assert config.num_classes > 1
    assert config.standardized  # found in the cache: this encoder standardises
    drawn = generator.draw(Request(Noise([1, 2]), torch.tensor([0, 1]), 3, 2.0))
    torch.testing.assert_close(drawn.std(1), torch.ones(2))
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert any("eval/rep_fd" in line and "eval/rep_fd_floor" in line for line in lines)
    assert any("eval/rep_fd_coded" in line for line in lines) == (method == "codes")


def test_clusters_take_the_place_of_classes(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    shutil.copytree(work / "one-cache", cache)
    lacking = refused(capsys, "--data", cache, "--condition", "cluster", "--out", out, *SMALL)
    assert "holds no clusters" in lacking
    add_clusters(cache, 3)
    other = refused(capsys, "--data", cache, "--val-data", cache, "--condition", "cluster", "--out", out, *WHOLE)
    assert "clusters of its own" in other
    main(["--data", str(cache), "--condition", "cluster", "--out", str(out), *SMALL])
    rdm, counts = load_model(RepresentationMLP, out), cluster_counts(Cache(cache))
    assert (rdm.config.num_classes, rdm.config.label_counts) == (3, counts)
    assert sum(counts) == len(Cache(cache))
    assert sample_representations(rdm, load_scheduler(out), 2, class_labels=[0, 2], guidance_scale=2.0).shape == (2, 6)


def test_flags_of_another_method_are_unknown(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, flag in (("ddpm", "--positions"), ("flow", "--prediction-type"), ("codes", "--time-shift")):
        with pytest.raises(SystemExit) as caught:
            main(["--method", method, "--data", str(work / "one-cache"), "--out", str(tmp_path / "out"), flag, "1"])
        assert caught.value.code == 2
        assert flag in capsys.readouterr().err
    too_many = refused(
        capsys, "--method", "codes", "--data", work / "one-cache", "--out", tmp_path / "o", *SMALL, "--num-heads", "2"
    )
    assert "256 codes cannot be fitted to" in too_many


def test_what_cannot_be_used_is_one_sentence(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    cache = work / "one-cache"
    assert "add --encoder DIR" in refused(capsys, "--data", SPEC, "--out", out, *SMALL)
    wrong = refused(capsys, "--data", cache, "--encoder", work / "two", "--out", out, *SMALL)
    assert "computed by another SSLEncoder" in wrong
    other = refused(capsys, "--data", cache, "--val-data", work / "two-cache", "--out", out, *WHOLE)
    assert "computed by another encoder" in other
    both = refused(capsys, "--data", cache, "--val-data", SPEC, "--encoder", work / "one", "--out", out, *WHOLE)
    assert "must both be caches" in both
    assert "--held-out-share has no effect beside --val-data" in refused(
        capsys, "--data", cache, "--val-data", cache, "--out", out, *SMALL
    )
    sized = refused(capsys, "--data", cache, "--size", "16", "--out", out, *SMALL)
    assert "--size is for images" in sized
    dropped = refused(capsys, "--data", cache, "--class-dropout", "0.2", "--out", out, *SMALL)
    assert "--class-dropout is for --condition class or cluster" in dropped
    assert "set --held-out-share 0" in refused(
        capsys, "--data", cache, "--out", out, *SMALL, "--held-out-share", "0.01"
    )
    assert "absent" in refused(capsys, "--data", tmp_path / "absent", "--out", out, *SMALL)
    assert "--held-out-share is 1.0" in refused(capsys, "--data", cache, "--out", out, *SMALL, "--held-out-share", "1")
    (tmp_path / "flat").mkdir()
    for i in range(4):
        open_source(SPEC).image(i).save(tmp_path / "flat" / f"{i}.png")
    unlabelled = refused(
        capsys, "--data", tmp_path / "flat", "--encoder", work / "one", "--out", out, *SMALL, "--condition", "class"
    )
    assert "has no class labels" in unlabelled
    assert not out.exists()
