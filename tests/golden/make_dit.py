"""The reference's numbers for tiny DiTs: outputs, losses and whole generations, for `tests/golden/image_gen_dit`.

    git clone https://github.com/LTH14/rcg CLONE
    python tests/golden/make_dit.py CLONE

The reference is the user's own clone, imported at run time and run on the CPU: `Tensor.cuda` does nothing here, and where it
draws random numbers it is given recorded ones. Weights are random float16 numbers, so that the files stay small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

OUT = Path(__file__).parent / "image_gen_dit"
SIZES = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "rep_dim": 6,
}
MODELS: dict[str, dict[str, Any]] = {
    "representation": {"num_classes": 1, "class_dropout_prob": 0.0, "rep_dropout_prob": 0.1},
    "class": {"num_classes": 5, "class_dropout_prob": 0.1, "rep_dropout_prob": 0.0},
    "none": {"num_classes": 1, "class_dropout_prob": 0.0, "rep_dropout_prob": 0.0},
    "fixed": {"num_classes": 1, "class_dropout_prob": 0.0, "rep_dropout_prob": 0.0, "learn_sigma": False},
}
STEPS, GUIDANCE, IMAGES = 6, 3.0, 2
TIMES = [0, 1, 250, 999]
DROPS = [0.05, 0.5, 0.09, 0.11]  # dropped where below 0.1


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def drawing(name: str, values: Iterator[torch.Tensor]) -> Iterator[None]:
    """`torch.<name>` gives recorded numbers."""
    with mock.patch.object(torch, name, side_effect=values):
        yield


def generated(
    diffusion: Any, function: Any, noise: torch.Tensor, double: bool, clip: bool, **kwargs: Any
) -> np.ndarray[Any, Any]:
    """`p_sample_loop` from noise [STEPS + 1, IMAGES, …], whose first entry is the start."""
    each = iter(torch.cat([n, n]) if double else n for n in noise)
    start = next(each)
    with drawing("randn_like", each):
        drawn = diffusion.p_sample_loop(
            function, start.shape, start, clip_denoised=clip, model_kwargs=kwargs, device=torch.device("cpu")
        )
    return drawn[:IMAGES].numpy()


def main(clone: str) -> None:
    """Compute and write everything."""
    sys.path.insert(0, clone)
    from pixel_generator.dit.diffusion import create_diffusion
    from pixel_generator.dit.models import DiT

    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    OUT.mkdir(exist_ok=True)
    shape = (4, 8, 8)
    x, start, added = random(1, 4, *shape), 0.6 * random(2, 4, *shape), random(3, 4, *shape)
    start[0, 0, 0, :4] = torch.tensor([-1.5, -0.9995, 0.9995, 1.5])  # the outermost bins
    noise, reps = random(4, STEPS + 1, IMAGES, *shape), random(5, 4, 6)
    labels, t = torch.tensor([0, 4, 2, 1]), torch.tensor(TIMES)
    common: dict[str, Any] = {"x": x, "start": start, "added": added, "noise": noise, "reps": reps, "labels": labels}
    common |= {f"spaced_{n}": create_diffusion(str(n)).timestep_map for n in (2, 7, 25, 250)}
    common |= {"times": t, "drops": DROPS, "guidance": GUIDANCE}
    np.savez_compressed(OUT / "common.npz", **{k: np.asarray(v) for k, v in common.items()})

    for name, options in MODELS.items():
        torch.manual_seed(6)
        model = DiT(**SIZES, **options)
        for key, parameter in model.named_parameters():
            if key != "pos_embed":
                std = 0.5 if parameter.ndim == 1 or "embedding_table" in key else parameter[0].numel() ** -0.5
                parameter.data = (std * torch.randn_like(parameter)).half().float()
        given: dict[str, Any] = {"y": labels if name == "class" else torch.zeros(4, dtype=torch.int64)}
        if name == "representation":
            given["rep"] = reps
        values: dict[str, Any] = {
            f"weights/{k}": v if k == "pos_embed" else v.half() for k, v in model.state_dict().items()
        }
        learned = bool(options.get("learn_sigma", True))
        whole, few = (create_diffusion(steps, learn_sigma=learned) for steps in ("", str(STEPS)))
        with torch.no_grad():
            values["output"] = model.eval()(x, t, **given)
            with drawing("rand", iter([torch.tensor(DROPS)])):
                values["dropped_output"] = model.train()(x, t, **given)
            with drawing("rand", iter([torch.tensor(DROPS)])):
                terms = whole.training_losses(model, start, t, given, noise=added)
            values |= {f"loss/{k}": v for k, v in terms.items()}
            model.eval()
            some = {k: v[:IMAGES] for k, v in given.items()}
            values["generated"] = generated(few, model, noise, False, False, **some)
            values["clipped"] = generated(few, model, noise, False, True, **some)
            if name in ("representation", "class"):
                null = {"y": torch.zeros(IMAGES, dtype=torch.int64)}
                null = {"y": torch.full((IMAGES,), 5)} if name == "class" else null
                if name == "representation":
                    null["rep"] = model.fake_latent.repeat(IMAGES, 1)
                both = {k: torch.cat([v, null[k]]) for k, v in some.items()}
                values["guided"] = generated(
                    few, model.forward_with_cfg, noise, True, False, cfg_scale=GUIDANCE, **both
                )
        np.savez_compressed(OUT / f"{name}.npz", **{k: np.asarray(v) for k, v in values.items()})
    print("\n".join(f"{file.name} {file.stat().st_size}" for file in sorted(OUT.iterdir())))


if __name__ == "__main__":
    main(*sys.argv[1:])
