"""The part of `rcg-eval` that probes an extractor with labelled images: its flags, and the call of the library."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rcg.core.errors import UserError
from rcg.core.schema import Count, Positive, Range, Size, flag_of
from rcg.scripts._command import Settings
from rcg.synthesis.prompts import TEMPLATES, read_captions

if TYPE_CHECKING:
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.eval.features import FeatureExtractor
    from rcg.eval.probing import Language

ProbeFlag = Literal["linear", "knn", "few-shot", "zero-shot"]


@dataclass
class ProbeSettings(Settings):
    """How much the --extractor's features know about labels."""

    probe: tuple[str, ...] = ()
    """Labelled images to probe the --extractor with, one set or several (transfer), instead of scoring generated ones: folders
    with a folder a class, or other labelled sources. A folder that holds train and test has both sides."""
    probe_test: tuple[str, ...] = ()
    """The test images of each set (default: its own, or a fifth of each class by the --seed)."""
    probe_with: tuple[ProbeFlag, ...] = ()
    """Which probes: a linear one; k-NN; few-shot, episodes of test images with their 95 % interval; zero-shot, of encoders of
    methods clip and stablerep+ (default: all that are possible)."""
    probe_features: Literal["pooled", "representation"] = "pooled"
    """Of --extractor encoder:DIR: the pooled features before the head, or the representation that an RDM learns."""
    probe_learning_rates: tuple[Positive, ...] = ()
    """Of the linear probe, tried at once (default: ten from 0.001 to 0.5); a tenth of the training images chooses."""
    probe_epochs: Count = 90
    """Its passes over the training images."""
    probe_batch_norm: bool = True
    """Give each feature mean 0 and deviation 1 over the training images first, as BatchNorm without parameters does."""
    probe_neighbors: Count = 20
    """k of k-NN."""
    probe_ways: Annotated[int, Range(2, 10**6)] = 5
    """Classes in a few-shot episode."""
    probe_shots: Size = 5
    """Labelled images of each of them."""
    probe_queries: Size = 15
    """Further images of each, which are to be classified."""
    probe_episodes: Count = 600
    """Episodes."""
    probe_templates: tuple[str, ...] = ()
    """Zero-shot: sentences with {} for the class (default: those of rcg-synthesize)."""
    probe_class_names: Path | None = None
    """Zero-shot: a .txt file with a name for each class, in their order (default: the folders' names)."""
    probe_cache: Path | None = None
    """Where features are kept, by hashes of images and weights (default: the user's cache folder). The processes of torchrun, which
    share out the features, must all see it."""

    def validate(self) -> None:
        """Raise `UserError` at the first value that cannot be used."""
        if (given := self.given()) and not self.probe:
            raise UserError(f"{flag_of(given[0])} is for --probe IMAGES; give these, too.")
        if self.probe_test and len(self.probe_test) != len(self.probe):
            raise UserError(
                f"--probe names {len(self.probe)} sets and --probe-test {len(self.probe_test)}; give one for each."
            )
        if bad := [template for template in self.probe_templates if template.count("{}") != 1]:
            raise UserError(f"--probe-templates: {bad[0]!r} must hold {{}} once, where the name of the class goes.")


def _of_encoder(folder: str, features: str) -> tuple[FeatureExtractor, Language | None]:
    """The extractor of an encoder of ours and, of its pooled features, its language side."""
    from rcg.core.components import component_folder, load_model
    from rcg.encoders.language import LanguageTower
    from rcg.encoders.ssl_encoder import SSLEncoder
    from rcg.eval.extractors import ModuleExtractor
    from rcg.eval.probing import Language

    if features == "representation":
        return ModuleExtractor("encoder", load_model(SSLEncoder, folder)), None
    encoder: SSLEncoder = load_model(SSLEncoder, folder, parts=["features"], standardize=False)
    extractor = ModuleExtractor("encoder", encoder)
    tower = component_folder(folder, (SSLEncoder,)) / "language"
    if not (tower / "config.json").is_file():
        return extractor, None
    language = load_model(LanguageTower, tower)

    def embed(found: Any) -> Any:
        own = language.image_projection is not None  # otherwise the encoder's own head leads there
        return language.project_images(found) if own else encoder.to("cpu").project(found)

    return extractor, Language(language.encode, embed)


def run_probe(config: Any) -> dict[str, Any]:
    """What `rcg.eval.probing.probe_sets` finds, of the flags of `rcg-eval`."""
    from rcg.core.hardware import own_device
    from rcg.core.parts import Share
    from rcg.eval.extractors import open_extractor
    from rcg.eval.linear_probe import LEARNING_RATES
    from rcg.eval.probing import ProbeSettings as Settings
    from rcg.eval.probing import probe_sets
    from rcg.eval.processes import Processes

    own: ProbeSettings = config.probing
    kind, _, folder = config.extractor.partition(":")
    language = None
    if kind == "encoder" and folder:
        if config.extractor_weights is not None:
            raise UserError(f"{config.extractor} brings its weights along; leave out --extractor-weights.")
        extractor, language = _of_encoder(folder, own.probe_features)
    elif own.probe_features != "pooled":
        raise UserError("--probe-features representation is for --extractor encoder:DIR; leave it out.")
    else:
        extractor = open_extractor(config.extractor, config.extractor_weights)
    processes = Processes.from_environment()
    names: Any = [name.replace("-", "_") for name in own.probe_with]
    settings = Settings(
        probes=tuple(names) or None,
        learning_rates=own.probe_learning_rates or LEARNING_RATES,
        epochs=own.probe_epochs,
        batch_norm=own.probe_batch_norm,
        neighbors=own.probe_neighbors,
        ways=own.probe_ways,
        shots=own.probe_shots,
        queries=own.probe_queries,
        episodes=own.probe_episodes,
        templates=own.probe_templates or TEMPLATES,
        seed=config.seed,
    )
    result = probe_sets(
        extractor,
        own.probe,
        own.probe_test,
        settings,
        language=language,
        image_size=config.image_size,
        class_names=read_captions(own.probe_class_names) if own.probe_class_names is not None else None,
        root=own.probe_cache,
        device=own_device(config.device, Share.from_environment()),
        precision=config.precision,
        progress=processes.rank == 0,
        processes=processes,
    )
    if processes.rank:
        return result
    for name, found in result["sets"].items():
        for what, reason in found["unavailable"].items():
            print(f"rcg-eval: {name}: {what.replace('_', '-')} is left out: {reason}", file=sys.stderr)
    return result
