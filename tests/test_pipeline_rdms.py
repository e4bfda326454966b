"""A pipeline with each kind of RDM: saved, loaded, the same images for any batch size, guided, exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rcg import RCGPipeline, UserError
from rcg.core.rng import sample_generators
from rcg.rdm.recipes import MethodName
from tests.components import DIM, get_dummy_components, get_dummy_pipeline, get_dummy_rdm

METHODS = get_args(MethodName)


def draw(pipe: RCGPipeline, count: int, start: int = 0, **settings: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe(generator=sample_generators(0, start, count), output_type="pt", precision="fp32", **settings)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_draws_the_same_images(method: MethodName, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline(method=method, num_classes=3)
    labels = [0, 1, 2, 1, 0]
    out = draw(pipe, 5, class_labels=labels)
    assert out.representations.shape == (5, DIM)
    if method != "ddpm":  # the dummies' data is standardised
        torch.testing.assert_close(out.representations.std(1), torch.ones(5))
    pipe.save_pretrained(tmp_path)
    loaded = RCGPipeline.from_pretrained(tmp_path)
    assert type(loaded.rdm) is type(pipe.rdm)
    assert loaded.identity() == pipe.identity()
    again = draw(loaded, 5, class_labels=labels)
    assert torch.equal(again.images, out.images)
    assert torch.equal(again.representations, out.representations)
    parts = [draw(pipe, 2, class_labels=labels[:2]), draw(pipe, 3, start=2, class_labels=labels[2:])]
    assert torch.equal(torch.cat([part.images for part in parts]), out.images)
    assert torch.equal(torch.cat([part.representations for part in parts]), out.representations)


@pytest.mark.parametrize("method", METHODS)
def test_steps_guidance_and_exactness_reach_the_rdm(method: MethodName) -> None:
    pipe = get_dummy_pipeline(method=method, num_classes=3)
    plain = draw(pipe, 6, class_labels=1)
    guided = draw(pipe, 6, class_labels=1, rdm_guidance_scale=6.0)
    fewer = draw(pipe, 6, class_labels=1, rdm_num_inference_steps=2)
    for other in (guided, fewer):
        assert not torch.equal(other.representations, plain.representations)
    exact = draw(pipe, 6, class_labels=1, exact=True)
    assert torch.equal(exact.representations, plain.representations) == (method != "ddpm")
    with pytest.raises(UserError, match="no null class"):
        draw(get_dummy_pipeline(method=method), 2, rdm_guidance_scale=2.0)


def test_from_stages(tmp_path: Path) -> None:
    parts = get_dummy_components(method="codes")
    for folder, names in {"g": ("image_generator", "image_scheduler"), "t": ("tokenizer",), "r": ("rdm", "rdm_scheduler")}.items():  # fmt: skip
        for name in names:
            parts[name].save_pretrained(tmp_path / folder)
    pipe = RCGPipeline.from_stages(tmp_path / "g", tmp_path / "t", tmp_path / "r")
    assert draw(pipe, 1, num_inference_steps=2).images.isfinite().all()


def test_an_rdm_and_the_scheduler_of_another_do_not_go_together() -> None:
    components, rdms = get_dummy_components(), {method: get_dummy_rdm(method, 0) for method in METHODS}
    for method in METHODS:
        for other in METHODS:
            parts = {**components, "rdm": rdms[method][0], "rdm_scheduler": rdms[other][1]}
            if method == other:
                RCGPipeline(**parts)
                continue
            with pytest.raises(UserError, match=r"Scheduler (as it is set )?does not|DPMSolver.* does not draw codes"):
                RCGPipeline(**parts)
    euler = {**get_dummy_components(method="flow"), "rdm_scheduler": FlowMatchEulerDiscreteScheduler()}
    assert draw(RCGPipeline(**euler), 1, num_inference_steps=2).images.isfinite().all()
