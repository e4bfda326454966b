"""What the checks of data, tokenizers and encoders find where it was planted."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.check.data import check_data
from rcg.check.encoder import Encoded, check_encoder, encode
from rcg.check.findings import Part, advice, as_json, in_lines
from rcg.check.generation import check_rdm
from rcg.check.tokenizer import Reconstructions, check_tokenizer
from rcg.core.errors import UserError
from rcg.data.sources import open_source
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.frechet import frechet_distance
from rcg.eval.images import ImageSet, StreamImages
from rcg.image_gen.tokenizers.codec import codec_of
from rcg.image_gen.tokenizers.vq_losses import perceptual_distance
from tests.components import DIM, get_dummy_components, get_dummy_pipeline
from tests.data.shards import picture as png
from tests.image_gen.latent_dit.models import autoencoder_tiny
from tests.recipe.test_look import picture

CPU = torch.device("cpu")


def verdicts(part: Part) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in part.findings}


def images(count: int = 24, size: int = 16) -> ImageSet:
    return ImageSet(open_source(f"shapes:n={count},size={size}"), "data")


def test_planted_faults_of_data(tmp_path: Path) -> None:
    for i in range(150):
        name = "many" if i < 140 else "few"
        (tmp_path / name).mkdir(exist_ok=True)
        picture(i).save(tmp_path / name / f"{i:03d}.png")
    picture(3).save(tmp_path / "few" / "copy.png")
    picture(4).resize((96, 80)).save(tmp_path / "few" / "large.png")
    (tmp_path / "few" / "broken.png").write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = check_data(open_source(tmp_path, progress=False))
    figures = part.figures
    assert (figures["images"], figures["unusable files"], figures["classes"]) == (152, 1, 2)
    assert (figures["exact duplicates"], figures["near duplicates"]) == (1, 1)
    assert {frozenset(Path(n).name for n in pair.split(" = ")) for pair in figures["pairs"]} == {
        frozenset(("003.png", "copy.png")),
        frozenset(("004.png", "large.png")),
    }
    assert (figures["smallest class"], figures["largest class"]) == (12, 140)
    text = advice([part])
    for word in ("152 images are few", "1 file cannot be used", "1 exact and 1 near", "12 to 140", "What to do"):
        assert word in text, word
    assert "broken.png" in part.notes[0]


def test_good_data_and_too_little() -> None:
    part = check_data(open_source("shapes:n=2100,size=16"))
    assert verdicts(part)["there are 2,100 images"] == "good"
    assert "bad" in verdicts(check_data(open_source("shapes:n=12,size=16"))).values()


@pytest.mark.filterwarnings("ignore:.*nearly black")
def test_twelve_bits_in_files_of_sixteen_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, levels in (("12", 1 << 12), ("16", 1 << 16)):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, levels, (16, 16)).astype(np.uint16)).save(tmp_path / name / f"{i}.png")
    dark, whole = (advice([check_data(open_source(tmp_path / name, progress=False))]) for name in ("12", "16"))
    assert "Not good: 12 images are too few to learn from; 12 of 12 images are nearly black" in dark
    assert "multiply these by 4, 16 or 64" in dark
    assert "black" not in whole


def test_reconstruction_errors_are_those_of_the_images() -> None:
    parts = get_dummy_components()
    part = check_tokenizer(
        parts["tokenizer"], images(), source="t", device=CPU, extractor=ModuleExtractor("encoder", parts["encoder"]),
        maps=parts["encoder"],
    )  # fmt: skip
    pixels = torch.cat(list(images().batches(7)))
    unit = pixels.float() / 255
    with torch.no_grad():
        made = parts["tokenizer"].decode(parts["tokenizer"].encode(unit))
        a, b = parts["encoder"](unit).numpy(), parts["encoder"]((made * 255).round() / 255).numpy()
    errors = (made - unit).square().mean(dim=(1, 2, 3))
    assert part.figures["MSE"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert part.figures["PSNR, dB"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)
    assert part.figures["reconstruction frechet-encoder"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    maps = parts["encoder"].feature_maps
    with torch.no_grad():
        each = [float(perceptual_distance(maps(a[None]), maps(b[None]))) for a, b in zip(made, unit, strict=True)]
    assert part.figures["perceptual distance"] == pytest.approx(np.mean(each), rel=1e-5)
    assert part.figures["tokens"] == 24 * 16
    assert part.findings[0].verdict == "bad"


def test_images_pass_through_the_perceptual_encoder_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, sizes = get_dummy_components(), list[int]()
    maps = parts["encoder"].feature_maps
    monkeypatch.setattr(parts["encoder"], "feature_maps", lambda x: sizes.append(len(x)) or maps(x))
    check_tokenizer(parts["tokenizer"], images(70), source="t", device=CPU, maps=parts["encoder"])
    assert sizes == [64] * 4  # of 16 px; two batches, images and reconstructions


class Perfect(torch.nn.Module):
    """A codec that loses nothing."""

    field, factor, image_size = "latents", 1, None

    def __init__(self) -> None:
        super().__init__()
        self.model = self

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    decode = encode


def test_a_perfect_tokenizer_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.check.tokenizer.codec_of", lambda model: model)
    encoder = ModuleExtractor("encoder", get_dummy_components()["encoder"])
    part = check_tokenizer(Perfect(), images(), source="t", device=CPU, extractor=encoder)
    assert part.figures["PSNR, dB"] == pytest.approx(100)
    assert part.figures["reconstruction frechet-encoder"] == pytest.approx(0, abs=1e-6)
    assert part.figures["distance ratio"] == pytest.approx(1)
    assert "gives these images back at 100.0 dB" in advice([part])


def test_codebook_use_and_latents() -> None:
    tokenizer = get_dummy_components()["tokenizer"]
    tokenizer.quantize.embedding.weight.data[3:] = 100  # out of reach of every latent
    part = check_tokenizer(tokenizer, images(), source="t", device=CPU)
    assert part.figures["codes used"] <= 3 / 32
    assert part.figures["perplexity"] <= 3.001
    assert any("codebook is idle" in what for what in verdicts(part))
    assert "rFID is left out" in part.notes[0]
    few = check_tokenizer(tokenizer, images(8), source="t", device=CPU)
    assert any("tokens are few" in note for note in few.notes)
    latents = check_tokenizer(autoencoder_tiny(), images(), source="t", device=CPU)
    codec = codec_of(autoencoder_tiny())
    with torch.no_grad():
        z = codec.encode(torch.cat(list(images().batches(24))).float() / 255)
    assert latents.figures["latents, deviation"] == pytest.approx(float(z.std(correction=0)), rel=1e-3)


def test_the_batch_does_not_matter() -> None:
    codec = codec_of(get_dummy_components()["tokenizer"])
    sums = []
    for size in (5, 24):
        passed = Reconstructions(images(), codec, CPU)
        made = torch.cat(list(passed.batches(size)))
        sums.append((made, passed.errors, passed.counts.tolist()))
    assert torch.equal(sums[0][0], sums[1][0])
    assert sums[0][1:] == sums[1][1:]


def encoded(representations: np.ndarray, labels: np.ndarray | None = None, **changes: Any) -> Encoded:
    n, rng = len(representations), np.random.default_rng(5)
    given: dict[str, Any] = {
        "representations": representations.astype(np.float32),
        "mirrored": representations.astype(np.float32),
        "thumbnails": rng.normal(size=(n, 12)).astype(np.float32),
        "hashes": rng.random((n, 128)) < 0.5,
        "labels": labels,
        "families": np.arange(n),
    }
    return Encoded(**(given | changes))


def test_an_encoder_that_knows_the_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    x = 3 * rng.normal(size=(4, 24))[labels] + rng.normal(size=(200, 24))
    part = check_encoder(encoded(x, labels), source="e")
    assert part.figures["k-NN accuracy"] > 0.95
    assert part.figures["linear probe"] > 0.95
    assert part.figures["k-NN accuracy of pixels"] < 0.5
    assert part.figures["probe images (train, test)"] == [150, 50]
    ignorant = check_encoder(encoded(rng.normal(size=(200, 24)), labels), source="e")
    assert any("no more than the pixels know" in what and v == "bad" for what, v in verdicts(ignorant).items())


def test_images_of_a_group_are_on_one_side_of_a_probe() -> None:
    """Three images of each caption, with labels that nothing can tell: only siblings among the training images could."""
    rng, each = np.random.default_rng(0), np.arange(300) // 3
    x = rng.normal(size=(100, 24))[each] + 0.01 * rng.normal(size=(300, 24))
    labels = rng.integers(0, 5, 100)[each]
    alone, divided = (
        check_encoder(encoded(x, labels, families=f), source="e").figures["k-NN accuracy"]
        for f in (np.arange(300), each)
    )
    assert alone > 0.6
    assert divided < 0.4


def test_an_encoder_that_is_collapsed() -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(100, 1)) @ rng.normal(size=(1, 24)) + 1e-3 * rng.normal(size=(100, 24))
    part = check_encoder(encoded(line), source="e")
    assert part.figures["effective dimension (participation ratio)"] < 1.1
    assert part.figures["of different pictures"] > 50
    assert "bad" in verdicts(part).values()
    assert "no labels" in part.notes[0]
    dead = rng.normal(size=(100, 24))
    dead[:, 5:20] = 1.0
    assert any(
        "15 of the encoder's 24 dimensions are dead" in what
        for what in verdicts(check_encoder(encoded(dead), source="e"))
    )


def test_copies_of_equal_pictures_are_no_fault() -> None:
    rng = np.random.default_rng(0)
    x, hashes = rng.normal(size=(100, 24)), rng.random((100, 128)) < 0.5
    x[50:], hashes[50:] = x[:50], hashes[:50]
    part = check_encoder(encoded(x, hashes=hashes), source="e")
    assert (part.figures["copies in representation space"], part.figures["of different pictures"]) == (50, 0)


def test_mirrored_images_that_are_not_found() -> None:
    rng = np.random.default_rng(0)
    part = check_encoder(encoded(rng.normal(size=(100, 24)), mirrored=rng.normal(size=(100, 24))), source="e")
    assert part.figures["mirrored images found again"] < 0.2
    assert any("finds only" in what and v == "bad" for what, v in verdicts(part).items())


def test_encoding_looks_at_every_image_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen, passes = get_dummy_components()["encoder"], images(10), list[int]()
    decoded = seen.batches
    monkeypatch.setattr(seen, "batches", lambda size: passes.append(size) or decoded(size))
    found = encode(ModuleExtractor("encoder", encoder), seen, CPU)
    assert len(passes) == 2
    pixels = torch.cat(list(images(10).batches(10))).float() / 255
    with torch.no_grad():
        assert np.allclose(found.representations, encoder(pixels).numpy(), atol=1e-5)
        assert np.allclose(found.mirrored, encoder(pixels.flip(3)).numpy(), atol=1e-5)
    assert found.labels is not None
    assert (len(found.labels), found.thumbnails.shape, found.hashes.shape) == (10, (10, 192), (10, 128))
    with pytest.raises(UserError, match="at least 8"):
        check_encoder(encoded(np.eye(4)), source="e")


def test_few_images_cost_the_tokenizer_one_figure() -> None:
    parts = get_dummy_components()
    judge = ModuleExtractor("encoder", parts["encoder"])
    part = check_tokenizer(parts["tokenizer"], images(3), source="t", device=CPU, extractor=judge)
    assert "from 4 images on" in part.notes[0]
    assert part.figures["images"] == 3
    assert part.figures["reconstruction frechet-encoder"] >= 0
    assert "distance ratio" not in part.figures


def test_few_images_leave_nothing_to_compare_an_rdm_with() -> None:
    for count in (1, 3):
        with pytest.raises(UserError, match=f"at least 4 images; there are {count}"):
            check_rdm(get_dummy_pipeline(), np.ones((count, DIM), np.float32), source="p")


def test_repeated_images_of_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, number in (("a.png", 0), ("b.png", 1), ("c.png", 0)):
            archive.writestr(name, png(number))
    (pair,) = check_data(open_source(tmp_path / "p.zip", progress=False)).figures["pairs"]
    assert set(pair.split(" = ")) == {"a.png", "c.png"}


def test_the_advice_is_one_paragraph() -> None:
    a, b = Part("data", "x"), Part("encoder", "y", {"share": 0.5, "list": [1, 2], "none": None}, notes=["Note."])
    a.say("good", "one")
    b.say("bad", "two", "do this")
    b.say("doubtful", "three", "do that")
    assert advice([a, b]) == "Good: one. Doubtful: three. Not good: two. What to do: do this; do that."
    assert advice([a]).endswith("Nothing that was looked at speaks against going on.")
    assert [p["name"] for p in as_json([a, b])["parts"]] == ["data", "encoder"]
    lines = in_lines([b])
    assert lines[0] == "encoder (y)"
    assert "  list   1, 2" in lines
    assert "  Note." in lines


def test_streams_without_sizes_are_no_matter() -> None:
    codec = codec_of(get_dummy_components()["tokenizer"])
    passed = Reconstructions(StreamImages([torch.zeros(2, 3, 16, 16, dtype=torch.uint8)], 2), codec, CPU)
    assert len(next(iter(passed.batches(2)))) == passed.count() == 2
