"""Publishing and loading, against a local server that speaks the Hub's protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from rcg import RCGPipeline, UserError
from rcg.core.card import describe
from rcg.core.pictures import make_grid, save_png
from rcg.hub import CardInfo, _one_sentence, download_folder, figures, model_card, push_folder, read_metrics
from rcg.image_gen.families import FAMILIES
from rcg.image_gen.recipes import Arch
from rcg.rdm.methods import METHODS
from tests.components import CLASSES, get_dummy_pipeline
from tests.fake_hub import FakeHub

REPORT: dict[str, Any] = {
    "format": 1,
    "metrics": {"fid": 12.345678, "isc": {"mean": 3.5, "std": 0.1}, "kid": float("nan")},
    "counts": {"generated": 5000, "reference": 10000},
    "extractor": {"name": "inception", "weights": "abc"},
}


def _grid(tmp_path: Path) -> Path:
    save_png(tmp_path / "samples.png", make_grid(get_dummy_pipeline()(batch_size=2).images))
    return tmp_path / "samples.png"


def test_push_and_load_back(hub: type[FakeHub], tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    address = pipe.push_to_hub(
        "user/tiny", private=True, metrics=REPORT, grid=_grid(tmp_path), dataset="user/pictures", license="mit"
    )
    assert "/user/tiny/commit/" in address
    assert hub.private == {"user/tiny": True}
    stored = hub.repos["user/tiny"]
    assert {"README.md", "grid.png", "metrics.json", "model_index.json"} <= set(stored)
    assert json.loads(stored["metrics.json"]) == {**REPORT, "metrics": {**REPORT["metrics"], "kid": None}}
    assert not [path for path in stored if path.endswith((".py", ".bin", ".pt"))]
    assert not [path for path, content in stored.items() if path.endswith(".json") and b"_name_or_path" in content]

    loaded = RCGPipeline.from_pretrained("user/tiny")
    loaded.set_progress_bar_config(disable=True)
    assert sorted(hub.fetched) == sorted(p for p in stored if p.endswith((".json", ".safetensors")))
    assert loaded.identity() == pipe.identity()
    assert dict(loaded.config.sampling) == dict(pipe.config.sampling)
    results = [
        p(batch_size=3, generator=torch.Generator().manual_seed(0), output_type="pt", guidance_scale=2.0)
        for p in (pipe, loaded)
    ]
    assert torch.equal(results[0].images, results[1].images)
    assert torch.equal(results[0].representations, results[1].representations)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(pipe.encode(images), loaded.encode(images))


def test_a_second_push_replaces_and_a_load_sees_it(hub: type[FakeHub]) -> None:
    get_dummy_pipeline(seed=0).push_to_hub("user/tiny")
    first = RCGPipeline.from_pretrained("user/tiny").identity()
    other = get_dummy_pipeline(seed=1)
    other.push_to_hub("user/tiny")
    assert RCGPipeline.from_pretrained("user/tiny").identity() == other.identity() != first


def test_other_weights_of_a_component_go(hub: type[FakeHub], tmp_path: Path) -> None:
    first, other = get_dummy_pipeline(seed=0), get_dummy_pipeline(seed=1)
    first.save_pretrained(tmp_path, max_shard_size="20KB")
    assert list(tmp_path.glob("*/*.safetensors.index.json"))
    push_folder(tmp_path, "user/tiny", private=None, token=None, message="in pieces")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other.safetensors").touch()
    other.save_pretrained(tmp_path)
    assert RCGPipeline.from_pretrained(tmp_path, use_safetensors=True).identity() == other.identity()
    assert (tmp_path / "mine" / "other.safetensors").exists()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 5
    other.push_to_hub("user/tiny")
    weights = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/diffusion*.safetensors*")}
    assert {name for name in hub.repos["user/tiny"] if ".safetensors" in name} == weights


def test_what_another_model_left_goes(hub: type[FakeHub], tmp_path: Path) -> None:
    get_dummy_pipeline().save_pretrained(tmp_path)
    for name in ("grid.png", "metrics.json", "README.md"):
        (tmp_path / name).write_text("{}")
    push_folder(tmp_path, "user/tiny", private=None, token=None, message="by representations")
    hub.repos["user/tiny"]["notes.txt"] = b"theirs"
    assert {"grid.png", "metrics.json", "rdm/config.json", "encoder/config.json"} <= set(hub.repos["user/tiny"])
    get_dummy_pipeline(condition="none", without=("encoder",)).push_to_hub("user/tiny")
    left = {name.partition("/")[0] for name in hub.repos["user/tiny"]}
    assert left == {"README.md", "model_index.json", "image_generator", "image_scheduler", "tokenizer", "notes.txt"}


def test_a_card_that_the_hub_refuses_is_one_sentence(hub: type[FakeHub]) -> None:
    with pytest.raises(UserError, match=r"refuses the model card of user/tiny \(.*known.*\); check --license"):
        get_dummy_pipeline().push_to_hub("user/tiny", license="MIT License")


def test_without_optional_components(hub: type[FakeHub]) -> None:
    pipe = get_dummy_pipeline(condition="none", without=("encoder",))
    pipe.push_to_hub("user/plain")
    loaded = RCGPipeline.from_pretrained("user/plain")
    assert loaded.encoder is None
    assert loaded.rdm is None
    assert loaded.identity() == pipe.identity()
    assert b"An unconditional image generator: a masked token transformer" in hub.repos["user/plain"]["README.md"]


def test_errors_are_one_sentence(hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    with pytest.raises(UserError, match="no repository user/absent"):
        RCGPipeline.from_pretrained("user/absent")
    with pytest.raises(UserError, match="no folder a/b/c, and 'a/b/c' is no repository name"):
        RCGPipeline.from_pretrained("a/b/c")
    with pytest.raises(UserError, match="no repository user/absent"):
        RCGPipeline.from_pretrained("user/absent", revision="v2")
    with pytest.raises(UserError, match="from safetensors only"):
        RCGPipeline.from_pretrained("user/tiny", use_safetensors=False)
    with pytest.raises(UserError, match="'tiny' does not say whose repository it is"):
        pipe.push_to_hub("tiny")
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="exists already"):
        pipe.push_to_hub("user/tiny", dry_run=tmp_path)
    with pytest.raises(UserError, match="exists already"):
        pipe.push_to_hub("user/tiny", dry_run=str(tmp_path))
    with pytest.raises(UserError, match="mine is a file; give the name of a folder"):
        pipe.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine").exists()
    with pytest.raises(UserError, match="download does not know variant"):
        RCGPipeline.download("user/tiny", variant="fp16")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not let you use user/tiny"):
        pipe.push_to_hub("user/tiny")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("rcg.hub.get_token", lambda: None)
    monkeypatch.setattr(RCGPipeline, "save_pretrained", None)  # nothing is written for nothing
    with pytest.raises(UserError, match="no Hub token"):
        pipe.push_to_hub("user/tiny")
    assert hub.repos == {}


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match="cannot be reached for user/tiny"):
        download_folder("user/tiny", cache_dir=tmp_path)
    with pytest.raises(UserError, match="no folder user/tiny, and the Hub cannot be reached"):
        RCGPipeline.from_pretrained("user/tiny", cache_dir=tmp_path)
    with pytest.raises(UserError, match="cannot be reached for user/tiny"):
        get_dummy_pipeline().push_to_hub("user/tiny", token="hf_test")
    with pytest.raises(UserError, match="cannot be reached"):
        download_folder("user/tiny", cache_dir=tmp_path, local_files_only=True)


def test_an_error_without_a_response_is_one_of_the_network() -> None:
    error = HfHubHTTPError.__new__(HfHubHTTPError)  # as huggingface_hub below 1.0 raises where it is offline
    error.response = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="cannot be reached for user/tiny"), _one_sentence("user/tiny"):
        raise error


def test_the_card() -> None:
    index = {
        "rdm": ["rcg.rdm.representation_mlp", "RepresentationMLP"],
        "encoder": [None, None],
        "sampling": {"a": None},
    }
    text = model_card("user/tiny", index, CardInfo("user/pictures", "mit", REPORT, Path("grid.png")))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "rcg"
    assert front["license"] == "mit"
    assert front["pipeline_tag"] == "unconditional-image-generation"
    assert front["datasets"] == ["user/pictures"]
    measured = {m["type"]: m["value"] for r in front["model-index"][0]["results"] for m in r["metrics"]}
    assert measured == {"fid": 12.345678, "isc/mean": 3.5, "isc/std": 0.1}
    for piece in ("| fid | 12.35 |", "![Samples](grid.png)", "`RepresentationMLP`", "- `a`: default", "5000 generated",
                  'RCGPipeline.from_pretrained("user/tiny")', "features of `inception`"):  # fmt: skip
        assert piece in text
    assert "`encoder`" not in text
    assert ModelCard(text).data.license == "mit"  # the Hub's own parser reads it


def test_the_card_says_what_is_not_known() -> None:
    text = model_card("user/tiny", {}, CardInfo(dataset="my own photographs, 2024"))
    front = yaml.safe_load(text.split("---\n")[1])
    assert not {"license", "datasets", "metrics", "model-index"} & set(front)
    assert "my own photographs, 2024" in text
    assert "None were measured" in text
    assert "licence of these weights was not stated" in text
    assert "grid.png" not in text
    assert "How it was trained was not stated" in text
    assert "An image generator." in text


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("condition", ["none", "class", "cluster", "representation"])
def test_the_card_is_true_of_every_family_and_condition(arch: Arch, condition: str) -> None:
    family = FAMILIES[arch]
    for drawing in [None, *(method.about for method in METHODS.values())] if condition == "representation" else [None]:
        kind = describe(condition, family.about, drawing, 7 if condition in ("class", "cluster") else 0)
        assert family.about in kind.text
        assert ("tokens" in kind.text) == ("VQTokenizer" in [cls.__name__ for cls in family.tokenizers])
        assert ("decodes" in kind.text) == bool(family.tokenizers)
        assert ("pixels" in kind.text) == (family.field == "images")
        assert kind.draws == (condition != "representation" or drawing is not None)
        assert drawing is None or f"{drawing} draws a self-supervised representation" in kind.text
        assert ("of the RCG kind" in kind.text) == (drawing is not None)
        assert ("arxiv:2312.03701" in kind.tags) == (condition == "representation")
        assert ("unconditional" in kind.text) == (condition == "none" or drawing is not None)
        assert ("told one of 7" in kind.text) == (condition in ("class", "cluster"))
        text = model_card("user/tiny", {}, CardInfo(), kind)
        assert ("rcg-sample" in text) == kind.draws == ("representations=representations" not in text)
        assert text.count("```") == 2
        assert ModelCard(text).data.tags == ["rcg", "diffusers", "image-generation", *kind.tags]


def test_pipelines_know_what_they_are() -> None:
    def text(**kwargs: Any) -> str:
        return get_dummy_pipeline(**kwargs).kind.text

    assert "a diffusion model draws a self-supervised representation from noise, and from it a masked token" in text()
    assert "a flow model draws" in text(method="flow")
    assert "An image generator" in text(num_classes=CLASSES)
    assert "from noise, told one of 5 classes, and" in text(num_classes=CLASSES)
    pipe = get_dummy_pipeline(num_classes=CLASSES)
    pipe.rdm.register_to_config(label_counts=[1] * CLASSES)
    assert "An unconditional image generator" in pipe.kind.text
    assert "told one of 5 clusters that such representations form without any label" in pipe.kind.text
    assert "A class-conditional image generator" in text(condition="class")
    assert not get_dummy_pipeline(without=("rdm",)).kind.draws


def test_reading_metrics(tmp_path: Path) -> None:
    good = tmp_path / "metrics.json"
    good.write_text(json.dumps({"metrics": {"fid": 3}, "format": 1}))
    assert figures(read_metrics(good)) == {"fid": 3}
    for other in (
        {"depth": 9, "arch": "vit"},
        {"format": 1, "winner": {"guidance_scale": 1.0}},
    ):  # a model's, rcg-tune's
        good.write_text(json.dumps(other))
        with pytest.raises(UserError, match="give the one that rcg-eval wrote"):
            read_metrics(good)
    for name, text, message in (
        ("a.json", "{", "not valid JSON"),
        ("b.json", "[1]", "must be a mapping"),
        ("c.json", '{"metrics": {}}', "no numbers"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            read_metrics(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "absent.json")
