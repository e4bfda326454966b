"""Replaying on a GPU what it was told once: CUDA graphs of functions of tensors. A leaf: anyone may import it.

Small batches keep a GPU waiting for its kernels to be launched, one by one, by Python. A function that launches the same ones
at every call can be recorded and launched as a whole. Of a model's functions, each is called as it is with inputs of
new shapes; at the second call with them it is recorded, and from then on replayed. Elsewhere than on CUDA, and where
gradients are wanted, nothing is.

`RCG_CUDA_GRAPHS=1` in the environment, or `replaying()`, switches it on. It is off until it has been seen at work on a GPU
(`pytest -m gpu -k replayed`, `benchmarks/sampling_speed.py`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError, first_line

Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, Tensor])
Given = Tensor | float | None

MOST_GRAPHS = 8
"""Kept of a model; the one that was not used for longest goes first."""
MOST_SEEN = 64
"""Shapes and settings of a model that are remembered as seen."""

_on: ContextVar[bool] = ContextVar("_on", default=os.environ.get("RCG_CUDA_GRAPHS") == "1")


@contextlib.contextmanager
def replaying(on: bool = True) -> Iterator[None]:
    """Within, this thread records and replays, or does not."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def is_replaying() -> bool:
    """Whether this thread records and replays, on CUDA."""
    return _on.get()


@dataclass(frozen=True)
class Captured:
    """What a function without arguments launches.

    Attributes:
        replay: launches it again.
        outputs: where its results then lie.
        pool: its memory, for recordings that are never replayed at the same time.
    """

    replay: Callable[[], object]
    outputs: Tensor | tuple[Tensor, Tensor]
    pool: Any


Capture = Callable[[Callable[[], Any], torch.device, Any], Captured]


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def capture(work: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
    """Run `work`, then record it.

    Args:
        work: launches kernels on `device`, and neither waits for it nor copies to it.
        device: of CUDA.
        pool: of an earlier recording of the same model, or None.

    Raises:
        RuntimeError: it cannot be recorded; PyTorch's state on the device is then undefined.
    """
    side, before = _side_stream(device), torch.cuda.current_stream(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        side.wait_stream(before)
        with torch.cuda.stream(side):
            work()  # so that the libraries have set up what they need for this stream
        before.wait_stream(side)
        # Other threads may go on, such as those that load data.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            outputs = work()
    return Captured(graph.replay, outputs, graph.pool())


@dataclass(frozen=True)
class _Graph:
    """A recording, and where it reads its inputs."""

    buffers: list[Tensor | None]
    captured: Captured

    def __call__(self, given: Sequence[Given]) -> Any:
        for buffer, value in zip(self.buffers, given, strict=True):
            if isinstance(value, Tensor):
                cast(Tensor, buffer).copy_(value)
            elif value is not None:
                cast(Tensor, buffer).fill_(value)
        self.captured.replay()
        outputs = self.captured.outputs
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(output.clone() for output in outputs)


@dataclass
class _Shelf:
    """The graphs of a model as long as its weights lie where they do.

    Attributes:
        places: of the weights.
        graphs: by function, settings and shapes.
        seen: the same of calls that were not recorded.
        stream: that used the graphs last; they share their memory.
    """

    places: tuple[int, ...]
    graphs: OrderedDict[Hashable, _Graph] = field(default_factory=OrderedDict)
    seen: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    stream: torch.cuda.Stream | None = None

    def follow(self, device: torch.device) -> None:
        """Let the current stream wait for the one that used the graphs last."""
        if device.type != "cuda":
            return
        stream = torch.cuda.current_stream(device)
        if self.stream is not None and self.stream != stream:
            stream.wait_stream(self.stream)
        self.stream = stream


class Replayer:
    """Graphs of models, each kept as long as its model lives.

    Args:
        record: see `capture`.
        device_type: where models are replayed.
    """

    def __init__(self, record: Capture = capture, device_type: str = "cuda") -> None:
        self.record, self.device_type = record, device_type
        self.shelves: weakref.WeakKeyDictionary[nn.Module, _Shelf] = weakref.WeakKeyDictionary()
        self.lock = threading.RLock()  # one process records one graph at a time

    def replayed(
        self, model: Any, function: Callable[..., Outputs], key: Hashable, others: Sequence[nn.Module] = ()
    ) -> Callable[..., Outputs]:
        """See `replayed`."""
        if not all(self._replayable(m) for m in (model, *others)) or not self._wanted():
            return function
        device = next(model.parameters()).device
        with self.lock:
            shelf = self.shelves.get(model)
            if shelf is None or shelf.places != _places(model):
                shelf = self.shelves[model] = _Shelf(_places(model))
        beside = tuple((weakref.ref(other), _places(other)) for other in others)
        settings = (key, beside, torch.is_inference_mode_enabled(), *_arithmetic())

        def call(*given: Given) -> Outputs:
            if all(value.device == device for value in given if isinstance(value, Tensor)):
                shapes = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else type(v) for v in given)
                with self.lock:
                    graph = self._graph(model, shelf, (settings, shapes), function, given)
                    if graph is not None:
                        shelf.follow(device)
                        return cast(Outputs, graph(given))
            return function(*given)

        return call

    def _wanted(self) -> bool:
        if not _on.get() or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if torch.is_autocast_enabled(self.device_type):  # it keeps casts of weights from call to call
            return False
        return self.device_type != "cuda" or not torch.cuda.is_current_stream_capturing()

    def _replayable(self, model: Any) -> bool:
        """Whether all that the model does at a call is to launch kernels on the device, as far as can be seen."""
        weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        if weight is None or weight.device.type != self.device_type or model.training:
            return False
        # hooks, forwards that another library has replaced, and what is compiled would not be called again
        return not any(
            m._forward_hooks or m._forward_pre_hooks or m._compiled_call_impl is not None or "forward" in vars(m)
            for m in model.modules()
        )

    def _graph(
        self, model: nn.Module, shelf: _Shelf, key: Hashable, function: Callable[..., Any], given: Sequence[Given]
    ) -> _Graph | None:
        """What to replay; None where the function is to be called."""
        graph = shelf.graphs.get(key)
        if graph is None:
            if key not in shelf.seen:
                shelf.seen[key] = None
                if len(shelf.seen) > MOST_SEEN:
                    shelf.seen.popitem(last=False)
                return None
            graph = shelf.graphs[key] = self._recorded(model, shelf, function, given)
            if len(shelf.graphs) > MOST_GRAPHS:
                shelf.graphs.popitem(last=False)
        shelf.graphs.move_to_end(key)
        return graph

    def _recorded(
        self, model: nn.Module, shelf: _Shelf, function: Callable[..., Any], given: Sequence[Given]
    ) -> _Graph:
        device = next(model.parameters()).device
        shelf.follow(device)
        buffers = [_buffer(value, device) for value in given]
        pool = next((graph.captured.pool for graph in shelf.graphs.values()), None)
        try:
            return _Graph(buffers, self.record(lambda: function(*buffers), device, pool))
        except RuntimeError as e:
            # where work fails, ending the recording fails, too
            reason = e.__context__ if isinstance(e.__context__, RuntimeError) else e
            raise UserError(
                f"{type(model).__name__} cannot be recorded as a CUDA graph ({first_line(reason)}); run again without "
                "RCG_CUDA_GRAPHS."
            ) from e


def _buffer(value: Given, device: torch.device) -> Tensor | None:
    """A copy of an input that a graph can read; a number as the float32 that models make of it."""
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.contiguous_format)
    return None if value is None else torch.full((), value, dtype=torch.float32, device=device)


def _places(model: nn.Module) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers()))


def _arithmetic() -> tuple[object, ...]:
    """PyTorch's switches that decide which kernels compute fp32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        getattr(matmul, "fp32_precision", None) or matmul.allow_tf32,
        getattr(getattr(cudnn, "conv", None), "fp32_precision", None) or cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


REPLAYER = Replayer()


def replayed(
    model: Any, function: Callable[..., Outputs], key: Hashable, others: Sequence[nn.Module] = ()
) -> Callable[..., Outputs]:
    """`function`, but replayed where that is quicker; to be made anew for every drawing.

    Args:
        model: that it evaluates, in evaluation mode; with anything but a module of PyTorch, `function` is returned.
        function: of tensors on the model's device, numbers and None, positional all; it makes the same kernels of all
            inputs of the same shapes, which neither wait for the device nor are fed from the CPU. What else it uses stays as
            it was when it was recorded. When recorded it gets numbers as float32 tensors [].
        key: what distinguishes it from the model's other functions, and one setting from another.
        others: further models that it evaluates.
    """
    return REPLAYER.replayed(model, function, key, others)
