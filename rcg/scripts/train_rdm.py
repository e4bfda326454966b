"""`rcg-train-rdm`: train what turns noise into a representation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Range, ShareBelowOne, Size
from rcg.rdm.recipes import RECIPES, MethodName
from rcg.scripts._command import flags, last_value, run_command
from rcg.training.config import TrainingConfig


@dataclass
class Config:
    """Flags of rcg-train-rdm."""

    data: str
    """A cache with representations (from rcg-cache), or an image source, which needs --encoder."""
    encoder: Path | None = None
    """Folder of the frozen encoder, or name in the box (rcg/cifar10). With images it runs on every step; with a cache, the cache must
    be its work."""
    val_data: str | None = None
    """A cache or image source that is not trained on, to judge by; without one, --held-out-share is taken from --data."""
    held_out_share: ShareBelowOne = 0.05
    """Share of --data that is not trained on but judged by (at most 10,000 samples); 0 judges by the training data."""
    size: Size | None = None
    """With images: side in pixels of the random crops that the encoder sees (default: the encoder's own size)."""
    method: MethodName = "ddpm"
    """How representations are drawn: the paper's diffusion, a flow, or discrete codes; `--method NAME --help` lists its own
    flags."""
    condition: Literal["none", "class", "cluster"] = "none"
    """What representations are drawn from beside noise: the classes of the data, or the clusters of a cache that was made
    with rcg-cache --clusters, which need no labels and make guidance of the RDM work."""
    class_dropout: ShareBelowOne = 0.1
    """Share of labels replaced by a null class, so that guidance works; 0 trains no null class."""
    eval_samples: Annotated[int, Range(2, 10**9)] = 5000
    """Most representations to draw for the Fréchet distance."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            out=tyro.MISSING,
            epochs=200,
            batch_size=512,
            base_lr=2.56e-4,
            lr_schedule="constant",
            weight_decay=0.01,
            beta2=0.999,
        )
    )
    """The training loop."""

    def validate(self) -> None:
        """Raise `UserError` for a flag that would do nothing."""
        from rcg.data.layout import is_cache

        if self.size is not None and is_cache(Path(self.data)):
            raise UserError(
                f"--size is for images, but {self.data} is a cache, made at a size of its own; leave it out."
            )
        if self.val_data is not None and self.held_out_share != Config.held_out_share:
            raise UserError("--held-out-share has no effect beside --val-data; leave one of them out.")
        if self.condition == "none" and self.class_dropout != Config.class_dropout:
            raise UserError("--class-dropout is for --condition class or cluster; add one or leave it out.")


CONFIGS: dict[str, type[Any]] = {
    method: make_dataclass("Config", [("recipe", recipe, field(default_factory=recipe))], bases=(Config,))
    for method, recipe in RECIPES.items()
}
"""The flags of each method: those above and its own."""


def run(config: Any) -> None:
    """Train the model that the flags describe."""
    import torch

    from rcg.core.components import load_model
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.rdm.protocol import Task
    from rcg.rdm.train import RDMStage, open_data
    from rcg.training.loop import train

    data = open_data(
        config.data,
        None if config.encoder is None else load_model(SSLEncoder, config.encoder),
        size=config.size,
        val_data=config.val_data,
        held_out_share=config.held_out_share,
        condition=config.condition,
    )
    torch.manual_seed(config.training.seed)
    dropout = config.class_dropout if data.num_classes else 0.0
    objective = config.recipe.objective(
        Task(data.representation_dim, data.num_classes, dropout, data.standardized, data.label_counts)
    )
    stage = RDMStage(
        objective, data.dataset, heldout=data.heldout, encoder=data.encoder, eval_samples=config.eval_samples
    )
    train(stage, config.training, extra_config=flags(config, without=("training",)))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-rdm`."""

    def config_of(arguments: Sequence[str]) -> type[Any]:
        return CONFIGS.get(last_value(arguments, "--method") or get_args(MethodName)[0], Config)

    run_command("rcg-train-rdm", config_of, run, "Train the representation model (RDM).", argv)


if __name__ == "__main__":
    main()
