"""The parts MAGE is made of: token embedding, transformer block, token head.

Names of parameters are those of the official checkpoints (LTH14/rcg), so conversion is a plain mapping.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.attention import attend
from rcg.core.cross_entropy import linear_cross_entropy
from rcg.core.dropout import Dropout

EPS = 1e-6  # of every LayerNorm but the token head's
HEAD_EPS = 1e-5


class TokenEmbedding(nn.Module):
    """Word embedding + learned position embedding, LayerNorm, dropout.

    Args:
        vocab_size: words (codes, condition slot, mask).
        num_positions: positions; position 0 is the condition slot, 1 … N are the tokens in raster order.
        width: embedding size.
        dropout: after the LayerNorm, in [0, 1).
    """

    def __init__(self, vocab_size: int, num_positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.position_embeddings = nn.Embedding(num_positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dropout = Dropout(dropout)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions: int64, broadcastable to [B, L] → [B, L, width]."""
        embedded: Tensor = self.word_embeddings(ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(embedded))


class Memory:
    """Keys and values of one attention layer at every place of a sequence, kept between the steps of a generation.

    Args:
        batch: B sequences.
        places: S, their length.
        width: of keys and of values, all heads together.
        like: a tensor of the dtype and device to compute with.
    """

    def __init__(self, batch: int, places: int, width: int, like: Tensor) -> None:
        self.shape = (batch, places, width)
        self.keys = torch.zeros((batch * places, width), dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def write(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [B·L, width] at the places `rows`, int64 [B·L], of the flattened [B·S]."""
        self.keys.index_copy_(0, rows, keys)
        self.values.index_copy_(0, rows, values)

    def read(self, num_heads: int) -> tuple[Tensor, Tensor]:
        """All keys and all values, [B, heads, S, width / heads] each."""
        batch, places, width = self.shape
        shape = (batch, places, num_heads, width // num_heads)
        return self.keys.view(shape).transpose(1, 2), self.values.view(shape).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with a bias on query, key and value, and dropout on the attention weights."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        batch, length, width = x.shape
        heads, size = self.num_heads, width // self.num_heads
        qkv = self.qkv(x).reshape(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        q, k, v = qkv.unbind(0)
        y = attend(q, k, v, dropout=dropout)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))

    def extend(self, x: Tensor, memory: Memory, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of some tokens to all that the memory holds, these among them.

        Args:
            x: [B, L, width], the tokens.
            memory: keys and values of all places; those of `rows` are replaced by these tokens' own.
            rows: int64 [B·L], where the tokens stand, see `Memory.write`.
            bias: [B, 1, 1, S], 0 or −∞: which places may be looked at. None is all.

        Returns:
            [B, L, width].
        """
        batch, length, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=-1)
        memory.write(rows, k.reshape(-1, width), v.reshape(-1, width))
        q = q.view(batch, length, self.num_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, *memory.read(self.num_heads), attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Linear → GELU → dropout → Linear."""

    def __init__(self, width: int, hidden: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias)
        self.drop = Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] → […, width]."""
        return self.fc2(self.drop(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Pre-norm transformer block: x + dropout(attention(LN x)), then x + dropout(MLP(LN x)).

    Args:
        width: size of the residual stream, divisible by `num_heads`.
        num_heads: attention heads.
        mlp_ratio: hidden size of the MLP as a multiple of the width.
        dropout: of attention weights, attention output and both MLP layers, in [0, 1).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = SelfAttention(width, num_heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def extend(self, x: Tensor, memory: Memory, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """`forward` of some tokens [B, L, width] that also look at the remembered ones; see `SelfAttention.extend`."""
        x = x + self.attn.extend(self.norm1(x), memory, rows, bias)
        return x + self.mlp(self.norm2(x))


class TokenHead(nn.Module):
    """Logits of words: LN(GELU(Linear(hidden))) · word embeddingsᵀ + bias.

    The word embeddings are those of the input, detached: the output does not train them.
    """

    def __init__(self, decoder_width: int, width: int, vocab_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(decoder_width, width)
        self.ln = nn.LayerNorm(width, eps=HEAD_EPS)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocab_size))

    def forward(
        self, hidden: Tensor, words: Tensor, targets: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Logits, or the loss that they give.

        Args:
            hidden: [B, M, decoder_width].
            words: [K, width], the first K of the vocabulary.
            targets: int64 [B, M], below K.
            label_smoothing: of the loss, in [0, 1).

        Returns:
            logits [B, M, K]; with targets their mean cross-entropy, a scalar.
        """
        features, bias = self.ln(F.gelu(self.fc(hidden))), self.bias[0, 0, : len(words)]
        if targets is None:
            return F.linear(features, words.detach(), bias)
        return linear_cross_entropy(features.flatten(0, 1), words.detach(), bias, targets.flatten(), label_smoothing)
