"""Tiny files laid out as the published DINO, iBOT, DeiT and StableRep ones, and what a plain program computes from them.

Nothing of rcg is used: the networks are written out from the papers with `torch.nn.functional`.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, HIDDEN, OUT = 32, 2, 4, 48, 24
Weights = dict[str, Tensor]


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Scales near 1, variances above 0, matrices that keep the size of what they multiply."""
    torch.manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale = any(part in name for part in ("norm", "bn", "ln_")) and name.endswith("weight")
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var") or scale:
            weights[name] = 0.5 + torch.rand(shape)
        elif len(shape) == 2 or name.endswith("proj.weight"):
            weights[name] = torch.randn(shape) * fan**-0.5
        else:
            weights[name] = torch.randn(shape) * 0.3
    return weights


def linear_shapes(name: str, width_in: int, width_out: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width_out, width_in)} | ({f"{name}.bias": (width_out,)} if bias else {})


def norm_shapes(name: str, width: int, affine: bool = True, batch: bool = False) -> dict[str, tuple[int, ...]]:
    own = ["weight", "bias"] * affine + ["running_mean", "running_var"] * batch
    tracked: dict[str, tuple[int, ...]] = {f"{name}.num_batches_tracked": ()} if batch else {}
    return {f"{name}.{part}": (width,) for part in own} | tracked


def vit(prefix: str = "", *, size: int = 32, patch: int = 16, width: int = WIDTH, seed: int = 0) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (size // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shapes |= norm_shapes(f"{block}.norm1", width) | linear_shapes(f"{block}.attn.qkv", width, 3 * width)
        shapes |= linear_shapes(f"{block}.attn.proj", width, width) | norm_shapes(f"{block}.norm2", width)
        shapes |= linear_shapes(f"{block}.mlp.fc1", width, 4 * width)
        shapes |= linear_shapes(f"{block}.mlp.fc2", 4 * width, width)
    return random_weights({prefix + k: v for k, v in (shapes | norm_shapes("norm", width)).items()}, seed)


def dino_head(prefix: str = "head.", prototypes: tuple[str, ...] = ("last_layer.weight",)) -> Weights:
    shapes = linear_shapes("mlp.0", WIDTH, HIDDEN) | linear_shapes("mlp.2", HIDDEN, HIDDEN)
    shapes |= linear_shapes("mlp.4", HIDDEN, OUT) | dict.fromkeys(prototypes, (60, OUT))
    return random_weights({prefix + k: v for k, v in shapes.items()}, 1)


def stablerep_head(name: str = "image_mlp", width: int = WIDTH, seed: int = 2) -> Weights:
    shapes = linear_shapes("layer1", width, HIDDEN) | norm_shapes("bn1", HIDDEN, batch=True)
    shapes |= linear_shapes("layer2", HIDDEN, HIDDEN) | norm_shapes("bn2", HIDDEN, batch=True)
    return random_weights({f"{name}.{k}": v for k, v in (shapes | linear_shapes("layer3", HIDDEN, OUT)).items()}, seed)


def moco_head() -> Weights:
    shapes = linear_shapes("bn.0", WIDTH, HIDDEN, bias=False) | norm_shapes("bn.1", HIDDEN, batch=True)
    shapes |= linear_shapes("bn.3", HIDDEN, HIDDEN, bias=False) | norm_shapes("bn.4", HIDDEN, batch=True)
    shapes |= linear_shapes("bn.6", HIDDEN, OUT, bias=False) | norm_shapes("bn.7", OUT, affine=False, batch=True)
    return {k.replace("bn.", "head."): v for k, v in random_weights(shapes, 3).items()}


def extras() -> dict[str, Any]:
    return {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 9, "args": argparse.Namespace(lr=0.1)}


def dino_file(**options: int) -> dict[str, Any]:
    teacher = vit("backbone.", **options) | dino_head()
    student = {f"module.{k}": v + 0.3 for k, v in teacher.items()}
    return {"student": student, "teacher": teacher, "dino_loss": {"center": torch.zeros(1, 60)}, **extras()}


def ibot_file() -> dict[str, Any]:
    prototypes = ("last_layer.weight_g", "last_layer.weight_v", "last_layer2.weight_g", "last_layer2.weight_v")
    teacher = vit("backbone.") | dino_head(prototypes=prototypes) | {"backbone.masked_embed": torch.zeros(1, WIDTH)}
    student = {f"module.{k}": v + 0.3 for k, v in teacher.items()}
    return {"student": student, "teacher": teacher, "ibot_loss": {"center2": torch.zeros(1, 1, 60)}, **extras()}


def deit_file() -> dict[str, Any]:
    return {"model": vit() | random_weights(linear_shapes("head", WIDTH, 10), 4)}


def stablerep_file() -> dict[str, Any]:
    return {"model": vit("visual.", size=64) | stablerep_head(), "scaler": {"scale": 1.0}, **extras()}


def stablerep_plus_file(projection: str = "linear") -> dict[str, Any]:
    block, width = "transformer.resblocks.0", 20
    shapes: dict[str, tuple[int, ...]] = {
        f"{block}.attn.in_proj_weight": (3 * width, width),
        "token_embedding.weight": (50, width),
        "positional_embedding": (7, width),
        "logit_scale": (),
    }
    shapes |= norm_shapes("ln_final", width) | norm_shapes(f"{block}.ln_1", width)
    if projection == "linear":
        shapes |= {"image_projection": (WIDTH, 16), "text_projection": (width, 16)}
    model = vit("visual.") | stablerep_head() | random_weights(shapes, 5)
    if projection == "mlp":
        model |= stablerep_head("image_projection", seed=6) | stablerep_head("text_projection", width, seed=7)
    return {"model": model, "scaler": {"scale": 1.0}, **extras()}


def preprocess(images: Tensor, size: int) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean[:, None, None]) / std[:, None, None]
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False)


def class_token(w: Weights, prefix: str, images: Tensor, size: int) -> Tensor:
    """A plain ViT's class token after the final norm: pre-norm blocks, exact GELU, LayerNorm's epsilon 1e-6."""
    w = {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    patch = w["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(preprocess(images, size), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    width = x.shape[-1]
    for i in range(DEPTH):
        block = f"blocks.{i}"
        q, k, v = affine(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").split(width, dim=-1)
        mixed = []
        for part in torch.arange(width).split(width // HEADS):
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width // HEADS)
            mixed.append(scores.softmax(-1) @ v[..., part])
        x = x + affine(torch.cat(mixed, dim=-1), f"{block}.attn.proj")
        x = x + affine(gelu(affine(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def batch_norm(w: Weights, x: Tensor, name: str) -> Tensor:
    x = (x - w[f"{name}.running_mean"]) / (w[f"{name}.running_var"] + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"] if f"{name}.weight" in w else x


def dino_project(w: Weights, x: Tensor) -> Tensor:
    for i in (0, 2, 4):
        x = x @ w[f"head.mlp.{i}.weight"].T + w[f"head.mlp.{i}.bias"]
        x = gelu(x) if i < 4 else x
    return x


def stablerep_project(w: Weights, x: Tensor, name: str = "image_mlp") -> Tensor:
    for i in (1, 2):
        x = x @ w[f"{name}.layer{i}.weight"].T + w[f"{name}.layer{i}.bias"]
        x = batch_norm(w, x, f"{name}.bn{i}").clamp(min=0)
    return x @ w[f"{name}.layer3.weight"].T + w[f"{name}.layer3.bias"]


def moco_project(w: Weights, x: Tensor) -> Tensor:
    for i in (0, 3, 6):
        x = batch_norm(w, x @ w[f"head.{i}.weight"].T, f"head.{i + 1}")
        x = x.clamp(min=0) if i < 6 else x
    return x


def standardised(h: Tensor) -> Tensor:
    centred = h - h.mean(1, keepdim=True)
    return centred / (centred.square().sum(1, keepdim=True) / (h.shape[1] - 1)).sqrt()
