"""What a new MAGE begins with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rcg.image_gen.mage.recipe import MageRecipe
from rcg.image_gen.protocol import Task
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer


@pytest.mark.parametrize(("levels", "alike"), [((5, 3), True), (None, False)])
def test_words_follow_the_codes_where_these_are_a_grid(levels: tuple[int, ...] | None, alike: bool) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"base_channels": 16, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 8}
    tokenizer = VQTokenizer(**sizes, num_codes=15, code_dim=2, levels=levels)
    recipe = MageRecipe(width=256, depth=1, num_heads=2, decoder_depth=1, decoder_num_heads=2)
    model = recipe.objective(Task("none", (4, 4), tokenizer=tokenizer)).model
    words = model.token_emb.word_embeddings.weight
    similarity = torch.nn.functional.cosine_similarity(words[6], words[7], dim=0)  # the first number differs by a half
    assert (similarity > 0.4) == alike
