"""rcg-push: what it refuses, and what it would upload. (The upload itself: tests/test_hub.py.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rcg import RCGPipeline
from rcg.core.pictures import make_grid, save_png
from rcg.scripts import push
from tests.components import get_dummy_pipeline
from tests.fake_hub import fake_hub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    get_dummy_pipeline().save_pretrained(folder)
    return folder


def run(**flags: Any) -> None:
    push.main([a for k, v in flags.items() for a in (f"--{k.replace('_', '-')}", str(v))])


def extras(folder: Path) -> dict[str, Any]:
    (folder / "metrics.json").write_text(json.dumps({"format": 1, "metrics": {"fid": 7.5}}))
    save_png(folder / "grid.png", make_grid(get_dummy_pipeline()(batch_size=4).images))
    return {"metrics": folder / "metrics.json", "grid": folder / "grid.png", "dataset": "pictures", "license": "mit"}


def test_dry_run(model: Path, tmp_path: Path) -> None:
    run(model=model, repo="user/tiny", dry_run=tmp_path / "dry", **extras(tmp_path))
    assert RCGPipeline.from_pretrained(tmp_path / "dry").identity() == RCGPipeline.from_pretrained(model).identity()
    card = (tmp_path / "dry" / "README.md").read_text()
    assert "license: mit" in card
    assert "| fid | 7.5 |" in card
    assert (tmp_path / "dry" / "grid.png").read_bytes() == (tmp_path / "grid.png").read_bytes()
    assert json.loads((tmp_path / "dry" / "metrics.json").read_text())["metrics"] == {"fid": 7.5}


def test_upload(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_hub() as (address, hub):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        run(model=model, repo="user/tiny", **extras(tmp_path))
        assert f"Uploaded: {address}/user/tiny/commit/" in capsys.readouterr().out
        assert {"README.md", "grid.png", "metrics.json", "model_index.json"} <= set(hub.repos["user/tiny"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "/nowhere"}, "there is no folder /nowhere"),
        ({"repo": "a/b/c"}, "'a/b/c' is no repository name"),
        ({"metrics": "/nowhere.json"}, "--metrics /nowhere.json: there is no such file"),
        ({"grid": __file__}, "is not a PNG file"),
        ({"dry_run": Path(__file__).parent}, "exists already"),
    ],
)
def test_refusals(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit) as e:
        run(**{"model": model, "repo": "user/tiny", "dry_run": tmp_path / "dry", **flags})
    assert e.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "dry").exists()


def test_without_a_token(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rcg.hub.get_token", lambda: None)
    with pytest.raises(SystemExit):
        run(model=model, repo="user/tiny")
    assert "there is no Hub token; run `hf auth login` or set HF_TOKEN." in capsys.readouterr().err
