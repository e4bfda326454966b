"""rcg-train-rdm: train the representation diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rcg.core.errors import UserError
from rcg.core.schema import Depth, Range, ShareBelowOne, Size
from rcg.scripts._command import run_command
from rcg.training.config import TrainingConfig

if TYPE_CHECKING:
    from rcg.data.cache import Cache
    from rcg.data.images import ImageDataset


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


def open_data(spec: str, encoder: Any, size: int | None) -> Cache | ImageDataset:
    """The data set that `spec` names, checked against the encoder.

    Args:
        spec: a cache folder or an image source.
        encoder: the frozen `SSLEncoder`, or None.
        size: side of the crops, for images.

    Raises:
        UserError: images without an encoder, or a cache of another encoder.
    """
    from rcg.data.cache import Cache, is_cache
    from rcg.data.images import ImageDataset
    from rcg.data.sources import open_source

    if is_cache(spec):
        cache = Cache(spec, ["representations"])
        cache.require("representations", encoder)
        return cache
    if encoder is None:
        if not Path(spec).is_dir():
            open_source(spec)  # says what is wrong with it, unless it is a built-in set
        raise UserError(
            f"{spec} is not a cache, and images need an encoder: add --encoder DIR, or compute a cache first with rcg-cache."
        )
    return ImageDataset(open_source(spec), size or int(encoder.config.image_size), "crop_flip")


def run(config: Config) -> None:
    """Train the model that the flags describe."""
    import dataclasses

    import torch

    from rcg.core.components import load_model
    from rcg.data.cache import Cache
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.rdm.representation_mlp import RepresentationMLP
    from rcg.rdm.train import RDMStage, hold_out_share
    from rcg.training.loop import train
    from rcg.training.stage import BatchDataset

    encoder = None if config.encoder is None else load_model(SSLEncoder, config.encoder)
    data = open_data(config.data, encoder, config.size)
    classes = data.num_classes if config.class_conditional else 0
    if config.class_conditional and data.labels is None:
        raise UserError(f"{config.data} has no class labels; leave --class-conditional out, or give labelled data.")
    dataset: BatchDataset = data
    heldout: BatchDataset | None = None
    if config.val_data is not None:
        val = open_data(config.val_data, encoder, config.size)
        _check_match(data, val, config)
        heldout = val
    elif config.held_out_share:
        dataset, heldout = hold_out_share(data, config.held_out_share)
    if isinstance(data, Cache):
        dim = data.fields["representations"][0]
        encoder = None  # its work is in the cache
    else:
        assert encoder is not None
        dim = encoder.representation_dim
    torch.manual_seed(config.training.seed)
    rdm = RepresentationMLP(
        representation_dim=dim,
        width=config.width,
        depth=config.depth,
        num_classes=classes,
        context_dim=config.context_dim,
        class_dropout=config.class_dropout if classes else 0.0,
    )
    stage = RDMStage(
        rdm,
        dataset,
        heldout=heldout,
        encoder=encoder,
        prediction_type=config.prediction_type,
        eval_samples=config.eval_samples,
    )
    flags = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "training"}
    train(stage, config.training, extra_config={k: str(v) if isinstance(v, Path) else v for k, v in flags.items()})


def _check_match(data: Cache | ImageDataset, val: Cache | ImageDataset, config: Config) -> None:
    """Both sets must hold representations of one encoder, and the same classes if these are used."""
    from rcg.data.cache import Cache

    if isinstance(data, Cache) != isinstance(val, Cache):
        raise UserError(
            "--data and --val-data must both be caches or both be images; make a cache of the other with rcg-cache."
        )
    if isinstance(data, Cache) and isinstance(val, Cache):
        one, other = (c.manifest["fields"]["representations"]["model_hash"] for c in (data, val))
        if one != other:
            raise UserError(
                f"the representations in {config.val_data} were computed by another encoder than those in {config.data}; "
                "make its cache anew with the same encoder."
            )
    if config.class_conditional and val.class_names != data.class_names:
        raise UserError(f"{config.val_data} does not have the classes of {config.data}; give one that has.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rcg-train-rdm`."""
    run_command("rcg-train-rdm", Config, run, "Train the representation diffusion model (RDM).", argv)


if __name__ == "__main__":
    main()
