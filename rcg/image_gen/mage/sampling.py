"""From conditions to code ids: the loop around `MageTransformer` and `MaskGITScheduler`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.image_gen.mage.scheduler import Generators, MaskGITScheduler, MaskGITSchedulerOutput
from rcg.image_gen.mage.transformer import MageTransformer


@torch.no_grad()
def generate_tokens(
    model: MageTransformer,
    scheduler: MaskGITScheduler,
    *,
    batch_size: int,
    representations: Tensor | None = None,
    class_labels: Tensor | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    temperature: float | None = None,
    generator: Generators = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw images as grids of code ids, starting from all tokens masked (RCG §3.3, §3.4).

    With one generator a sample, a sample's ids do not depend on the batch it is drawn in.

    Args:
        model: in eval mode, or dropout will act.
        scheduler: its steps are set here.
        batch_size: B, number of images.
        representations: float [B, D] on any device, for a representation-conditional model.
        class_labels: int64 [B] in [0, num_classes), for a class-conditional model.
        num_inference_steps: T, at most the number of tokens; None is the scheduler's default.
        guidance_scale: 1.0 is off; anything else doubles the work of a step. Above 1 strengthens the condition.
        temperature: choice temperature, from 0 up; None is the scheduler's default.
        generator: one CPU generator a sample, or one for the batch, or None.
        callback: called as `callback(i, ids)` after step i (from 0) with the drawn ids so far, int64 [B, h, w].

    Returns:
        int64 [B, h, w], code ids in [0, num_codes), on the model's device.

    Raises:
        UserError: a condition is missing or does not fit, guidance is asked of a model that cannot be guided, or the
            number of steps cannot be used.
    """
    config = model.config
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, but it must be above 0.")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}, but it must be a number from 0 up.")
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance_scale is {guidance_scale}, but it must be a number (1.0 is off).")
    if class_labels is not None and config.condition == "class":
        lowest, highest = int(class_labels.min()), int(class_labels.max())
        if lowest < 0 or highest >= config.num_classes:
            raise UserError(
                f"class label {lowest if lowest < 0 else highest} was given, but this generator knows the classes "
                f"0 to {config.num_classes - 1}."
            )
    guided = guidance_scale != 1.0
    if guided and config.condition == "none":
        raise UserError("this generator has no condition to be guided by; use guidance_scale=1.0.")
    if guided and config.condition_dropout == 0:
        raise UserError(
            "this generator was trained with condition_dropout=0, so it cannot be guided; use guidance_scale=1.0."
        )
    if guided and representations is None and class_labels is None:
        raise UserError(f"guidance needs a {config.condition} to be guided by; give one, or use guidance_scale=1.0.")

    device = model.device
    representations = None if representations is None else representations.to(device)
    class_labels = None if class_labels is None else class_labels.to(device)
    drop = None
    if guided:  # first half with its condition, second half with the null condition
        representations = None if representations is None else representations.repeat(2, 1)
        class_labels = None if class_labels is None else class_labels.repeat(2)
        drop = torch.arange(2 * batch_size, device=device) >= batch_size

    scheduler.set_timesteps(num_inference_steps)
    ids = torch.full((batch_size, model.num_tokens), config.mask_token_id, device=device)
    drawn = ids
    for timestep in scheduler.timesteps.tolist():
        logits = model(ids.repeat(2, 1) if guided else ids, representations, class_labels, drop_condition=drop).float()
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = scheduler.guide(conditional, unconditional, timestep, guidance_scale)
        out = scheduler.step(logits, timestep, ids, generator=generator, temperature=temperature)
        assert isinstance(out, MaskGITSchedulerOutput)
        ids, drawn = out.prev_sample, out.pred_original_sample
        if callback is not None:
            callback(timestep, _grid(drawn))
    return _grid(drawn)


def _grid(ids: Tensor) -> Tensor:
    side = math.isqrt(ids.shape[1])
    return ids.reshape(len(ids), side, side)
