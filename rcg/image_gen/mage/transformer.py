"""MAGE, the masked token transformer that turns a representation into image tokens (RCG §3.3, MAGE arXiv 2211.09117).

An encoder-decoder ViT over a square grid of code ids plus one condition slot. The slot carries what the image is
conditioned on: a representation (RCG), a class, or nothing. Sampling is in `rcg.image_gen.mage.sampling`, official
checkpoints are read by `rcg.published.mage`.
"""

from __future__ import annotations

import math

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from rcg.core.component import Settled
from rcg.core.errors import UserError
from rcg.core.schema import (
    Classes,
    Codes,
    CountOrZero,
    Depth,
    GridSize,
    MlpRatio,
    ShareBelowOne,
    Size,
    Word,
    check_arguments,
)
from rcg.image_gen.conditions import ClassEmbedding, Condition, check_given, check_sizes
from rcg.image_gen.mage.layers import EPS, Block, TokenEmbedding, TokenHead

CODE_LENGTH = 1.0
"""ℓ of `MageTransformer.place_words`."""


def _in_stream_dtype(x: Tensor) -> Tensor:
    """The residual stream: fp32, but bf16 on CPUs under autocast.

    Casts back and forth would take a seventh of a training step there. The gradient's distance to fp32's grows from
    1.1 % (autocast with an fp32 stream) to 1.6 %.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


class MageTransformer(Settled, ModelMixin, ConfigMixin):
    """Masked token transformer: partly masked code ids [B, N] (+ condition) → logits [B, N, num_codes].

    Ids are in raster order; N = grid_size². A masked position holds `mask_token_id`.

    Args:
        grid_size: tokens along each side of the image; grids are square.
        num_codes: codes of the tokenizer; ids 0 … num_codes-1.
        vocab_size: words of the embedding (official files: 2025). Default: codes + slot + mask.
        slot_token_id: id fed to the condition slot (official files: 1100). Default: num_codes.
        mask_token_id: id of a masked position. Default: the last word.
        width, depth, num_heads: of the encoder.
        decoder_width, decoder_depth, decoder_num_heads: of the decoder; width and heads default to the encoder's.
        mlp_ratio: hidden size of the MLPs as a multiple of the width.
        dropout: in embeddings, attention and MLPs while training, in [0, 1).
        condition: what the slot carries: "representation", "class", "cluster" or "none".
        representation_dim: size of a representation (condition "representation").
        num_classes: number of classes or clusters.
        condition_dropout: share of training samples whose condition is replaced by the learned null condition, which
            guidance contrasts with; 0 means that the model cannot be guided. In [0, 1).
        label_counts: how often each class or cluster is to be drawn, relative to the others; None: all alike.
        mask_ratio_min: share of the tokens that the encoder does without in training, and in sampling while that many are
            masked.

    Raises:
        UserError: a size cannot be used (a non-square grid, heads that do not divide the width, …).
    """

    @register_to_config
    def __init__(
        self,
        grid_size: GridSize = 16,
        num_codes: Codes = 1024,
        vocab_size: Codes | None = None,
        slot_token_id: Word | None = None,
        mask_token_id: Word | None = None,
        width: Size = 768,
        depth: Depth = 12,
        num_heads: Depth = 12,
        decoder_width: Size | None = None,
        decoder_depth: Depth = 8,
        decoder_num_heads: Depth | None = None,
        mlp_ratio: MlpRatio = 4.0,
        dropout: ShareBelowOne = 0.1,
        condition: Condition = "representation",
        representation_dim: Size | None = None,
        num_classes: Classes | None = None,
        condition_dropout: ShareBelowOne = 0.1,
        label_counts: list[CountOrZero] | None = None,
        mask_ratio_min: ShareBelowOne = 0.5,
    ) -> None:
        super().__init__()
        check_arguments(self)
        vocab_size = num_codes + 2 if vocab_size is None else vocab_size
        slot_token_id = num_codes if slot_token_id is None else slot_token_id
        mask_token_id = vocab_size - 1 if mask_token_id is None else mask_token_id
        decoder_width = width if decoder_width is None else decoder_width
        decoder_num_heads = num_heads if decoder_num_heads is None else decoder_num_heads
        for name, size, heads in (
            ("width", width, num_heads),
            ("decoder_width", decoder_width, decoder_num_heads),
        ):
            if size % heads:
                raise UserError(f"{name} is {size}, which {heads} heads do not divide; choose another number of heads.")
        for name, word in (("slot_token_id", slot_token_id), ("mask_token_id", mask_token_id)):
            if not num_codes <= word < vocab_size or slot_token_id == mask_token_id:
                raise UserError(
                    f"{name} is {word}, but slot and mask need ids of their own in [{num_codes}, {vocab_size})."
                )
        self.register_to_config(
            vocab_size=vocab_size,
            slot_token_id=slot_token_id,
            mask_token_id=mask_token_id,
            decoder_width=decoder_width,
            decoder_num_heads=decoder_num_heads,
        )

        self.token_emb = TokenEmbedding(vocab_size, self.num_tokens + 1, width, dropout)
        check_sizes(condition, representation_dim, num_classes)
        if condition == "representation":
            assert representation_dim is not None
            self.fake_latent = nn.Parameter(torch.zeros(1, representation_dim), requires_grad=condition_dropout > 0)
            self.latent_prior_proj = nn.Linear(representation_dim, width)
        elif condition != "none":
            self.class_emb = ClassEmbedding(num_classes or 0, width, has_null=condition_dropout > 0)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, self.num_tokens + 1, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_num_heads, mlp_ratio, dropout) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=EPS)
        self.mlm_layer = TokenHead(decoder_width, width, vocab_size)
        self._initialise()

    def _initialise(self) -> None:
        """The reference's initial weights; in models narrower than B, words are scaled so that logits start as large."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        word_std = 0.02 * max(1.0, math.sqrt(768 / self.config.width))
        nn.init.normal_(self.token_emb.word_embeddings.weight, std=word_std)
        nn.init.normal_(self.token_emb.position_embeddings.weight, std=word_std)
        nn.init.normal_(self.decoder_pos_embed_learned, std=0.02)
        if self.config.condition == "representation":
            nn.init.normal_(self.fake_latent, std=0.02)
        elif self.config.condition != "none":
            nn.init.normal_(self.class_emb.weight)  # as large as a projected representation

    @torch.no_grad()
    def place_words(self, codes: Tensor) -> None:
        """Let training begin with alike words for alike codes, as large as they were.

        Words are random Fourier features of what the codes stand for (Rahimi and Recht, NeurIPS 2007, section 3): the cosine
        between two words is about exp(−‖a − b‖² / 2ℓ²) of their codes a and b. As the same words make the logits, one that is
        right for a place is then half right for its neighbours, which else thousands of words must learn apart.

        Args:
            codes: float [num_codes, D] in [−1, 1].
        """
        words = self.token_emb.word_embeddings.weight[: self.config.num_codes]
        directions = torch.randn(codes.shape[1], words.shape[1], device=words.device) / CODE_LENGTH
        phases = 2 * math.pi * torch.rand(words.shape[1], device=words.device)
        features = math.sqrt(2) * torch.cos(codes.to(words) @ directions + phases)
        words.copy_(words.std() * features)

    @property
    def num_tokens(self) -> int:
        """N, the tokens of an image."""
        return int(self.config.grid_size) ** 2

    # ------------------------------------------------------------------ condition

    def condition_slot(
        self,
        batch_size: int,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor | None:
        """The vectors that stand in the condition slot.

        Args:
            batch_size: B.
            representations: float [B, representation_dim]; None is the null representation for all.
            class_labels: int64 [B] in [0, num_classes); None is the null class for all.
            drop_condition: bool [B]; True replaces this sample's condition by the null one. A representation is
                replaced before its projection.

        Returns:
            [B, width], or None for condition "none" (the slot then keeps its word embedding).

        Raises:
            UserError: a condition that this model does not take, or one of the wrong shape.
        """
        given = check_given(self.config, batch_size, representations, class_labels)
        if self.config.condition == "none":
            return None
        if self.config.condition != "representation":
            return self.class_emb(given, batch_size, drop_condition)
        null = self.fake_latent.expand(batch_size, -1)
        values = null if given is None else given.to(null.dtype)
        if given is not None and drop_condition is not None:
            values = torch.where(drop_condition[:, None], null, values)
        return self.latent_prior_proj(values)

    # ------------------------------------------------------------------ the two halves

    def embed(self, ids: Tensor, slot: Tensor | None, positions: Tensor) -> Tensor:
        """The encoder's input [B, 1+K, width]: the slot, then the tokens; arguments as in `encode`."""
        tokens = self.token_emb(ids, positions + 1)
        if slot is None:  # an ordinary token at position 0
            slot_id = torch.full((len(ids), 1), self.config.slot_token_id, device=ids.device)
            first = self.token_emb(slot_id, torch.zeros_like(slot_id))
        else:  # replaces the embedded token: no position, LayerNorm or dropout
            first = slot[:, None].to(tokens.dtype)
        return torch.cat([first, tokens], dim=1)

    def encode(self, ids: Tensor, slot: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """The encoder.

        Args:
            ids: int64 [B, K], code ids or `mask_token_id`.
            slot: [B, width] from `condition_slot`, or None.
            positions: int64 [B, K], raster positions in [0, N) of the ids; None is all N in order.

        Returns:
            [B, 1+K, width]: the slot, then the tokens in the order given.
        """
        if positions is None:
            positions = torch.arange(self.num_tokens, device=ids.device)[None]
        x = _in_stream_dtype(self.embed(ids, slot, positions))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, slot: Tensor, tokens: Tensor) -> Tensor:
        """The decoder's blocks.

        Args:
            slot: [B, 1, decoder_width], the embedded condition slot.
            tokens: [B, N, decoder_width] in raster order, the slot's vector wherever a token is masked.

        Returns:
            [B, 1+N, decoder_width], normalised.
        """
        x = _in_stream_dtype(torch.cat([slot, tokens], dim=1) + self.decoder_pos_embed_learned)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)

    def token_logits(self, hidden: Tensor, words: int) -> Tensor:
        """Decoder outputs [B, M, decoder_width] → logits [B, M, words] of the first words."""
        return self.mlm_layer(hidden, self.token_emb.word_embeddings.weight[:words])

    def token_loss(self, hidden: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Decoder outputs [B, M, decoder_width] and code ids int64 [B, M] → mean cross-entropy, a scalar."""
        words = self.token_emb.word_embeddings.weight[: self.config.num_codes]
        return self.mlm_layer(hidden, words, targets, label_smoothing)

    # ------------------------------------------------------------------ the two paths

    def forward(
        self,
        ids: Tensor,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
        full_vocabulary: bool = False,
    ) -> Tensor:
        """Logits for every position; no token is dropped. This is the path of generation.

        Args:
            ids: int64 [B, N], code ids or `mask_token_id`.
            representations, class_labels, drop_condition: see `condition_slot`. A conditional model without its
                condition predicts unconditionally.
            full_vocabulary: return the slot's position and all words too, for comparison with the reference.

        Returns:
            float [B, N, num_codes], or [B, 1+N, vocab_size] with `full_vocabulary`.

        Raises:
            UserError: ids of another length, or a condition this model does not take.
        """
        if ids.ndim != 2 or ids.shape[1] != self.num_tokens:
            raise UserError(
                f"ids have shape {tuple(ids.shape)}, but this generator needs [B, {self.num_tokens}]: "
                f"{self.config.grid_size} x {self.config.grid_size} tokens an image, flattened."
            )
        slot = self.condition_slot(len(ids), representations, class_labels, drop_condition)
        x = self.decoder_embed(self.encode(ids, slot))
        masked = (ids == self.config.mask_token_id)[..., None]
        hidden = self.decode(x[:, :1], torch.where(masked, x[:, :1], x[:, 1:]))
        if full_vocabulary:
            return self.token_logits(hidden, self.config.vocab_size)
        return self.token_logits(hidden[:, 1:], self.config.num_codes)

    def forward_masked(
        self,
        ids: Tensor,
        order: Tensor,
        num_dropped: int,
        num_masked: int,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """Decoder outputs of the masked positions only, most of them never seen by the encoder. This is the path of training.

        Args:
            ids: int64 [B, N], the true code ids.
            order: int64 [B, N], a permutation of the positions for each sample. The first `num_masked` are masked;
                of these the first `num_dropped` are left out of the encoder, the others enter it as mask tokens.
            num_dropped, num_masked: 0 <= num_dropped <= num_masked <= N, the same for the whole batch.
            representations, class_labels, drop_condition: see `condition_slot`.

        Returns:
            float [B, num_masked, decoder_width], in the order of `order[:, :num_masked]`; for `token_logits` or `token_loss`.
        """
        batch, hidden_masked = len(ids), num_masked - num_dropped
        kept = order[:, num_dropped:]
        kept_ids = ids.gather(1, kept)
        kept_ids[:, :hidden_masked] = self.config.mask_token_id
        slot = self.condition_slot(batch, representations, class_labels, drop_condition)
        x = self.decoder_embed(self.encode(kept_ids, slot, kept))

        width = x.shape[-1]
        visible = order[:, num_masked:, None].expand(-1, -1, width)
        tokens = x[:, :1].expand(-1, self.num_tokens, -1).scatter(1, visible, x[:, 1 + hidden_masked :])
        hidden = self.decode(x[:, :1], tokens)
        rows = torch.arange(batch, device=ids.device)[:, None] * hidden.shape[1]
        masked = (rows + 1 + order[:, :num_masked]).flatten()  # in the flattened [B·(1+N)]; far cheaper than gather
        return hidden.flatten(0, 1).index_select(0, masked).reshape(batch, num_masked, width)
