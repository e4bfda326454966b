"""A masked transformer over the codes of a representation, with the quantiser that makes them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from rcg.core.attention import attend
from rcg.core.component import Settled
from rcg.core.dropout import Dropout
from rcg.core.errors import UserError
from rcg.core.schema import Classes, Codes, CountOrZero, Depth, ShareBelowOne, Size, check_arguments
from rcg.rdm.classes import Classed, check_classes, given_or_null
from rcg.rdm.codes.quantizer import ResidualQuantizer
from rcg.rdm.statistics import standardized as to_standardized

MAX_TABLE = 2**27
"""Most numbers in a table of all codes: their centres, their embeddings."""


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(LN x), then x + MLP(LN x) with four times the width inside."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] → [B, N, width]."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.drop(self.proj(attended))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class CodeTransformer(Classed, Settled, ModelMixin, ConfigMixin):
    """Logits of the codes of a representation, given some of them (and a class).

    Each position has its own codebook, so also its own embeddings, by which codes are told apart at the output, too. Codes are
    those of `quantizer`, which is fitted to the training data and saved with the weights.

    Args:
        representation_dim: D, entries of a representation.
        positions: N codes of a representation, coarse to fine.
        num_codes: K, values that a code has.
        width: of the transformer, a multiple of `num_heads`.
        depth: blocks.
        num_heads: attention heads.
        num_classes: 0 for the unconditional model.
        class_dropout: share of training labels replaced by a learned null class; 0 makes none, and no guidance.
        dropout: in the blocks.
        standardized: whether drawn representations are brought to mean 0 and standard deviation 1 over their own
            entries, as all of an encoder that standardises have it.
        label_counts: how often each class is to be drawn, relative to the others; None: all alike.

    Raises:
        UserError: sizes that cannot be.
    """

    @register_to_config
    def __init__(
        self,
        representation_dim: Size = 256,
        positions: Size = 8,
        num_codes: Codes = 256,
        width: Size = 768,
        depth: Depth = 8,
        num_heads: Depth = 12,
        num_classes: Classes = 0,
        class_dropout: ShareBelowOne = 0.0,
        dropout: ShareBelowOne = 0.0,
        standardized: bool = False,
        label_counts: list[CountOrZero] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(self)
        check_classes(num_classes, class_dropout)
        if width % num_heads:
            raise UserError(f"the width {width} does not split over {num_heads} heads; make it a multiple.")
        if num_codes * positions * max(representation_dim, width) > MAX_TABLE:
            raise UserError(f"{num_codes} codes at {positions} positions are more than can be held; take fewer.")
        self.quantizer = ResidualQuantizer(representation_dim, positions, num_codes)
        self.embedding = nn.Embedding(positions * (num_codes + 1), width)
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes + (class_dropout > 0), width)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(positions, 1, num_codes))
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        if num_classes:
            nn.init.normal_(self.class_embedding.weight, std=width**-0.5)
        for name, layer in self.blocks.named_modules():
            if isinstance(layer, nn.Linear):
                small = (2 * depth) ** -0.5 if name.endswith(("proj", "fc2")) else 1.0
                nn.init.normal_(layer.weight, std=small * layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    @property
    def mask_code(self) -> int:
        """The code that stands for "not known"."""
        return int(self.config.num_codes)

    def forward(self, codes: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Logits of all positions.

        Args:
            codes: int64 [B, N] in [0, K), or `mask_code`.
            class_labels: int64 [B] in [0, num_classes), or `null_class`; None means the null class where there is one.

        Returns:
            [B, N, K].

        Raises:
            UserError: labels that do not fit the model, or another number of codes.
        """
        positions = int(self.config.positions)
        if codes.ndim != 2 or codes.shape[1] != positions:
            raise UserError(f"the codes have shape {tuple(codes.shape)}, but this model takes [batch, {positions}].")
        labels = given_or_null(self, class_labels, len(codes), codes.device)
        x = self.embedding(codes + torch.arange(positions, device=codes.device) * (self.mask_code + 1))
        if labels is not None:
            x = x + self.class_embedding(labels)[:, None]
        for block in self.blocks:
            x = block(x)
        h = self.head_norm(F.gelu(self.head(self.norm(x)))).transpose(0, 1)  # [N, B, width]
        codebooks = self.embedding.weight.view(positions, self.mask_code + 1, -1)[:, : self.mask_code]
        return torch.baddbmm(self.bias, h, codebooks.transpose(1, 2)).transpose(0, 1)

    @torch.no_grad()
    def fit(self, representations: Tensor) -> None:
        """Fit the quantiser to representations [M, D]; the model then begins with each code's frequency, whatever is given.

        Each code's embedding starts from where its centre lies. Embeddings are random Fourier features of the centres (Rahimi and Recht 2007): those of close codes are alike, at
        several scales, so that what is learned of one code holds for its neighbours.
        """
        self.quantizer.fit(representations)
        positions, num_codes, dim = self.quantizer.centres.shape
        width = int(self.config.width)
        generator = torch.Generator().manual_seed(0)
        scales = torch.logspace(-1, 1, width, base=4.0)[torch.randperm(width, generator=generator)]
        frequencies = torch.randn(positions, dim, width, generator=generator) * scales / dim**0.5
        phases = 2 * math.pi * torch.rand(positions, 1, width, generator=generator)
        centres = self.quantizer.centres.cpu()
        spread = centres.flatten(1).std(dim=1).clamp_min(1e-12)[:, None, None]
        features = (2 / width) ** 0.5 * torch.cos(centres / spread @ frequencies + phases)
        self.embedding.weight.view(positions, num_codes + 1, width)[:, :num_codes].copy_(features)
        codes = self.encode(representations.to(self.bias))
        counts = torch.stack([column.bincount(minlength=num_codes) for column in codes.T])
        self.bias.copy_(((counts + 1) / (len(codes) + num_codes)).log()[:, None])
        for parameter in self.head_norm.parameters():
            nn.init.zeros_(parameter)

    def encode(self, representations: Tensor) -> Tensor:
        """Representations [B, D] → codes int64 [B, N]."""
        return self.quantizer.encode(representations)

    def decode(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes [B, N] and noise [B, D] (see `ResidualQuantizer.decode`) → representations float32 [B, D]."""
        x = self.quantizer.decode(codes, noise)
        return to_standardized(x) if self.config.standardized else x
