"""rcg-push: publish a pipeline on the Hugging Face Hub, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcg.core.errors import UserError
from rcg.scripts._command import run_command


@dataclass
class Config:
    """Flags of rcg-push."""

    model: Path
    """Folder of the pipeline."""
    repo: str
    """Repository, user/name; made if need be."""
    private: bool = False
    """Make a new repository private."""
    metrics: Path | None = None
    """The metrics.json that rcg-eval wrote, for the card."""
    grid: Path | None = None
    """A PNG with samples for the card, such as the grid.png that rcg-sample wrote."""
    dataset: str | None = None
    """Name of the training data, or their id on the Hub."""
    license: str | None = None
    """Licence of the weights, as the Hub spells it: mit, apache-2.0, cc-by-nc-4.0, …"""
    recipe: str | None = None
    """How the model was trained, for the card: the commands, or where they are written."""
    half: bool = False
    """Upload the weights as float16, in half the space; they are float32 again, rounded, when they are loaded."""
    dry_run: Path | None = None
    """Write what would be uploaded into this folder instead, and upload nothing."""

    def validate(self) -> None:
        """Raise `UserError` for what cannot be, before the model is loaded."""
        if not self.model.is_dir():
            raise UserError(f"there is no folder {self.model}; give the one that rcg-assemble wrote.")
        for name in ("metrics", "grid"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise UserError(f"--{name} {path}: there is no such file.")


def run(config: Config) -> None:
    """Load the pipeline, which checks it, and upload it (or write what would be uploaded)."""
    from diffusers.utils import logging

    from rcg.hub import check_repo_id, read_metrics
    from rcg.pipeline import RCGPipeline

    logging.disable_progress_bar()
    check_repo_id(config.repo)
    metrics = None if config.metrics is None else read_metrics(config.metrics)
    address = RCGPipeline.from_pretrained(config.model).push_to_hub(
        config.repo,
        private=config.private or None,
        metrics=metrics,
        grid=config.grid,
        dataset=config.dataset,
        license=config.license,
        recipe=config.recipe,
        half=config.half,
        dry_run=config.dry_run,
    )
    if config.dry_run is not None:
        print(f"What would be uploaded to {config.repo} is in {config.dry_run}.")
    else:
        print(f"Uploaded: {address}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command("rcg-push", Config, run, "Publish a pipeline on the Hugging Face Hub, with a model card.", argv)


if __name__ == "__main__":
    main()
