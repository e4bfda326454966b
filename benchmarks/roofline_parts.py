"""The parts of RCG-B that `benchmarks/roofline.py` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rcg.core.precision import Precision, in_precision
from rcg.core.rng import Noise
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.mage.generator import MageGenerator
from rcg.image_gen.mage.objective import MageObjective
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.image_gen.mage.scheduler import MaskGITScheduler
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.rdm.ddpm.objective import DDPMObjective
from rcg.rdm.representation_mlp import RepresentationMLP

Work = Callable[[], object]
TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
ADAMW_BYTES, AVERAGE_BYTES = 28, 12


@dataclass
class Part:
    """Something to measure.

    Attributes:
        name: of the row.
        make: precision → what to run.
        models: whose weights are read.
        precisions: in which it makes sense.
        state_bytes: read and written besides, a weight: the optimiser's.
    """

    name: str
    make: Callable[[Precision], Work]
    models: list[nn.Module]
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    state_bytes: int = 0

    @property
    def trains(self) -> bool:
        """Whether it is a training step, whose weights stay fp32."""
        return self.state_bytes > 0


def parts(device: torch.device, images: int, train_images: int, steps: int, tiny: bool) -> Iterator[Part]:
    """RCG-B, or toys, part by part; each model is made when its turn comes."""
    torch.manual_seed(0)
    rdm = RepresentationMLP(256, *((64, 2) if tiny else (1536, 12))).eval().to(device)
    for batch in (4, 64):
        yield Part(f"RDM, one evaluation of {batch}", frozen(rdm, torch.randn(batch, 256), torch.tensor(500)), [rdm])
    yield rdm_step(rdm, 8 if tiny else 128)
    if tiny:
        encoder = SSLEncoder("vit_tiny_patch16_224", TINY_VIT, 32, head_layers=3, head_hidden_dim=64, head_dim=16)
        tokenizer = VQTokenizer(base_channels=32, channel_multipliers=(1, 1, 1, 1, 1), num_res_blocks=1)
    else:
        head = {"head_layers": 3, "head_hidden_dim": 4096, "head_dim": 256}
        encoder = SSLEncoder("vit_base_patch16_224", image_size=224, **head)
        tokenizer = VQTokenizer()
    encoder, tokenizer = encoder.eval().to(device), tokenizer.eval().to(device)
    pictures = torch.rand(images, 3, 256, 256)
    yield Part(f"encoder, {images} images", autocast(encoder, pictures, device), [encoder])
    yield Part(f"tokenizer encodes {images} images", autocast(tokenizer.encode, pictures, device), [tokenizer])
    sizes: dict[str, Any] = {"width": 64, "depth": 2, "num_heads": 4, "decoder_depth": 2} if tiny else {}
    heads = {"decoder_num_heads": 4 if tiny else 16, "representation_dim": 256}
    mage = MageTransformer(**sizes, **heads).eval().to(device)
    scheduler = MaskGITScheduler(mask_token_id=mage.config.mask_token_id)
    generator = MageGenerator(mage, scheduler, tokenizer)
    ids = torch.randint(1024, (images, 16, 16), device=device)

    def decode(precision: Precision) -> Work:
        return no_grad(lambda: generator.decode(ids, precision))

    def generate(exact: bool) -> Callable[[Precision], Work]:
        condition, noise = torch.randn(images, 256, device=device), Noise(range(images), device)
        options: dict[str, Any] = {"representations": condition, "generator": noise, "exact": exact}
        options |= {"batch_size": images, "num_inference_steps": steps, "temperature": 6.0}
        return lambda precision: lambda: generate_tokens(in_precision(mage, precision), scheduler, **options)

    yield Part(f"tokenizer decodes {images} images", decode, [tokenizer])
    yield Part(f"MAGE-B, {steps} steps for {images} images, default", generate(False), [mage])
    yield Part(f"MAGE-B, {steps} steps for {images} images, exact", generate(True), [mage], precisions=("fp32",))
    yield mage_step(mage, train_images)


def no_grad(work: Work) -> Work:
    """The same without gradients."""
    return torch.no_grad()(work)


def frozen(model: nn.Module, *inputs: Tensor) -> Callable[[Precision], Work]:
    """A frozen model as sampling runs it: in bf16, its packed copy."""
    device = next(model.parameters()).device
    arguments = [value.to(device) for value in inputs]

    def make(precision: Precision) -> Work:
        chosen = in_precision(model, precision)
        return no_grad(lambda: chosen(*arguments))

    return make


def autocast(function: Callable[..., Any], images: Tensor, device: torch.device) -> Callable[[Precision], Work]:
    """A frozen model as `rcg-cache` runs it: in bf16, under autocast."""
    images = images.to(device)

    def make(precision: Precision) -> Work:
        def work() -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                function(images)

        return work

    return make


def training(objective: nn.Module, batch: dict[str, Tensor], averaged: bool) -> Callable[[Precision], Work]:
    """One step of a training loop's arithmetic."""
    weights = [p for p in objective.parameters() if p.requires_grad]
    device = weights[0].device
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    average = [p.detach().clone() for p in weights] if averaged else []

    def make(precision: Precision) -> Work:
        def step() -> None:
            objective.train()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = objective(batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                torch._foreach_lerp_(average, [p.detach() for p in weights], 1e-4)

        return step

    return make


def rdm_step(rdm: RepresentationMLP, batch: int) -> Part:
    """A training step of the RDM."""
    objective = DDPMObjective(rdm).to(rdm.device)
    make = training(objective, {"representations": torch.randn(batch, 256, device=rdm.device)}, averaged=True)
    return Part(f"RDM, training step of {batch}", make, [rdm], state_bytes=ADAMW_BYTES + AVERAGE_BYTES)


def mage_step(mage: MageTransformer, batch: int) -> Part:
    """A training step of MAGE."""
    data = {
        "tokens": torch.randint(1024, (batch, 16, 16), device=mage.device),
        "representations": torch.randn(batch, 256, device=mage.device),
    }
    make = training(MageObjective(mage), data, averaged=False)
    return Part(f"MAGE-B, training step of {batch}", make, [mage], state_bytes=ADAMW_BYTES)
