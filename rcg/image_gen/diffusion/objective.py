"""What a model is trained to do that predicts noise or velocity: the squared error, and the bound for its choice of variance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rcg.core import draws
from rcg.core.errors import UserError
from rcg.image_gen.conditions import condition_of, dropped
from rcg.image_gen.diffusion.gaussian import GaussianDiffusion, split_output
from rcg.image_gen.diffusion.generator import DiffusionGenerator

EVAL_BATCH = 64


class DiffusionObjective(nn.Module):
    """The loss of improved diffusion (arXiv 2102.09672), as the reference takes it for DiT and ADM.

    L = mean (ε − ε̂)² + bound, where the second, `GaussianDiffusion.bound` in bits, is there if the model chooses its
    variance, and trains that choice alone. With velocity in the place of noise (`prediction_type`) the error of x₀ has the
    weight 1 + ᾱ / (1 − ᾱ) (arXiv 2202.00512, section 4). Times are uniform over the T steps of the generator's scheduler;
    the samples of a batch are spread evenly over them, which makes the gradient less noisy and changes nothing else. See
    `rcg.image_gen.protocol.Objective`.

    Args:
        generator: the model that is trained (called as in `rcg.image_gen.diffusion.sampling`, with a further argument
            `drop_condition`), its scheduler, which names the noise schedule and what is predicted and is exported, and its
            tokenizer.
    """

    grouped = False

    def __init__(self, generator: DiffusionGenerator) -> None:
        super().__init__()
        self.model = generator.model
        self.generator = generator
        self.field = generator.field
        self.process = GaussianDiffusion.of(generator.scheduler)
        self.error = "noise_error" if self.process.predicts_noise else "velocity_error"
        """What the squared error is called."""

    def encode(self, images: Tensor) -> Tensor:
        """Codes [B, …] of images float [B, 3, H, W] in [0, 1]; `UserError` without the tokenizer that it takes."""
        return self.generator.encode(images)

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for codes of another shape than the model's, or images that are no bytes."""
        config = self.model.config
        expected = [config.in_channels, config.sample_size, config.sample_size]
        if list(codes.shape[1:]) != expected:
            raise UserError(
                f"the data's {self.field} have shape {list(codes.shape[1:])}, but the model takes {expected}; build the model "
                "for these data, or give them in that size."
            )
        if self.field == "images" and codes.dtype != torch.uint8:
            raise UserError(f"the data's images are {codes.dtype}, but the model takes uint8; give them as bytes.")

    def identity(self) -> dict[str, Any]:
        """The noise schedule."""
        config = self.generator.scheduler.config
        names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
        return {"noise": [config[name] for name in names]}

    def forward(
        self,
        batch: dict[str, Tensor],
        steps: Tensor | None = None,
        noise: Tensor | None = None,
        condition_noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            batch: codes, and `representations` float [B, D] or `labels` int64 [B] as the model needs.
            steps, noise, condition_noise: used in place of random draws, for tests: int64 [B] in [0, T); like the codes,
                standard normal; float [B], the condition is dropped where it is below the model's `condition_dropout`.

        Returns:
            Scalars: `loss` and its parts, `noise_error` (or `velocity_error`) and, if the model chooses its variance, `bound`.
        """
        config, data = self.model.config, self.generator.data_of(batch[self.field])
        count, device = len(data), data.device
        if steps is None:
            steps = (draws.stratified(count, device) * len(self.process)).long().clamp_max(len(self.process) - 1)
        if noise is None:
            noise = draws.normal_like(data)
        drop = dropped(config, count, device, condition_noise)
        parts = self.losses(data, steps, noise, condition_of(batch, config.condition), drop)
        means = {name: values.mean() for name, values in parts.items()}
        return {"loss": sum(means.values(), torch.zeros((), device=device)), **means}

    def losses(
        self, data: Tensor, steps: Tensor, noise: Tensor, given: dict[str, Tensor], drop: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parts of each sample's loss, [B] each; `given` is the condition under the names of the model."""
        noisy = self.process.add_noise(data, noise, steps)
        output = self.model(noisy, steps, **given, drop_condition=drop).float()
        predicted, choice = split_output(output, data.shape[1])
        wanted = self.process.target(data, noise, steps)
        parts = {self.error: (wanted - predicted).square().flatten(1).mean(dim=1)}
        if choice is not None:
            mean = self.process.mean(self.process.clean(noisy, predicted.detach(), steps), noisy, steps)
            parts["bound"] = self.process.bound(
                mean, self.process.log_variance(choice, steps, data), data, noisy, steps
            )
        return parts

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Tensor], seed: int) -> dict[str, float]:
        """The parts of the loss of held-out samples, at times spread evenly, with the same noise at every call.

        Returns:
            `noise_error` (or `velocity_error`) and, if the model chooses its variance, `bound`; for a conditional model also
            `noise_error_unconditional`, with the null condition (meaningful with condition dropout only).
        """
        codes, given = batch[self.field], condition_of(batch, self.model.config.condition)
        count, device = len(codes), codes.device
        steps = ((torch.arange(count) + 0.5) / count * len(self.process)).long().to(device)
        noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(device)
        sums: dict[str, float] = {}
        kinds = {"": given}
        if given and self.model.config.condition_dropout > 0:
            kinds["_unconditional"] = {}
        for some in torch.arange(count, device=device).split(EVAL_BATCH):
            data = self.generator.data_of(codes[some])
            for kind, shown in kinds.items():
                parts = self.losses(data, steps[some], noise[some], {k: v[some] for k, v in shown.items()})
                for name in parts if not kind else (self.error,):
                    sums[name + kind] = sums.get(name + kind, 0.0) + float(parts[name].sum())
        return {name: value / count for name, value in sums.items()}
