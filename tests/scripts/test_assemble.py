"""rcg-assemble: finished stages to a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rcg import RCGPipeline, UserError
from rcg.core.files import encoding_hash, model_hash
from rcg.data.provenance import check_together
from rcg.scripts import assemble
from tests.components import SAMPLING, get_dummy_components, get_dummy_pipeline


def save_stages(folder: Path, **kwargs: Any) -> dict[str, Path]:
    """Stage folders as training leaves them."""
    parts = get_dummy_components(**kwargs)
    stages = {"generator": "image_generator", "tokenizer": "tokenizer", "rdm": "rdm", "encoder": "encoder"}
    for stage, name in stages.items():
        if parts[name] is not None:
            parts[name].save_pretrained(folder / stage)
    parts["image_scheduler"].save_pretrained(folder / "generator")
    if parts["rdm_scheduler"] is not None:
        parts["rdm_scheduler"].save_pretrained(folder / "rdm")
    return {stage: folder / stage for stage in stages if (folder / stage).is_dir()}


def run(out: Path, *more: str, **flags: Any) -> None:
    arguments = {"out": out, **flags}
    assemble.main([a for k, v in arguments.items() for a in (f"--{k.replace('_', '-')}", str(v))] + list(more))


def refused(capsys: pytest.CaptureFixture[str], *args: Any, **flags: Any) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run(*args, **flags)
    assert e.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_whole(tmp_path: Path) -> None:
    stages = save_stages(tmp_path)
    run(tmp_path / "model", **stages, **SAMPLING, guidance_scale=2.5)
    loaded = RCGPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    expected = get_dummy_pipeline()
    assert loaded.identity() == expected.identity()
    assert dict(loaded.config.sampling) == {**expected.config.sampling, "guidance_scale": 2.5}
    draws = [
        p(batch_size=2, guidance_scale=2.5, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for p in (loaded, expected)
    ]
    assert torch.equal(*draws)
    assert not [p for p in (tmp_path / "model").rglob("*.json") if str(tmp_path) in p.read_text()]


def test_parts(tmp_path: Path) -> None:
    stages = save_stages(tmp_path, condition="none")
    del stages["encoder"]
    run(tmp_path / "model", **stages)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["rdm"] == index["encoder"] == [None, None]


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = save_stages(tmp_path)
    out = tmp_path / "model"
    generator, tokenizer, rdm = (stages[k] for k in ("generator", "tokenizer", "rdm"))
    plain = save_stages(tmp_path / "plain", condition="none")["generator"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"generator": generator, "tokenizer": tokenizer}, "needs an RDM to draw them; add --rdm DIR"),
        ({"generator": plain, "tokenizer": tokenizer, "rdm": rdm}, "leave the RDM out"),
        (
            {"generator": tokenizer, "tokenizer": tokenizer},
            "holds a VQTokenizer, but a MageTransformer or ",
        ),
        ({"generator": tmp_path / "no", "tokenizer": tokenizer}, "there is no folder"),
        ({"generator": plain, "tokenizer": tokenizer, "guidance_scale": 2}, "has no condition"),
        ({"generator": plain, "tokenizer": tokenizer, "num_inference_steps": 40}, "only 16 tokens"),
        ({"generator": plain, "tokenizer": tokenizer, "rdm_num_inference_steps": 4}, "there is no RDM; leave it out"),
    ]
    for flags, message in cases:
        assert message in refused(capsys, out, **flags)
    (rdm / "scheduler_config.json").unlink()
    assert "rdm holds no scheduler_config.json" in refused(
        capsys, out, generator=generator, tokenizer=tokenizer, rdm=rdm
    )
    (rdm / "scheduler_config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert "names AutoencoderKL, which is no scheduler" in refused(
        capsys, out, generator=generator, tokenizer=tokenizer, rdm=rdm
    )
    weights = next(generator.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is damaged" in refused(capsys, out, generator=generator, tokenizer=tokenizer)
    assert not out.exists()


def test_occupied_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = save_stages(tmp_path, condition="none")
    flags = {k: stages[k] for k in ("generator", "tokenizer")}
    out = tmp_path / "model"
    run(out, **flags)
    assert "already holds a model; add --overwrite" in refused(capsys, out, **flags)
    run(out, "--overwrite", **flags, temperature=1.5)
    assert RCGPipeline.from_pretrained(out).config.sampling["temperature"] == 1.5
    (out / "samples").mkdir()
    assert "holds other things beside the model (samples)" in refused(capsys, out, "--overwrite", **flags)
    assert (out / "samples").is_dir()
    (out / "samples").rmdir()
    for theirs in (".git/HEAD", ".gitattributes", "holiday.png", "thesis.md", "weights.safetensors"):
        (out / theirs).parent.mkdir(exist_ok=True)
        (out / theirs).write_text("theirs")
        assert f"beside the model ({theirs.split('/')[0]})" in refused(capsys, out, "--overwrite", **flags)
        assert (out / theirs).read_text() == "theirs"
        (out / theirs).unlink()
        if "/" in theirs:
            (out / theirs).parent.rmdir()
    (out / ".export").mkdir()  # of a killed process
    (out / "grid.png").touch()
    run(out, "--overwrite", **flags)
    assert not (out / "grid.png").exists()
    assert "is not empty and holds no model" in refused(capsys, stages["tokenizer"], "--overwrite", **flags)
    (tmp_path / "file").touch()
    assert "is a file" in refused(capsys, tmp_path / "file", **flags)


def test_another_tokenizer_than_the_cache_had(tmp_path: Path) -> None:
    """Same sizes, other weights: only the cache that the generator was trained on can tell."""
    components, others = get_dummy_components(), get_dummy_components(seed=1)
    stage, cache = tmp_path / "generator", tmp_path / "cache"
    make_cache(cache, components["tokenizer"])
    (stage / "training").mkdir(parents=True)
    (stage / "training" / "config.yaml").write_text(yaml.safe_dump({"data": str(cache)}))
    own, other = {stage: None, Path("own"): components["tokenizer"]}, {stage: None, Path("other"): others["tokenizer"]}
    check_together(own, "tokens")
    with pytest.raises(UserError, match=r"generator and other go with tokens of different models"):
        check_together(other, "tokens")
    next(cache.glob("shard-*/tokens.npy")).unlink()  # unfinished: it says all the same what computed it
    check_together(own, "tokens")
    with pytest.raises(UserError, match="tokens of different models"):
        check_together(other, "tokens")
    (stage / "training" / "config.yaml").write_text(yaml.safe_dump({"data": "shapes"}))
    check_together(other, "tokens")


def test_a_generator_of_another_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a pipeline, whose tokenizer tells, or trained from images, where the run does; a tuned decoder changes nothing."""
    full, half, other = (tmp_path / name for name in ("full", "half", "other"))
    get_dummy_pipeline(condition="none").save_pretrained(full)
    get_dummy_pipeline(condition="none").save_pretrained(half, half=True)
    get_dummy_pipeline(condition="none", seed=1).save_pretrained(other)
    tokenizer, tuned = get_dummy_components(condition="none")["tokenizer"], tmp_path / "tuned"
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).add_(1)
    tokenizer.save_pretrained(tuned)
    stage, out = save_stages(tmp_path / "stages", condition="none")["generator"], tmp_path / "model"
    checkpoint = stage / "training/checkpoints/step-00000010/meta.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text(json.dumps({"identity": {"encodings": encoding_hash(tokenizer)}}))
    wrong = "go with tokens of different models"
    for generator in (full, half, stage):
        assert wrong in refused(capsys, out, generator=generator, tokenizer=other)
    assert wrong in refused(capsys, out, generator=full, tokenizer=full, guiding_model=other)
    for generator, codes in ((full, tuned), (full, half), (half, full), (stage, tuned), (stage, full)):
        run(out, "--overwrite", generator=generator, tokenizer=codes)


def test_stages_of_different_caches(tmp_path: Path) -> None:
    components, others = get_dummy_components(), get_dummy_components(seed=1)
    make_cache(tmp_path / "cache", components["tokenizer"])
    make_cache(tmp_path / "other-cache", others["tokenizer"])
    for stage, data in (("a", "cache"), ("b", "cache"), ("c", "other-cache"), ("d", "shapes")):
        (tmp_path / stage / "training").mkdir(parents=True)
        record = {"data": data if data == "shapes" else str(tmp_path / data)}
        (tmp_path / stage / "training" / "config.yaml").write_text(yaml.safe_dump(record))
    a, b, c, d = (tmp_path / stage for stage in "abcd")
    check_together(dict.fromkeys([a, b, d, tmp_path / "untrained", tmp_path / "cache"]), "tokens")
    check_together(dict.fromkeys([a, c]), "representations")  # of which neither cache has any
    for other in (c, tmp_path / "other-cache"):
        with pytest.raises(UserError, match=r"a and .*(c|other-cache) go with tokens of different models"):
            check_together(dict.fromkeys([a, d, other]), "tokens")


def test_stages_from_pipelines_of_different_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The encoder beside them tells, also one that was stored in half the space; so does the run of a stage made from images."""
    full, half, other = (tmp_path / name for name in ("full", "half", "other"))
    get_dummy_pipeline().save_pretrained(full)
    get_dummy_pipeline().save_pretrained(half, half=True)
    get_dummy_pipeline(seed=1).save_pretrained(other)
    wrong, out = "go with representations of different models", tmp_path / "model"
    for mine in (full, half):
        assert wrong in refused(capsys, out, generator=mine, tokenizer=mine, rdm=other)
        assert wrong in refused(capsys, out, generator=mine, tokenizer=mine, rdm=mine, encoder=other)
    run(out, generator=full, tokenizer=full, rdm=half, encoder=half)
    trained = save_stages(tmp_path)["rdm"]
    checkpoint = trained / "training/checkpoints/step-00000010/meta.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text(json.dumps({"identity": {"encoder": model_hash(get_dummy_components()["encoder"])}}))
    assert wrong in refused(capsys, out, "--overwrite", generator=other, tokenizer=other, rdm=trained)
    run(out, "--overwrite", generator=full, tokenizer=full, rdm=trained)
    assert "cannot be told" not in capsys.readouterr().err
    run(
        out, "--overwrite", generator=half, tokenizer=half, rdm=trained
    )  # whose encoder is one of many with these weights
    assert "go with the same representations cannot be told" in capsys.readouterr().err


def make_cache(folder: Path, tokenizer: Any) -> None:
    """A small real cache of token ids."""
    from rcg.data.build import CacheField, build_cache
    from rcg.data.sources import open_source

    build_cache(
        open_source("shapes:n=4,size=16,seed=0"),
        folder,
        {"tokens": CacheField(tokenizer, tokenizer.encode)},
        size=16,
        views=1,
    )
