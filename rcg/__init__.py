"""Unconditional image generation with self-supervised representations (RCG, arXiv 2312.03701).

Public names are loaded on first use, so that `import rcg` and every `--help` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rcg.core.errors import UserError
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.image_gen.mage.scheduler import MaskGITScheduler
    from rcg.image_gen.mage.transformer import MageTransformer
    from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
    from rcg.pipeline import RCGPipeline, RCGPipelineOutput
    from rcg.rdm.representation_mlp import RepresentationMLP

_HOMES = {
    "RCGPipeline": "rcg.pipeline",
    "RCGPipelineOutput": "rcg.pipeline",
    "SSLEncoder": "rcg.encoders.ssl_encoder",
    "RepresentationMLP": "rcg.rdm.representation_mlp",
    "MageTransformer": "rcg.image_gen.mage.transformer",
    "MaskGITScheduler": "rcg.image_gen.mage.scheduler",
    "VQTokenizer": "rcg.image_gen.tokenizers.vq_tokenizer",
    "UserError": "rcg.core.errors",
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
