"""Who would wait for a GPU, told without one: computed on the meta device, which has no numbers that could be read."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Within the block a copy to the meta device fails unless it is asynchronous; whatever reads from it fails by itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device != kwargs.get("device", args[0].device):
            assert kwargs.get("non_blocking"), f"a copy of {tuple(args[0].shape)} is waited for"
        return func(*args, **kwargs)
