"""ADM and LDM files → whole pipelines: what belongs together, what draws, what a command says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rcg import RCGPipeline
from rcg.core.errors import UserError
from rcg.published.convert import Options, convert, convert_files, open_file
from rcg.published.inspection import inspect_path
from rcg.published.latent_vq import CARRIED
from rcg.scripts.convert import main
from tests.components import get_dummy_pipeline
from tests.golden.seeded import seeded
from tests.image_gen.adm import golden as adm
from tests.image_gen.ldm import golden as ldm
from tests.official import official_contents

OPTIONS = Options(generator_image_size=16, encoder_num_heads=4)
ALONE = Options(generator_image_size=16)  # where there is no encoder
DIM = 24  # of the representations of the tiny official encoder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny files: generators of each condition, RDM, encoder, autoencoder."""
    folder = tmp_path_factory.mktemp("files")
    official = official_contents()
    moco, rdm = official["mocov3_vitb.pth.tar"], official["rdm_uncond.pth"]
    encoder = {k: v for k, v in rdm["model"].items() if k.startswith("pretrained_encoder.")}
    contents: dict[str, dict[str, Any]] = {"moco": moco, "rdm": rdm, "vqgan": official["vqgan_jax_strongaug.ckpt"]}
    for condition in ("class", "none"):
        contents |= {f"adm_{condition}": adm.contents(condition), f"ldm_{condition}": ldm.contents(condition)}
    weights = {k: widened(k, v) for k, v in ldm.contents()["model"].items() if k not in ldm.ENCODER}
    contents["ldm_representation"] = {"model": weights | encoder, "epoch": 3}
    ema = adm.state() | seeded({"rep_proj.weight": (256, DIM)})
    contents["adm_representation"] = {"model": ema, "model_ema": ema, "epoch": 3}
    vq = {k.removeprefix(CARRIED): v for k, v in ldm.state().items() if k.startswith(CARRIED)}
    contents["vq"] = {"state_dict": vq}
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in contents}


def widened(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """For representations of the official encoder's size: what reads the token."""
    wide = tensor.ndim == 2 and tensor.shape[1] == 12
    return seeded({key: (len(tensor), DIM)})[key] if wide else tensor


def draw(pipe: RCGPipeline, **arguments: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    if pipe.rdm is not None:
        arguments["rdm_num_inference_steps"] = 5
    return pipe(1, num_inference_steps=2, output_type="pt", generator=seed, **arguments).images


def test_files_are_told_by_their_keys(files: dict[str, Path]) -> None:
    kinds = {name: open_file(path).kind for name, path in files.items()}
    assert kinds == {"moco": "mocov3", "rdm": "rdm", "vqgan": "vqgan", "vq": "latent-vq"} | {
        f"{family}_{condition}": family
        for family in ("adm", "ldm")
        for condition in ("class", "none", "representation")
    }


@pytest.mark.parametrize("name", ["adm_class", "adm_none", "ldm_class", "ldm_none"])
def test_a_generator_alone_is_a_pipeline(
    name: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcg.image_gen.unets.BLOCK_VALUES", 64 * 8**2)
    main([str(files[name]), "--generator-image-size", "16", "--out", str(tmp_path / "model")])
    pipe = RCGPipeline.from_pretrained(tmp_path / "model")
    assert (pipe.tokenizer is None) == name.startswith("adm")
    arguments: dict[str, Any] = {"class_labels": [2]} if "class" in name else {}
    images = draw(pipe, **arguments)
    assert images.shape == (1, 3, 16, 16)
    again = convert_files([files[name]], ALONE).pipe
    assert again is not None
    assert torch.allclose(draw(again, **arguments), images, atol=0.02)


def test_containers_do_not_matter_where_the_format_is_clear(files: dict[str, Path], tmp_path: Path) -> None:
    vqgan, vq = (torch.load(files[name])["state_dict"] for name in ("vqgan", "vq"))
    for weights, options in ((vqgan, Options()), (vq, ALONE), (adm.state("class"), ALONE)):
        found = []
        for name, contents in {"a": {"state_dict": weights}, "b": weights, "c": {"model": weights}}.items():
            torch.save(contents, tmp_path / f"{name}.pth")
            if name == "c" and "out.2.weight" in weights:  # an ADM of RCG, which has averaged weights beside them
                options = replace(ALONE, weights="raw")
            part = convert(open_file(tmp_path / f"{name}.pth"), options)
            assert len(part.loaded) == len(weights)
            found.append(part.model.state_dict())
        assert all(torch.equal(one[key], tensor) for one in found[1:] for key, tensor in found[0].items())
    with pytest.raises(UserError, match=r"--weights has no effect on .*a\.pth, which is of kind adm"):
        convert(open_file(tmp_path / "a.pth"), replace(ALONE, weights="raw"))


def test_an_ldm_and_an_rdm_make_the_whole_pipeline(files: dict[str, Path], tmp_path: Path) -> None:
    done = convert_files([files["rdm"], files["ldm_representation"]], OPTIONS)
    assert done.pipe is not None
    assert {name: path.stem for name, path in done.sources.items()} == {
        "rdm": "rdm",
        "image_generator": "ldm_representation",
        "tokenizer": "ldm_representation",
        "encoder": "ldm_representation",
    }
    assert any("encoder in" in note and "rdm.pth was trained with" in note for note in done.notes)
    assert draw(done.pipe).shape == (1, 3, 16, 16)
    report = done.report()["components"]["tokenizer"]
    assert set(report["loaded"]) == {k for k in ldm.state() if k.startswith(CARRIED)}
    vq = torch.load(files["vq"])["state_dict"]
    whole = convert_files([files["ldm_representation"], files["vq"]], OPTIONS)
    assert "can reconstruct images, but not draw" in whole.notes[-1]
    (note,) = [note for note in whole.notes if note.startswith("the tokenizer in")]
    assert f"({len(vq)} tensors are equal)" in note
    for key in ("quantize.embedding.weight", "decoder.mid.block_1.conv1.weight", "encoder.mid.attn_1.q.weight"):
        torch.save({"state_dict": vq | {key: vq[key] + 1}}, tmp_path / "vq.pth")
        with pytest.raises(UserError, match="trained with another tokenizer"):
            convert_files([files["ldm_representation"], tmp_path / "vq.pth"], OPTIONS)


def test_an_adm_an_rdm_and_an_encoder_make_the_whole_pipeline(files: dict[str, Path]) -> None:
    done = convert_files([files["adm_representation"], files["rdm"], files["moco"]], OPTIONS)
    assert done.pipe is not None
    assert done.parts.keys() == {"image_generator", "rdm", "encoder"}
    assert draw(done.pipe).shape == (1, 3, 16, 16)
    alone = convert_files([files["adm_representation"]], ALONE)
    assert "can use representations that it is given, but not draw" in alone.notes[-1]
    with pytest.raises(UserError, match="leave the tokenizer out"):
        convert_files([files["adm_representation"], files["vq"]], ALONE)
    with pytest.raises(UserError, match="holds an ADM, but size b was asked for"):
        convert_files([files["adm_representation"]], OPTIONS, size="b")
    with pytest.raises(UserError, match="holds an ADM with condition 'none'"):
        convert_files([files["adm_none"], files["rdm"]], OPTIONS)


def test_what_inspection_says(files: dict[str, Path], tmp_path: Path) -> None:
    found = {name: inspect_path(files[name]) for name in ("adm_representation", "ldm_representation", "vq")}
    assert [f.kind for f in found.values()] == ["adm", "ldm", "latent-vq"]
    assert (found["adm_representation"].ema, found["ldm_representation"].ema) == (True, True)
    assert found["ldm_representation"].carries == ["encoder", "tokenizer"]
    assert "--generator-image-size" in str(found["adm_representation"].problem)
    assert found["vq"].details["latent_channels"] == 4
    assert str(found["vq"].next).endswith("--out tokenizer")
    convert_files([files["vq"]], ALONE).save(tmp_path / "vq")
    assert str(inspect_path(tmp_path / "vq").next).startswith("rcg-cache --data IMAGES --image-size SIZE --tokenizer ")
    for name in ("PixelDiT", "EDMUNet"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": name}))
        assert inspect_path(tmp_path / name).next == f"rcg-assemble --generator {tmp_path / name} --out MODEL"
        by_representation = {"_class_name": name, "condition": "representation"}
        (tmp_path / name / "config.json").write_text(json.dumps(by_representation))
        assert str(inspect_path(tmp_path / name).next).endswith(f"{name} --rdm DIR --out MODEL")


def test_what_inspection_says_of_pipelines_and_odd_files(tmp_path: Path) -> None:
    def of(**index: Any) -> Any:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        return inspect_path(tmp_path)

    text = {"text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"]}
    sd = of(_class_name="StableDiffusionPipeline", **text)
    assert str(sd.next).startswith(f"rcg-synthesize --model {tmp_path} --captions ")
    assert "sampling" not in sd.text()
    assert of(_class_name="DDPMPipeline", unet=["diffusers", "UNet2DModel"]).next is None
    for name, condition, without, drawn in (("c", "class", (), True), ("r", "representation", (), True),
                                            ("half", "representation", ("rdm", "rdm_scheduler"), False)):  # fmt: skip
        pipe = get_dummy_pipeline(condition=condition, without=without)
        pipe.save_pretrained(tmp_path / name)
        found = inspect_path(tmp_path / name)
        assert found.next == (f"rcg-sample --model {tmp_path / name} --out samples" if drawn else None)
        assert found.problem is None
        assert found.details["sampling"] == dict(pipe.config.sampling)
    shutil.rmtree(tmp_path / "r/image_generator")
    incomplete = inspect_path(tmp_path / "r")
    assert incomplete.next is None
    assert "image_generator" in str(incomplete.problem)
    with pytest.raises(UserError, match="'unet'"):
        of(_class_name="X", unet=["diffusers"])
    torch.save({"scaler": torch.zeros(3)}, tmp_path / "x.pth")
    assert inspect_path(tmp_path / "x.pth").carries == []
