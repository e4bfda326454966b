"""Tiny components of a pipeline, with seeded random weights: one place for all tests that need a whole pipeline."""

from __future__ import annotations

from typing import Any, Literal

import torch

from rcg import MageTransformer, MaskGITScheduler, RCGPipeline, RepresentationMLP, SSLEncoder, VQTokenizer
from rcg.core.flow import flow_scheduler
from rcg.rdm.codes.scheduler import CodeScheduler
from rcg.rdm.codes.transformer import CodeTransformer
from rcg.rdm.flow.flow_mlp import FlowMLP
from rcg.rdm.recipes import MethodName
from rcg.rdm.schedule import fast_scheduler

DIM, CODES, GRID, SIZE, CLASSES = 12, 32, 4, 16, 5
SAMPLING = {"num_inference_steps": 5, "rdm_num_inference_steps": 4, "temperature": 2.0}


def _stir(model: torch.nn.Module, scale: float = 1.0) -> None:
    """Replace zero and near-zero initial weights, so that every input matters to the output."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.3)


def get_dummy_rdm(method: MethodName, num_classes: int) -> tuple[Any, Any]:
    """A model and the scheduler that it is exported with."""
    classes = {"num_classes": num_classes, "class_dropout": 0.1 if num_classes else 0.0}
    if method == "codes":
        codes = CodeTransformer(
            DIM, positions=6, num_codes=8, width=16, depth=1, num_heads=2, standardized=True, **classes
        )
        return codes, CodeScheduler(4)
    if method == "flow":
        flow = FlowMLP(DIM, width=16, depth=2, context_dim=8, standardized=True, **classes)
        flow.std.uniform_(0.5, 2)
        return flow, flow_scheduler(1.5)
    return RepresentationMLP(DIM, width=16, depth=2, context_dim=8, **classes), fast_scheduler()


def get_dummy_components(
    condition: Literal["representation", "class", "none"] = "representation",
    num_classes: int = 0,
    without: tuple[str, ...] = (),
    seed: int = 0,
    method: MethodName = "ddpm",
) -> dict[str, Any]:
    """Arguments for `RCGPipeline`.

    Args:
        condition: of the image generator; only with "representation" is there an RDM.
        num_classes: above 0 the RDM is class-conditional, with a null class.
        without: optional components to leave out.
        seed: of all weights.
        method: of the RDM.
    """
    torch.manual_seed(seed)
    generator = MageTransformer(
        grid_size=GRID, num_codes=CODES, width=16, depth=2, num_heads=2, decoder_depth=1, condition=condition,
        representation_dim=DIM if condition == "representation" else None,
        num_classes=CLASSES if condition == "class" else None,
    )  # fmt: skip
    rdm, rdm_scheduler = get_dummy_rdm(method, num_classes)
    tokenizer = VQTokenizer(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, num_codes=CODES, code_dim=6, norm_groups=4,
        image_size=SIZE,
    )  # fmt: skip
    encoder = SSLEncoder(
        arch="vit_tiny_patch16_224", image_size=SIZE, head_layers=2, head_hidden_dim=16, head_dim=DIM,
        arch_kwargs={"img_size": SIZE, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    for model in (generator, rdm, tokenizer):
        _stir(model)
    if isinstance(rdm, CodeTransformer):
        rdm.quantizer.fit(torch.randn(50, DIM))
    has_rdm = condition == "representation" and "rdm" not in without
    return {
        "image_generator": generator,
        "image_scheduler": MaskGITScheduler(mask_token_id=generator.config.mask_token_id),
        "tokenizer": tokenizer,
        "rdm": rdm if has_rdm else None,
        "rdm_scheduler": rdm_scheduler if has_rdm else None,
        "encoder": None if "encoder" in without else encoder,
    }


def get_dummy_pipeline(**kwargs: Any) -> RCGPipeline:
    """A tiny pipeline; `kwargs` are those of `get_dummy_components`."""
    pipe = RCGPipeline(**get_dummy_components(**kwargs), sampling=dict(SAMPLING))
    pipe.set_progress_bar_config(disable=True)
    return pipe
