"""Hours that RCG-B and RCG-L take on ImageNet-1k, computed: operations of each stage, by a GPU's peak and an assumed utilisation.

    python benchmarks/hours.py --out benchmarks/results/hours.json
    python benchmarks/hours.py --gpus 1 --images 100000        # another machine, another set

Nothing is measured here. Operations are those of matrix products, convolutions and attention, 2 for a multiply-add, as
PyTorch's `FlopCounterMode` counts them on models without memory (the meta device); a training step counts as three forward
passes, its momentum encoder as one. Images times epochs are the paper's: 1,281,167 images; MAGE 800 epochs (200 in its
ablations), RDM 200, MoCo-v3 300. `rcg-cache` computes ten views of each image once. The peaks are the vendor's, dense bf16. A
stage takes the greater of operations / peak and, for the optimiser's steps, which every GPU does in full, bytes of weights and
their state / bandwidth: that is what bounds the RDM, with 64 samples in a GPU at a time.
The utilisation, by default 35 % and 50 %, is an assumption: it covers reading, waiting, normalisation, the optimiser and what
the kernels miss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rcg.core.files import write_json
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.mage.objective import MageObjective
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.rdm.ddpm.objective import DDPMObjective
from rcg.rdm.representation_mlp import RepresentationMLP

IMAGES = 1_281_167
VIEWS = 10
EPOCHS = {"encoder": 300, "rdm": 200, "generator": 800}
PEAKS = {"H100": 989e12, "A100": 312e12}
"""Operations a second, bf16, without sparsity: H100 SXM and A100, NVIDIA's data sheets."""
BANDWIDTHS = {"H100": 3.35e12, "A100": 2.04e12}
"""Bytes a second (80 GB models), the same."""
STEP_BYTES = 28 + 12 + 12
"""Of a weight, moved in a step: AdamW (4 numbers read, 3 written), the moving average, forward and backward pass."""
BATCHES = {"encoder": 4096, "RDM": 512, "generator": 4096}
MAGE: dict[str, dict[str, Any]] = {
    "RCG-B": {},
    "RCG-L": {"width": 1024, "depth": 24, "num_heads": 16},
}
AT_ONCE = 8
"""Images that are counted together."""


def operations(work: Callable[[], object]) -> float:
    """Of one image, when `work` is a forward pass of `AT_ONCE`."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        work()
    return counter.get_total_flops() / AT_ONCE


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A model without memory."""
    with torch.device("meta"):
        return make().requires_grad_(False)  # the counter's hooks stumble over slices of trainable weights


def forward_operations() -> tuple[dict[str, float], dict[str, int]]:
    """Operations of one image's forward pass, and the number of weights, by what computes it."""
    meta = torch.device("meta")
    pictures = torch.empty(AT_ONCE, 3, 256, 256, device=meta)
    vectors = torch.empty(AT_ONCE, 256, device=meta)
    tokens = torch.zeros(AT_ONCE, 16, 16, dtype=torch.int64, device=meta)
    encoder: Any = on_meta(
        lambda: (
            SSLEncoder(
                "vit_base_patch16_224", image_size=224, head_layers=3, head_hidden_dim=4096, head_dim=256
            ).backbone
        )
    )
    tokenizer: Any = on_meta(VQTokenizer)
    rdm = DDPMObjective(RepresentationMLP(256, 1536, 12)).to(meta)
    found = {
        "encoder": operations(lambda: encoder(pictures[..., :224, :224])),
        "tokenizer": operations(lambda: tokenizer.encoder(pictures)),
        "rdm": operations(lambda: rdm({"representations": vectors})),
    }
    weights = {"encoder": count(encoder), "RDM": count(rdm)}
    for name, sizes in MAGE.items():
        model = on_meta(lambda sizes=sizes: MageTransformer(decoder_num_heads=16, representation_dim=256, **sizes))
        objective = MageObjective(model).train()
        batch = {"tokens": tokens, "representations": vectors}
        found[name] = operations(lambda objective=objective, batch=batch: objective(batch, mask_ratio=0.75))
        weights[name] = count(model)
    return found, weights


def count(model: nn.Module) -> int:
    """Weights of a model."""
    return sum(p.numel() for p in model.parameters())


def step_bytes(stage: str, model: str, weights: dict[str, int], images: int) -> float:
    """Bytes that the optimiser's steps of a stage move in every GPU; 0 for the cache, which has none."""
    name = stage.split(",")[0]
    if name not in BATCHES:
        return 0.0
    epochs = int(stage.split(", ")[1].split()[0])
    return weights[model if name == "generator" else name] * STEP_BYTES * images * epochs / BATCHES[name]


def stages(forward: dict[str, float], model: str, images: int) -> dict[str, float]:
    """Operations of each stage of a model over `images` images."""
    return {
        "encoder, 300 epochs (if one is trained)": forward["encoder"] * 2 * (3 + 1) * images * EPOCHS["encoder"],
        "cache, 10 views": (forward["encoder"] + forward["tokenizer"]) * images * VIEWS,
        "RDM, 200 epochs": forward["rdm"] * 3 * images * EPOCHS["rdm"],
        "generator, 200 epochs": forward[model] * 3 * images * 200,
        "generator, 800 epochs": forward[model] * 3 * images * EPOCHS["generator"],
    }


def table(rows: list[dict[str, Any]], gpus: int) -> str:
    """The rows in Markdown."""
    columns = list(rows[0]["hours"])
    lines = [
        f"| | operations | {' | '.join(f'{gpus} {c}' for c in columns)} |",
        f"|---|---:|{'---:|' * len(columns)}",
    ]
    for row in rows:
        hours = [f"{row['hours'][c]:.3g} h" for c in columns]
        lines.append(f"| {row['model']}: {row['stage']} | {row['operations']:.2e} | {' | '.join(hours)} |")
    return "\n".join(lines)


def main() -> None:
    """Count, divide, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--utilisation", type=float, nargs="+", default=[0.35, 0.5], help="assumed shares of the peak")
    args = parser.parse_args()
    forward, weights = forward_operations()
    rows: list[dict[str, Any]] = []
    for model in MAGE:
        for stage, amount in stages(forward, model, args.images).items():
            moved = step_bytes(stage, model, weights, args.images)
            hours = {
                f"{gpu} at {share:.0%}": max(amount / (peak * args.gpus), moved / BANDWIDTHS[gpu]) / share / 3600
                for gpu, peak in PEAKS.items()
                for share in args.utilisation
            }
            rows.append({"model": model, "stage": stage, "operations": amount, "bytes": moved, "hours": hours})
    print(table(rows, args.gpus))
    print("\nGFLOP of one image's forward pass: " + ", ".join(f"{k} {v / 1e9:.3g}" for k, v in forward.items()))
    if args.out is not None:
        result = {"gpus": args.gpus, "images": args.images, "views": VIEWS, "epochs": EPOCHS, "peaks": PEAKS,
                  "bandwidths": BANDWIDTHS,
                  "utilisation_assumed": args.utilisation, "forward_operations": forward, "rows": rows}  # fmt: skip
        write_json(args.out, result)


if __name__ == "__main__":
    main()
