"""Projection heads of self-supervised encoders: the small networks after the backbone, one for each family of methods."""

from __future__ import annotations

from typing import Literal

from torch import nn

from rcg.core.errors import UserError

HeadType = Literal["mocov3", "dino", "stablerep", "synclr", "linear"]
HEAD_STRIDE: dict[HeadType, int] = {"mocov3": 3, "dino": 2, "stablerep": 3, "synclr": 3, "linear": 1}
"""Modules from one linear layer of a head to the next: layer i is the head's module number i · stride."""


def projection_mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """MoCo-v3's projection or prediction head: bias-free linear layers, each followed by BatchNorm, ReLU between.

    The last BatchNorm has no affine parameters. Three layers of 4096 and 256 are the paper's projection head
    (arXiv 2104.02057, section 4).
    """
    layers: list[nn.Module] = []
    for width_in, width_out, last in _widths(in_dim, hidden_dim, out_dim, num_layers):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out, affine=not last)]
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def dino_mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """DINO's and iBOT's head up to its bottleneck: linear layers with GELU between and no norm.

    Three layers of 2048 and 256 are the paper's (arXiv 2104.14294, appendix C). What follows there, the l2
    normalisation and the layer of prototypes, serves the loss and is left out.
    """
    layers: list[nn.Module] = []
    for width_in, width_out, last in _widths(in_dim, hidden_dim, out_dim, num_layers):
        layers += [nn.Linear(width_in, width_out)] if last else [nn.Linear(width_in, width_out), nn.GELU()]
    return nn.Sequential(*layers)


def stablerep_mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """StableRep's head (arXiv 2306.00984): linear layers with bias, BatchNorm and ReLU after each but the last."""
    layers: list[nn.Module] = []
    for width_in, width_out, last in _widths(in_dim, hidden_dim, out_dim, num_layers):
        layers.append(nn.Linear(width_in, width_out))
        if not last:
            layers += [nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def synclr_mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """SynCLR's heads: as many layers as MoCo-v3's (arXiv 2312.17742, section 3.4), with LayerNorm for BatchNorm.

    Where the paper says MoCo-v3 alone, its reference program (google-research/syn-rep-learn, `train_pytorch`) has LayerNorm by
    default: linear layers with bias, LayerNorm and GELU between; the last without bias, followed by a LayerNorm without
    weights. Weights are drawn with a deviation of 0.02.
    """
    layers: list[nn.Module] = []
    for width_in, width_out, last in _widths(in_dim, hidden_dim, out_dim, num_layers):
        layers += [nn.Linear(width_in, width_out, bias=not last), nn.LayerNorm(width_out, elementwise_affine=not last)]
        if not last:
            layers.append(nn.GELU())
    return nn.Sequential(*layers).apply(narrow)


def narrow(module: nn.Module) -> None:
    """Starting weights of a ViT's linear layers: truncated normal with a deviation of 0.02, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_head(
    head_type: HeadType, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int
) -> nn.Sequential | None:
    """The head of a kind: [B, in_dim] → [B, out_dim]. None for no layers.

    Args:
        head_type: "mocov3", "dino", "stablerep" and "synclr" as above; "linear" is one bias-free matrix, as CLIP and StableRep+
            project images to where captions are.
        in_dim, hidden_dim, out_dim: widths.
        num_layers: linear layers; 0 is no head.

    Raises:
        UserError: more than one layer of kind "linear".
    """
    if not num_layers:
        return None
    if head_type == "linear":
        if num_layers > 1:
            raise UserError(f"a head of type 'linear' has one layer, but head_layers is {num_layers}; set it to 1.")
        return nn.Sequential(nn.Linear(in_dim, out_dim, bias=False))
    build = {"mocov3": projection_mlp, "dino": dino_mlp, "stablerep": stablerep_mlp, "synclr": synclr_mlp}[head_type]
    return build(in_dim, hidden_dim, out_dim, num_layers)


def _widths(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> list[tuple[int, int, bool]]:
    """Width in, width out and whether it is the last, for each linear layer of an MLP."""
    widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
    return [(widths[i], widths[i + 1], i == num_layers - 1) for i in range(num_layers)]
