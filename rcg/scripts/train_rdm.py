"""rcg-train-rdm: train the representation diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rcg.core.schema import Depth, Range, ShareBelowOne, Size
from rcg.scripts._command import flags, run_command
from rcg.training.config import TrainingConfig


@dataclass
class Config:
    """Flags of rcg-train-rdm."""

    data: str
    """A cache with representations (from rcg-cache), or an image source, which needs --encoder."""
    encoder: Path | None = None
    """Folder of the frozen encoder. With images it runs on every step; with a cache, the cache must be its work."""
    val_data: str | None = None
    """A cache or image source that is not trained on, to judge by; without one, --held-out-share is taken from --data."""
    held_out_share: ShareBelowOne = 0.05
    """Share of --data that is not trained on but judged by (at most 10,000 samples); 0 judges by the training data."""
    size: Size | None = None
    """With images: side in pixels of the random crops that the encoder sees (default: the encoder's own size)."""
    width: Size = 1536
    """Hidden size of the MLP."""
    depth: Depth = 12
    """Residual blocks of the MLP."""
    class_conditional: bool = False
    """Condition on the classes of the data."""
    context_dim: Size = 512
    """Size of the class embedding."""
    class_dropout: ShareBelowOne = 0.1
    """Share of labels replaced by a null class, so that guidance works; 0 trains no null class."""
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = "sample"
    """What the model predicts: clean representations (the paper), noise, or velocity."""
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


def run(config: Config) -> None:
    """Train the model that the flags describe."""
    import torch

    from rcg.core.components import load_model
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.rdm.representation_mlp import RepresentationMLP
    from rcg.rdm.train import RDMStage, open_data
    from rcg.training.loop import train

    data = open_data(
        config.data,
        None if config.encoder is None else load_model(SSLEncoder, config.encoder),
        size=config.size,
        val_data=config.val_data,
        held_out_share=config.held_out_share,
        class_conditional=config.class_conditional,
    )
    torch.manual_seed(config.training.seed)
    rdm = RepresentationMLP(
        representation_dim=data.representation_dim,
        width=config.width,
        depth=config.depth,
        num_classes=data.num_classes,
        context_dim=config.context_dim,
        class_dropout=config.class_dropout if data.num_classes else 0.0,
    )
    stage = RDMStage(
        rdm,
        data.dataset,
        heldout=data.heldout,
        encoder=data.encoder,
        prediction_type=config.prediction_type,
        eval_samples=config.eval_samples,
    )
    train(stage, config.training, extra_config=flags(config, without=("training",)))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-rdm`."""
    run_command("rcg-train-rdm", Config, run, "Train the representation diffusion model (RDM).", argv)


if __name__ == "__main__":
    main()
