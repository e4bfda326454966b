"""Settings put into a saved pipeline: whole or not at all, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rcg import RCGPipeline
from rcg.core.errors import UserError
from rcg.sampling.stored import INDEX, write_sampling
from tests.components import get_dummy_pipeline


def test_only_the_given_settings_change(tmp_path: Path) -> None:
    get_dummy_pipeline().save_pretrained(tmp_path)
    before = json.loads((tmp_path / INDEX).read_text())
    write_sampling(tmp_path, {"guidance_scale": 2.25, "guidance_interval": [0.25, 0.75]})
    after = json.loads((tmp_path / INDEX).read_text())
    assert after.pop("sampling") == before.pop("sampling") | {"guidance_scale": 2.25, "guidance_interval": [0.25, 0.75]}
    assert after == before
    assert RCGPipeline.from_pretrained(tmp_path).settings()["guidance_scale"] == 2.25


def test_a_setting_can_be_left_open_again(tmp_path: Path) -> None:
    get_dummy_pipeline().save_pretrained(tmp_path)
    for steps in (5, None):
        write_sampling(tmp_path, {"rdm_num_inference_steps": steps})
        assert RCGPipeline.from_pretrained(tmp_path).settings()["rdm_num_inference_steps"] == steps


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"_class_name": "RCGPipeline", "sampling": {"guidance_scale": 1.5}}))
    before = (tmp_path / INDEX).read_bytes()
    with pytest.raises(UserError, match="sampling settings cannot be used"):
        write_sampling(tmp_path, {"guidance_scale": -1.0})

    def full(self: Path, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_sampling(tmp_path, {"guidance_scale": 2.0})
    assert (tmp_path / INDEX).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [INDEX]
    with pytest.raises(UserError, match="not a saved pipeline"):
        write_sampling(tmp_path / "none", {})
