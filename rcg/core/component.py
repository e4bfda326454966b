"""Weights of a loaded model lie in memory as if the model had just been made. A leaf: anyone may import it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin

from rcg.core.errors import UserError
from rcg.core.files import atomic_file
from rcg.core.shipped import local_folder

ALIGNMENT = 64
"""Bytes; that of PyTorch's own allocations on CPUs."""
CHUNK = 2**24
"""Bytes that are copied at once."""


def settle_weights(module: torch.nn.Module) -> None:
    """Give each weight and buffer on the CPU contiguous memory of its own at a multiple of `ALIGNMENT`, if it has not.

    Weights that are mapped from a file lie at any address, and matrix libraries choose their kernels, whose last bits
    differ, by address and strides: without this, a loaded model and the one that was saved need not compute the same.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.device.type != "cpu" or tensor.numel() == 0:
            continue
        plain = torch.empty(tensor.shape, device="meta").stride() == tensor.stride()
        if tensor.data_ptr() % ALIGNMENT or not plain:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def align_file(file: Path) -> None:
    """Lay a .safetensors file out such that what is mapped from it is aligned, but for odd-sized tensors, which come last.

    Those are small as a rule; so loading copies next to nothing (see `settle_weights`).
    """
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(source.read(length))
        metadata = {name: header.pop(name) for name in ("__metadata__",) if name in header}
        places = {name: entry["data_offsets"] for name, entry in header.items()}
        order = sorted(places, key=lambda name: ((places[name][1] - places[name][0]) % ALIGNMENT != 0, places[name]))
        offset = 0
        for name in order:
            size = places[name][1] - places[name][0]
            header[name] = {**header[name], "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(metadata | {name: header[name] for name in order}).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        with atomic_file(file) as temporary, temporary.open("wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                start, stop = places[name]
                source.seek(8 + length + start)
                for rest in range(stop - start, 0, -CHUNK):
                    target.write(source.read(min(rest, CHUNK)))


class Settled:
    """For a diffusers model, before `ModelMixin` among its bases: what is loaded has settled weights.

    What is saved is laid out so that loading needs no copy for it.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """As of diffusers, see `settle_weights`; also of a model in the box, with `subfolder=` (`rcg.core.shipped`).

        Raises:
            UserError: neither a folder, nor a model in the box, nor a name that the Hub could have; or a pipeline of which
                no part is named.
        """
        place = local_folder(pretrained_model_name_or_path) or Path(pretrained_model_name_or_path)
        if not place.is_dir() and (place.is_absolute() or len(place.parts) != 2):
            raise UserError(f"there is no folder {place}; give one, a name in the box, or user/name on the Hub.")
        if (place / "model_index.json").is_file() and not kwargs.get("subfolder"):
            raise UserError(f"{place} is a pipeline; say which part of it is meant, such as subfolder='encoder'.")
        loaded = super().from_pretrained(place.as_posix(), **kwargs)  # type: ignore[misc]
        module = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        for buffer in module.buffers():  # those that no file holds are not cast to a torch_dtype by diffusers
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(module.dtype)
        settle_weights(module)
        model: Self = loaded
        return model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As of diffusers, see `align_file`."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        for file in Path(save_directory).glob("*.safetensors"):
            align_file(file)

    # the signature is diffusers' own: its pipelines look at it
    save_pretrained.__wrapped__ = ModelMixin.save_pretrained  # type: ignore[attr-defined]
