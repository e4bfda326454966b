"""Which arithmetic is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rcg.core.precision import in_precision, whole_fp32
from rcg.image_gen.mage.generator import MageGenerator
from tests.components import get_dummy_pipeline


def test_a_copy_is_kept_until_a_weight_changes() -> None:
    model = torch.nn.Linear(4, 4).eval()
    copy = in_precision(model, "bf16")
    assert in_precision(model, "bf16") is copy
    with torch.no_grad():
        model.weight.zero_()
    assert in_precision(model, "bf16") is not copy


def test_weights_made_in_inference_mode_have_a_copy_too() -> None:
    x = torch.eye(4)
    with torch.inference_mode():
        model = torch.nn.Linear(4, 4).eval()
        copy = in_precision(model, "bf16")
        assert in_precision(model, "bf16") is copy
        torch.testing.assert_close(copy(x.bfloat16()).float(), model(x), rtol=0.02, atol=0.02)
    assert in_precision(model, "bf16") is copy


def tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_within_whole_fp32_nothing_is_rounded_and_afterwards_all_is_as_it_was() -> None:
    before = tf32()
    with whole_fp32():
        assert tf32() == (False, False)
    assert tf32() == before
    with pytest.raises(KeyError), whole_fp32():
        raise KeyError
    assert tf32() == before


@pytest.mark.parametrize("exact", [True, False])
def test_exact_drawings_do_without_tf32(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    for name in ("generate", "decode"):
        original = getattr(MageGenerator, name)

        def look(self: Any, *args: Any, original: Any = original) -> Any:
            seen.append(tf32())
            return original(self, *args)

        monkeypatch.setattr(MageGenerator, name, look)
    before = tf32()
    get_dummy_pipeline()(1, num_inference_steps=2, exact=exact)
    assert seen == [(False, False) if exact else before] * 2
