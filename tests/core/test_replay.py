"""What is recorded, replayed and called as it is; with recordings that a CPU can make."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcg.core import replay
from rcg.core.errors import UserError
from rcg.core.replay import MOST_GRAPHS, Captured, Replayer, replayed, replaying
from tests.drawings import DRAWINGS, drawn


class Recorder:
    """In the place of CUDA's: remembers the work and does it anew on the same buffers."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0
        self.pools: list[Any] = []

    def __call__(self, work: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
        self.recorded += 1
        self.pools.append(pool)
        outputs, number = work(), self.recorded

        def again() -> None:
            self.replays += 1
            found = work()
            pairs = [(outputs, found)] if isinstance(outputs, Tensor) else zip(outputs, found, strict=True)
            for old, new in pairs:
                old.copy_(new)

        return Captured(again, outputs, pool or number)


class Counting(nn.Module):
    """Linear in x, t and, if there is one, the bias; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: Tensor, t: float | Tensor, bias: Tensor | None = None) -> Tensor:
        self.calls += 1
        y: Tensor = self.layer(x) * t
        return y if bias is None else y + bias


@pytest.fixture(autouse=True)
def switched_on() -> Iterator[None]:
    with replaying():
        yield


@pytest.fixture
def parts() -> tuple[Replayer, Recorder, Counting]:
    recorder = Recorder()
    return Replayer(recorder, "cpu"), recorder, Counting().eval()


def check(replayer: Replayer, model: Counting, rows: int = 2, bias: bool = False) -> Tensor:
    """One call as a drawing makes it, compared with the model's own."""
    x, t = torch.randn(rows, 3), float(torch.rand(()))
    given = (x, t, torch.randn(rows, 3) if bias else None)
    found = replayer.replayed(model, model, "f")(*given)
    torch.testing.assert_close(found, model(*given))
    return found


@torch.no_grad()
def test_the_first_call_is_plain_the_second_records_the_third_replays(
    parts: tuple[Replayer, Recorder, Counting],
) -> None:
    replayer, recorder, model = parts
    check(replayer, model)
    assert (recorder.recorded, recorder.replays) == (0, 0)
    first = check(replayer, model)
    assert (recorder.recorded, recorder.replays) == (1, 1)
    kept = first.clone()
    check(replayer, model)
    assert (recorder.recorded, recorder.replays) == (1, 2)
    assert torch.equal(first, kept)  # the caller's own
    model.layer.weight.mul_(2)  # in place: read anew
    check(replayer, model)
    assert recorder.recorded == 1


@torch.no_grad()
def test_other_shapes_and_absent_inputs_have_graphs_of_their_own(parts: tuple[Replayer, Recorder, Counting]) -> None:
    replayer, recorder, model = parts
    for _ in range(3):
        check(replayer, model)
        check(replayer, model, rows=5)
        check(replayer, model, bias=True)
    assert (recorder.recorded, recorder.replays) == (3, 6)
    assert recorder.pools == [None, 1, 1]  # they share their memory


@torch.no_grad()
def test_the_least_used_goes_first(parts: tuple[Replayer, Recorder, Counting]) -> None:
    replayer, recorder, model = parts
    for rows in range(1, MOST_GRAPHS + 2):
        check(replayer, model, rows)
        check(replayer, model, rows)
        check(replayer, model, 1)
    recorded = recorder.recorded
    check(replayer, model, 1)
    assert recorder.recorded == recorded == MOST_GRAPHS + 1
    check(replayer, model, 2)
    assert recorder.recorded == recorded + 1


@torch.no_grad()
def test_moved_weights_are_recorded_anew(parts: tuple[Replayer, Recorder, Counting]) -> None:
    replayer, recorder, model = parts
    for _ in range(2):
        check(replayer, model)
    model.layer.weight = nn.Parameter(torch.randn(3, 3))
    check(replayer, model)
    assert recorder.recorded == 1
    check(replayer, model)
    assert recorder.recorded == 2


@torch.no_grad()
def test_another_model_beside_has_its_own_graph(parts: tuple[Replayer, Recorder, Counting]) -> None:
    replayer, recorder, model = parts
    for other in [Counting().eval(), Counting().eval()]:
        for _ in range(3):
            x = torch.randn(2, 3)
            both = lambda x, other=other: model(x, 1.0) + other(x, 1.0)  # noqa: E731
            torch.testing.assert_close(replayer.replayed(model, both, "both", [other])(x), both(x))
    assert recorder.recorded == 2
    two = replayer.replayed(model, lambda x: (model(x, 1.0), x.amax()), "two")
    for _ in range(3):
        x = torch.randn(2, 3)
        torch.testing.assert_close(two(x), (model(x, 1.0), x.amax()))


@torch.no_grad()
def test_what_cannot_be_recorded_is_refused(parts: tuple[Replayer, Recorder, Counting]) -> None:
    def failing(work: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    replayer, model = Replayer(failing, "cpu"), parts[2]
    check(replayer, model)
    sentence = r"Counting cannot be recorded as a CUDA graph \(operation not .* capturing\); run again without RCG_CUDA"
    with pytest.raises(UserError, match=sentence):
        check(replayer, model)


def test_what_is_called_as_it_is(parts: tuple[Replayer, Recorder, Counting]) -> None:
    replayer, recorder, model = parts
    assert replayer.replayed(model, model, "f") is model  # gradients are wanted
    with torch.no_grad():
        for wrong in [Counting().train(), nn.Identity(), "no module"]:
            assert replayer.replayed(wrong, model, "f") is model
        with replaying(False):
            assert replayer.replayed(model, model, "f") is model
        with torch.autocast("cpu", torch.bfloat16):
            assert replayer.replayed(model, model, "f") is model
        assert replayed(model, model, "f") is model  # that of CUDA
        seen: list[int] = []
        handle = model.layer.register_forward_hook(lambda *_: seen.append(1))
        assert replayer.replayed(model, model, "f") is model
        handle.remove()
        assert replayer.replayed(model, model, "f") is not model
    assert recorder.recorded == 0


@torch.no_grad()
def test_graphs_go_with_their_model() -> None:
    replayer, model = Replayer(lambda work, device, pool: Captured(list, work(), 1), "cpu"), Counting().eval()
    for _ in range(2):
        replayer.replayed(model, model, "f")(torch.randn(2, 3), 1.0)
    assert len(replayer.shelves) == 1
    del model
    gc.collect()
    assert len(replayer.shelves) == 0


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The library's own replaying, on a CPU."""
    recorder = Recorder()
    monkeypatch.setattr(replay, "REPLAYER", Replayer(recorder, "cpu"))
    return recorder


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_give_all_that_varies_as_inputs(name: str, everywhere: Recorder) -> None:
    """A recording of an earlier drawing gives the later one's values: nothing of the earlier has stayed in it."""
    drawn(name, "cpu", exact_bits=True)
    assert everywhere.recorded > 0
    assert everywhere.replays > everywhere.recorded
