"""Measuring what each stage takes on this machine, by running a few steps of it, on noise in place of images."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rcg.core.hardware import pick_device
from rcg.encoders.ssl_encoder import SSLEncoder, standardize
from rcg.eval.features import FeatureExtractor
from rcg.pipeline import RCGPipeline
from rcg.rdm.protocol import Objective
from rcg.rdm.train import RDMData
from rcg.recipe.drawing import DRAWN_AT_ONCE
from rcg.recipe.judging import precision_of
from rcg.recipe.rates import GeneratorSpeed, Speed
from rcg.recipe.settings import GeneratorSize, Settings
from rcg.recipe.stages import encoder_stage, generator_stage, rdm_stage, training_config
from rcg.sampling.drawing import draw_images, one_thread_each
from rcg.training.loop import train
from rcg.training.stage import Batch, Stage

Device = Literal["auto", "cpu", "cuda"]
UNCOUNTED = 2
"""First steps, in which memory is taken and kernels are chosen."""
LEAST_STEPS, MOST_STEPS = 3, 60
ENCODED, SCORED, DRAWN = 64, 16, 16
"""Images at once; drawn ones: for each thread of a CPU."""


class NoiseData:
    """A `BatchDataset` of pictures and representations that mean nothing, but cost the loop what real ones do."""

    fingerprint = "noise"

    def __init__(self, image_size: int, representation_dim: int, length: int = 4096) -> None:
        self.image_size, self.representation_dim, self.length = image_size, representation_dim, length

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        """See `BatchDataset.batch`."""
        generator = torch.Generator().manual_seed(int(seeds[0]))
        shape = (len(indices), 3, self.image_size, self.image_size)
        rows = torch.randn(len(indices), self.representation_dim, generator=generator)
        return {
            "images": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            "representations": standardize(rows),
            "indices": torch.from_numpy(np.array(indices, np.int64)),
        }


class _EnoughError(Exception):
    """Ends a training that was only to be timed."""


class Stopwatch:
    """Measures stages.

    Args:
        settings: of the recipe.
        device: where to compute.
        seed: of the run.
        seconds: about so long for each measurement; a few steps in any case.
        clock: tells the time in seconds.
    """

    def __init__(
        self, settings: Settings, device: Device, seed: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings, self.device, self.seed, self.seconds, self.clock = settings, device, seed, seconds, clock

    def training(self, stage: Stage, flags: dict[str, Any]) -> Speed:
        """Seconds of a step of the training loop, and of one evaluation with its picture."""
        times: list[float] = []
        device = pick_device(self.device)

        def watch(step: int) -> bool:
            now, counted = self.clock(), len(times) - UNCOUNTED
            enough = counted >= MOST_STEPS or (counted >= LEAST_STEPS and now - times[UNCOUNTED] > self.seconds)
            if device.type == "cuda" and (counted == 0 or enough):  # it is some steps behind
                torch.cuda.synchronize(device)
                now = self.clock()
            times.append(now)
            if enough:
                raise _EnoughError
            return False

        with tempfile.TemporaryDirectory() as folder:
            never = 10**6
            config = training_config(
                flags, Path(folder) / "run", never, 1, seconds_a_step=1e-6, device=self.device, seed=self.seed
            )
            with contextlib.suppress(_EnoughError):
                train(stage, config, watch=watch)
        step = (times[-1] - times[UNCOUNTED]) / (len(times) - 1 - UNCOUNTED)
        begun = self.clock()
        for objective in stage.objectives.values():
            objective.eval()
        with torch.no_grad():
            stage.evaluate(0)
            stage.preview(0)
        return {"step": step, "look": self.clock() - begun}

    def encoding(self, encoder: SSLEncoder, image_size: int) -> float:
        """Seconds for the representation of a view."""
        device = pick_device(self.device)
        images = torch.rand(ENCODED, 3, image_size, image_size, device=device)

        def encode() -> None:
            with torch.no_grad():
                encoder.to(device)(images).cpu()

        return self.twice(encode) / ENCODED

    def scoring(self, extractor: FeatureExtractor, image_size: int) -> float:
        """Seconds for an image's features."""
        device = pick_device(self.device)
        images = torch.randint(0, 256, (SCORED, 3, image_size, image_size), dtype=torch.uint8, device=device)
        extractor = extractor.to(device).eval()

        def score() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, precision_of(device) == "bf16"):
                extractor(images)[0].cpu()

        return self.twice(score) / SCORED

    def twice(self, work: Callable[[], Any]) -> float:
        """Seconds that work takes the second time."""
        work()
        begun = self.clock()
        work()
        return self.clock() - begun

    def new_encoder(self) -> Speed:
        """Training an encoder anew."""
        shape = self.settings.encoder_shape
        data = NoiseData(shape.image_size, shape.representation_dim)
        return self.training(encoder_stage(data, self.settings, self.seed), self.settings.encoder)

    def rdm(self, dim: int, standardized: bool) -> tuple[Speed, Objective]:
        """Training the RDM, and what was trained for it."""
        data = NoiseData(1, dim)
        stage = rdm_stage(RDMData(data, None, None, dim, 0, standardized), self.settings, self.seed)
        return self.training(stage, self.settings.rdm), stage.objective

    def generator(self, size: GeneratorSize, image_size: int, dim: int, rdm: Objective) -> GeneratorSpeed:
        """Training a generator, and drawing guided images with it and an RDM."""
        data = NoiseData(image_size, dim)
        stage = generator_stage(data, self.settings, size, image_size, dim, self.seed)
        speed = self.training(stage, self.settings.generator)
        pipe = RCGPipeline(
            image_generator=stage.model,
            image_scheduler=stage.objective.generator.scheduler,
            rdm=rdm.rdm,
            rdm_scheduler=rdm.generator.scheduler,
        )
        pipe.set_progress_bar_config(disable=True)
        with one_thread_each(pipe.device) as threads:
            count = DRAWN * threads if pipe.device.type == "cpu" else DRAWN_AT_ONCE
            draw_images(pipe, range(threads), 0, threads=threads, precision="auto", guidance_scale=2.0)
            begun = self.clock()
            draw_images(pipe, range(count), 0, threads=threads, precision="auto", guidance_scale=2.0)
            draw = (self.clock() - begun) / count
        return {**speed, "draw": draw}
