"""Unconditional image generation with self-supervised representations (RCG, arXiv 2312.03701).

Public names are loaded on first use, so that `import rcg` and every `--help` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rcg.version import __version__

if TYPE_CHECKING:
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.errors import UserError
    from rcg.image_gen.mage import MageTransformer
    from rcg.image_gen.maskgit_scheduler import MaskGITScheduler
    from rcg.image_gen.vq_tokenizer import VQTokenizer
    from rcg.pipeline import RCGPipeline, RCGPipelineOutput
    from rcg.rdm.representation_mlp import RepresentationMLP

_HOMES = {
    "RCGPipeline": "rcg.pipeline",
    "RCGPipelineOutput": "rcg.pipeline",
    "SSLEncoder": "rcg.encoders.ssl_encoder",
    "RepresentationMLP": "rcg.rdm.representation_mlp",
    "MageTransformer": "rcg.image_gen.mage",
    "MaskGITScheduler": "rcg.image_gen.maskgit_scheduler",
    "VQTokenizer": "rcg.image_gen.vq_tokenizer",
    "UserError": "rcg.errors",
}

__all__ = [
    "MageTransformer",
    "MaskGITScheduler",
    "RCGPipeline",
    "RCGPipelineOutput",
    "RepresentationMLP",
    "SSLEncoder",
    "UserError",
    "VQTokenizer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rcg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
