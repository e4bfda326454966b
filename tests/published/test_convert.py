"""Published files → components and pipelines: that parts belong together, that every key is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rcg import RCGPipeline
from rcg.core.errors import UserError
from rcg.published.convert import (
    KINDS,
    Options,
    PublishedFile,
    convert,
    convert_pipeline,
    fingerprint,
    identify,
    open_file,
    state_in,
)
from rcg.scripts.convert import main
from tests.fake_hub import FakeHub
from tests.official import HEAD_FLAGS, HEADS, official_contents, write_official_files

OPTIONS = Options(**HEADS)  # type: ignore[arg-type]
OF_MAGE = Options(**{name: n for name, n in HEADS.items() if name.startswith("generator")})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_official_files(tmp_path_factory.mktemp("official"))


def opened(files: dict[str, Path], *names: str) -> list[PublishedFile]:
    return [open_file(files[name]) for name in names]


def draw(pipe: RCGPipeline, **kwargs: object) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        batch_size=2, num_inference_steps=3, rdm_num_inference_steps=5 if pipe.rdm is not None else None,
        output_type="pt", generator=torch.Generator().manual_seed(0), **kwargs,  # type: ignore[arg-type]
    )  # fmt: skip
    return out.images


def test_every_kind_is_told_by_its_keys(files: dict[str, Path]) -> None:
    expected = {"mocov3": "mocov3", "vqgan": "vqgan", "rdm_uncond": "rdm", "rdm_classcond": "rdm", "mage": "mage"}
    assert {name: open_file(path).kind for name, path in files.items()} == expected
    assert set(expected.values()) <= set(KINDS)
    assert identify({"model": {"linear.weight": torch.zeros(2, 2)}}) is None
    wrapped = {f"module.{k}": v for k, v in official_contents()["vqgan_jax_strongaug.ckpt"]["state_dict"].items()}
    assert identify({"state_dict": wrapped}) == "vqgan"


@pytest.mark.parametrize("name", ["mocov3", "vqgan", "rdm_uncond", "rdm_classcond", "mage"])
def test_every_key_is_loaded_or_dropped_with_a_reason(files: dict[str, Path], name: str) -> None:
    file = open_file(files[name])
    conversion = convert(file, {"mage": OF_MAGE, "mocov3": Options(encoder_num_heads=4)}.get(name))
    container = next(v for k, v in file.contents.items() if k in ("state_dict", "model"))
    assert conversion.loaded.keys() | conversion.dropped.keys() == container.keys()
    assert not conversion.loaded.keys() & conversion.dropped.keys()
    assert sorted(conversion.loaded.values()) == sorted(conversion.model.state_dict())
    assert all(conversion.dropped.values())
    assert not conversion.notes
    assert not any(p.is_meta for p in (*conversion.model.parameters(), *conversion.model.buffers()))
    assert not conversion.model.training


def test_mage_and_rdm_alone_make_the_whole_pipeline(files: dict[str, Path]) -> None:
    alone = convert_pipeline(opened(files, "mage", "rdm_uncond"), OPTIONS)
    whole = convert_pipeline(opened(files, "rdm_uncond", "vqgan", "mage", "mocov3"), OPTIONS)
    assert torch.equal(draw(alone.pipe), draw(whole.pipe))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(alone.pipe.encode(images), whole.pipe.encode(images))
    assert alone.sources["encoder"] == alone.sources["tokenizer"] == files["mage"]
    assert whole.sources["encoder"] == files["mocov3"]
    assert len(whole.notes) == 3  # encoder against RDM and MAGE, tokenizer against MAGE
    assert all("was trained with" in note for note in whole.notes)


def test_the_class_conditional_rdm_and_the_raw_weights(files: dict[str, Path]) -> None:
    pipe = convert_pipeline(opened(files, "mage", "rdm_classcond"), OPTIONS).pipe
    assert pipe.num_classes == 1000
    assert not torch.equal(draw(pipe, class_labels=[1, 2]), draw(pipe, class_labels=[3, 4]))
    raw = convert_pipeline(opened(files, "mage", "rdm_classcond"), Options(**HEADS, weights="raw")).pipe  # type: ignore[arg-type]
    assert not torch.equal(draw(pipe, class_labels=[1, 2]), draw(raw, class_labels=[1, 2]))


def test_without_an_rdm_there_is_reconstruction_only(files: dict[str, Path]) -> None:
    done = convert_pipeline(opened(files, "mage"), OPTIONS)
    assert "can reconstruct images" in done.notes[0]
    done.pipe.set_progress_bar_config(disable=True)
    assert done.pipe.reconstruct(torch.rand(1, 3, 32, 32), num_inference_steps=2).images
    with pytest.raises(UserError, match="no RDM"):
        draw(done.pipe)
    with pytest.raises(UserError, match="rdm_num_inference_steps cannot be used"):
        convert_pipeline(opened(files, "mage"), OPTIONS, sampling={"rdm_num_inference_steps": 5})


def test_parts_of_another_model_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    contents = official_contents()
    moco = contents["mocov3_vitb.pth.tar"]
    moco["state_dict"]["module.base_encoder.norm.bias"] += 1
    torch.save(moco, tmp_path / "moco.pth")
    with pytest.raises(UserError, match=r"trained with another encoder .*norm\.bias differs"):
        convert_pipeline([*opened(files, "mage"), open_file(tmp_path / "moco.pth")], OPTIONS)
    rdm = contents["rdm_uncond.pth"]
    rdm["model"]["pretrained_encoder.norm.bias"] += 1
    torch.save(rdm, tmp_path / "rdm.pth")
    with pytest.raises(UserError, match=r"rdm\.pth was trained with another encoder"):
        convert_pipeline([*opened(files, "mage"), open_file(tmp_path / "rdm.pth")], OPTIONS)
    vqgan = contents["vqgan_jax_strongaug.ckpt"]
    vqgan["state_dict"]["decoder.conv_out.bias"] += 1
    torch.save(vqgan, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=r"another tokenizer .*decoder\.conv_out\.bias"):
        convert_pipeline([*opened(files, "mage"), open_file(tmp_path / "vqgan.ckpt")], OPTIONS)


def test_sets_of_files_that_make_no_pipeline(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are both the rdm"):
        convert_pipeline(opened(files, "mage", "rdm_uncond", "rdm_classcond"), OPTIONS)
    with pytest.raises(UserError, match="is a MAGE, LDM or ADM generator"):
        convert_pipeline(opened(files, "vqgan", "rdm_uncond"), OPTIONS)
    with pytest.raises(UserError, match="but size l was asked for"):
        convert_pipeline(opened(files, "mage"), OPTIONS, size="l")
    plain = official_contents()["mage_b_rep.pth"]
    for key in ("latent_prior_proj.weight", "latent_prior_proj.bias"):
        del plain["model"][key]
    torch.save(plain, tmp_path / "mage.pth")
    with pytest.raises(UserError, match="takes no representations; leave out"):
        convert_pipeline([open_file(tmp_path / "mage.pth"), *opened(files, "rdm_uncond")], OPTIONS)
    with pytest.raises(UserError, match=r"--encoder-num-heads has no effect on any of .*mage\.pth \(mage\)"):
        convert_pipeline([open_file(tmp_path / "mage.pth")], OPTIONS)
    unconditional = convert_pipeline([open_file(tmp_path / "mage.pth")], OF_MAGE).pipe
    assert unconditional.encoder is None
    assert draw(unconditional).shape == (2, 3, 256, 256)


def test_a_class_conditional_mage(tmp_path: Path) -> None:
    contents = official_contents()["mage_b_rep.pth"]
    for key in ("latent_prior_proj.weight", "latent_prior_proj.bias"):
        del contents["model"][key]
    contents["model"]["class_emb.weight"] = torch.randn(1000, 32)
    torch.save(contents, tmp_path / "mage.pth")
    pipe = convert_pipeline([open_file(tmp_path / "mage.pth")], OF_MAGE).pipe
    assert pipe.num_classes == 1000
    assert draw(pipe, class_labels=[1, 2]).shape == (2, 3, 256, 256)
    with pytest.raises(UserError, match="guid"):
        draw(pipe, class_labels=[1, 2], guidance_scale=2.0)


def test_convert_save_load_push_load_gives_identical_outputs(
    files: dict[str, Path], tmp_path: Path, hub: type[FakeHub]
) -> None:
    done = convert_pipeline(opened(files, "mage", "rdm_uncond"), OPTIONS, sampling={"guidance_scale": 2.0})
    pictures = torch.rand(2, 3, 48, 48)
    images, representations = draw(done.pipe), done.pipe.encode(pictures)
    arguments = [str(files["mage"]), str(files["rdm_uncond"]), *HEAD_FLAGS, "--guidance-scale=2"]
    main([*arguments, f"--out={tmp_path / 'model'}"])
    loaded = RCGPipeline.from_pretrained(tmp_path / "model")
    loaded.push_to_hub("user/rcg-tiny")
    assert hub.repos["user/rcg-tiny"]
    for pipe in (loaded, RCGPipeline.from_pretrained("user/rcg-tiny")):
        assert pipe.config.sampling["guidance_scale"] == 2.0
        assert torch.equal(draw(pipe), images)
        assert torch.equal(pipe.encode(pictures), representations)


def test_the_report_accounts_for_every_key(files: dict[str, Path], tmp_path: Path) -> None:
    main([str(files["mage"]), str(files["rdm_uncond"]), *HEAD_FLAGS, f"--out={tmp_path / 'm'}"])
    report = json.loads((tmp_path / "m" / "conversion.json").read_text())
    assert report["files"] == [fingerprint(files["mage"]), fingerprint(files["rdm_uncond"])]
    assert report["components"].keys() == {"image_generator", "rdm", "tokenizer", "encoder"}
    rdm = report["components"]["rdm"]
    assert rdm["loaded"].keys() | rdm["dropped"].keys() == state_in(open_file(files["rdm_uncond"]).contents).keys()
    assert rdm["file"] == "rdm_uncond.pth"
