"""`rcg-cache` from the command line, with real models."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from rcg import SSLEncoder, VQTokenizer
from rcg.data import build as build_module
from rcg.data import layout
from rcg.data.cache import Cache
from rcg.data.sources import open_source
from rcg.scripts.cache import CacheConfig, _work, main

SPEC = "shapes:n=11,size=16"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    for name in ("encoder", "other"):
        SSLEncoder(
            arch="vit_tiny_patch16_224",
            image_size=16,
            head_layers=2,
            head_hidden_dim=16,
            head_dim=12,
            arch_kwargs=kwargs,
        ).save_pretrained(folder / name)
    VQTokenizer(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, num_codes=32, code_dim=6, norm_groups=4
    ).save_pretrained(folder / "tokenizer")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("rcg-cache: error: ")
    return message


def test_encoder_first_tokenizer_later(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cache"
    common = ["--data", SPEC, "--out", str(out), "--image-size", "16", "--views", "3", "--shard-size", "4"]
    main([*common, "--encoder", str(models / "encoder")])
    assert Cache(out).fields == {"representations": (12,)}
    main([*common, "--tokenizer", str(models / "tokenizer")])
    assert str(out) in capsys.readouterr().err
    cache = Cache(out)
    assert cache.fields == {"representations": (12,), "tokens": (4, 4)}
    encoder = SSLEncoder.from_pretrained(models / "encoder").eval()
    tokenizer = VQTokenizer.from_pretrained(models / "tokenizer").eval()
    cache.require("representations", encoder)
    cache.require("tokens", tokenizer)
    with pytest.raises(ValueError, match="another SSLEncoder"):
        cache.require("representations", SSLEncoder.from_pretrained(models / "other"))
    image = torch.from_numpy(np.asarray(open_source(SPEC).image(6)).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():  # the set is square and of this size: view 0 is the image, view 1 its mirror image
        for view, shown in enumerate((image, image.flip(3))):
            got = cache.all("representations", view)[6]
            assert np.abs(got - encoder(shown)[0].numpy()).max() < 1e-5
            assert np.array_equal(cache.all("tokens", view)[6], tokenizer.encode(shown)[0])

    (out / "shard-00001" / "tokens.npy").unlink()
    with pytest.raises(ValueError, match="incomplete") as caught:
        Cache(out)
    command = str(caught.value).split("`")[1]
    assert command.split()[0] == "rcg-cache"
    main(command.split()[1:])  # the way out works
    assert np.array_equal(Cache(out).all("tokens"), cache.all("tokens"))

    message = refused(capsys, *common, "--encoder", models / "other")
    assert "computed by another SSLEncoder" in message


def test_the_views_themselves(models: Path, tmp_path: Path) -> None:
    main(["--data", SPEC, "--out", str(tmp_path / "cache"), "--image-size", "16", "--images"])
    cache = Cache(tmp_path / "cache")
    assert cache.fields == {"images": (3, 16, 16)}
    batch = cache.batch(np.array([6, 2]), np.array([0, 1], np.uint64))
    assert batch["images"].dtype == torch.uint8
    whole, other = (torch.from_numpy(np.asarray(open_source(SPEC).image(i)).copy()).permute(2, 0, 1) for i in (6, 2))
    assert torch.equal(batch["images"], torch.stack([whole, other.flip(2)]))
    assert np.array_equal(cache.all("images")[6], whole)


def test_half_precision_storage(models: Path, tmp_path: Path) -> None:
    main(["--data", SPEC, "--out", str(tmp_path / "c"), "--image-size", "16", "--encoder", str(models / "encoder"),
          "--half", "--views", "1"])  # fmt: skip
    cache = Cache(tmp_path / "c")
    assert cache.manifest["fields"]["representations"]["dtype"] == "float16"
    assert "--half" in cache.manifest["commands"]["representations"]


def test_the_first_process_waits_for_the_others_before_it_clusters(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        main(["--data", SPEC, "--out", str(tmp_path / "c"), "--image-size", "16", "--encoder", str(models / "encoder"),
              "--shard-size", "4", "--clusters", "3"])  # fmt: skip

    wait = layout.wait_for_shards

    def others_are_slow(folder: Path, fields: list[str]) -> None:
        assert "The cache is in" not in capsys.readouterr().err
        start(1)
        wait(folder, fields)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(layout, "wait_for_shards", others_are_slow)
    start(0)
    assert "The cache is in" in capsys.readouterr().err
    cache = Cache(tmp_path / "c")
    assert set(cache.fields) == {"representations", "clusters"}
    assert "--clusters 3" in str(cache.manifest["commands"]["clusters"])


def test_more_processes_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert _work(CacheConfig(SPEC, tmp_path / "c", 16, images=True))["device"] == torch.device("cuda:1")


def test_each_mistake_has_its_sentence(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    encoder, tokenizer = models / "encoder", models / "tokenizer"
    common = ["--data", SPEC, "--out", out]
    assert "nothing to keep" in refused(capsys, *common, "--image-size", 16)
    one_view = ["--image-size", 16, "--images", "--views", 1, "--crop-scale", 0.5]
    assert "--crop-scale has no effect with --views 1" in refused(capsys, *common, *one_view)
    for flags in (["--half"], ["--precision", "bf16"]):
        message = refused(capsys, *common, "--image-size", 16, "--images", *flags)
        assert f"{flags[0]} has no effect with --images alone" in message
    message = refused(capsys, *common, "--image-size", 16, "--tokenizer", tokenizer, "--half")
    assert "--half has no effect on tokens, which are whole numbers" in message
    assert "--batch-size is 0" in refused(capsys, *common, "--image-size", 16, "--encoder", encoder, "--batch-size", 0)
    assert "no multiple of 4" in refused(capsys, *common, "--image-size", 18, "--tokenizer", tokenizer)
    assert "SSLEncoder" in refused(capsys, *common, "--image-size", 16, "--encoder", tokenizer)
    assert "nowhere" in refused(capsys, *common, "--image-size", 16, "--encoder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    message = refused(capsys, "--data", tmp_path / "empty", "--out", out, "--image-size", 16, "--encoder", encoder)
    assert "holds no images" in message
    assert not out.exists()


def test_paths_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    images = ("--data", SPEC, "--image-size", 16, "--images")
    inside = refused(capsys, *images, "--out", tmp_path / "file" / "cache")
    assert inside.endswith("file/cache cannot be used (Not a directory); give another path.")
    assert "cannot be used (File name too long)" in refused(capsys, *images, "--out", tmp_path / ("x" * 300))
    assert "cannot be used (File name too long)" in refused(capsys, "--config", "x" * 300)


def test_a_full_disk(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        path.write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_module, "save_array", full)
    arguments = ("--data", SPEC, "--out", tmp_path / "c", "--image-size", 16, "--encoder", models / "encoder")
    assert "the disk is full" in refused(capsys, *arguments)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["manifest.json"]
