"""Guidance: its schedules, against their formulas; conditions that do not fit."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rcg.core.errors import UserError
from rcg.image_gen.conditions import ClassEmbedding, Guidance, RepresentationEmbedding, check_given, condition_of
from tests.training.objectives import GENERATORS, made


def test_schedules() -> None:
    places = (0.0, 0.25, 0.5, 1.0)
    assert [Guidance(3.0).at(p) for p in places] == [3.0] * 4
    assert [Guidance(3.0, "linear").at(p) for p in places] == [1.0, 1.5, 2.0, 3.0]
    cosine = [Guidance(3.0, "cosine").at(p) for p in places]
    assert cosine == pytest.approx([1.0, 2.0 - math.cos(math.pi / 4), 2.0, 3.0])
    assert [Guidance(3.0, "linear", (0.25, 0.5)).at(p) for p in places] == [1.0, 1.5, 2.0, 1.0]
    assert not Guidance(1.0, "linear").on


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((math.nan,), "guidance_scale is nan"),
        ((2.0, "up"), "guidance_schedule is 'up'"),
        ((2.0, "linear", (0.5, 1.5)), r"interval is \[0.5, 1.5\]"),
        ((2.0, "linear", (0.5, 0.2)), r"interval is \[0.5, 0.2\]"),
        ((2.0, "linear", (math.nan, 1.0)), "interval"),
    ],
)
def test_guidance_that_cannot_be(arguments: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Guidance(*arguments)


def config(condition: str, dropout: float = 0.1) -> Any:
    return SimpleNamespace(condition=condition, representation_dim=4, condition_dropout=dropout)


def test_a_cluster_is_a_class_of_another_name() -> None:
    batch = {"representations": torch.zeros(2, 4), "labels": torch.tensor([0, 1]), "clusters": torch.tensor([7, 8])}
    assert condition_of(batch, "cluster")["class_labels"].tolist() == [7, 8]
    assert condition_of(batch, "class")["class_labels"].tolist() == [0, 1]
    assert condition_of(batch, "none") == {}
    assert check_given(config("cluster"), 2, None, batch["clusters"]) is batch["clusters"]


@pytest.mark.parametrize(
    ("condition", "dropout", "given", "says"),
    [
        ("none", 0.1, {"class_labels": torch.zeros(2)}, "class labels were given.*'none'"),
        ("cluster", 0.1, {"representations": torch.zeros(2, 4)}, "representations were given.*'cluster'"),
        ("cluster", 0.0, {}, "no null cluster"),
        ("representation", 0.0, {}, "no null representation .*; give representations"),
        ("representation", 0.1, {"representations": torch.zeros(2, 5)}, r"shape \(2, 5\).*\(2, 4\)"),
        ("class", 0.1, {"class_labels": torch.zeros(3)}, r"class labels have shape \(3,\)"),
    ],
)
def test_conditions_that_do_not_fit(condition: str, dropout: float, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_given(config(condition, dropout), 2, **{"representations": None, "class_labels": None, **given})


def test_embeddings_put_the_null_condition_where_it_is_dropped() -> None:
    drop = torch.tensor([True, False])
    classes = ClassEmbedding(3, 5, has_null=True)
    rows = classes(torch.tensor([0, 1]), 2, drop)
    assert torch.equal(rows, classes.weight[[3, 1]])
    assert torch.equal(classes(None, 2, None), classes.weight[[3, 3]])
    vectors = RepresentationEmbedding(4, 5)
    given = torch.randn(2, 4)
    assert torch.allclose(vectors(given, 2, drop), vectors.proj(torch.stack([vectors.null[0], given[1]])), atol=1e-6)


@pytest.mark.parametrize("name", GENERATORS)
def test_without_condition_dropout_nothing_trainable_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter without a gradient would end a training by several processes."""
    monkeypatch.setitem(GENERATORS, name, GENERATORS[name] | {"condition_dropout": 0.0})
    stage: Any = made(name)
    stage.objective(stage.dataset.batch(np.arange(4), np.zeros(4, np.uint64)))["loss"].backward()
    assert [n for n, p in stage.model.named_parameters() if p.requires_grad and p.grad is None] == []
