"""A tokenizer: what it loses of these images, and how much of its codebook it uses for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rcg.check.findings import Part
from rcg.core.blocks import in_blocks, rows_of_images
from rcg.core.pictures import to_uint8
from rcg.data.images import to_unit
from rcg.eval.features import FeatureExtractor
from rcg.eval.frechet import frechet_distance
from rcg.eval.images import Images
from rcg.eval.measure import Wanted, measure
from rcg.eval.metrics import metric_name
from rcg.image_gen.tokenizers.codec import Codec, codec_of
from rcg.image_gen.tokenizers.train import perplexity
from rcg.image_gen.tokenizers.vq_losses import FeatureMaps, perceptual_distances
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer

BATCH = 64
POOR, FAIR = 20.0, 25.0
"""PSNR in dB below which pictures look broken, and below which fine detail is lost."""
LEAST_DRAWS = 10
"""Tokens a code from which on unused codes say something."""
USED, EVEN = 0.5, 0.2
"""Share of codes used, and of the perplexity, below which a codebook is largely idle."""
VISIBLE, STRONG = 1.25, 2.0
"""Ratio of distances from which the loss can be seen, and from which it outweighs what a generator adds."""


class Reconstructions(Images):
    """Images after a tokenizer; the errors and the codes are counted as they pass.

    Args:
        images: of which the tokenizer can take the size.
        codec: the tokenizer.
        device: where it is.
        maps: for a perceptual distance; None: there is none.
    """

    def __init__(self, images: Images, codec: Codec, device: torch.device, maps: FeatureMaps | None = None) -> None:
        super().__init__(f"reconstructions of {images.name}")
        self.size, self.resize = images.size, images.resize
        self.images, self.codec, self.device, self.maps = images, codec, device, maps
        self.errors: list[float] = []
        self.distances: list[float] = []
        self.latents = [0, 0.0, 0.0]  # count, sum, sum of squares
        codes = codec.model.config["num_codes"] if isinstance(codec.model, VQTokenizer) else 0  # type: ignore[attr-defined]
        self.counts = np.zeros(codes, np.int64)

    def count(self) -> int | None:
        """See `Images`."""
        return self.images.count()

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `Images`."""
        for pixels in self.images.batches(batch_size, start, stop):
            yield self.pass_through(pixels)

    def pick(self, numbers: Sequence[int]) -> torch.Tensor | None:
        """See `Images`: they have passed, and would be counted once more."""
        return None

    @torch.no_grad()
    def pass_through(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 images [B, 3, H, W] → their reconstructions, uint8, on the CPU."""
        images = to_unit(pixels.to(self.device))
        rows = rows_of_images(images.shape[2] * images.shape[3])
        codes = in_blocks(self.codec.encode, rows, images)
        made = in_blocks(self.codec.decode, rows, codes).clamp(0, 1)
        self.errors += (made - images).square().mean(dim=(1, 2, 3)).double().cpu().tolist()
        if len(self.counts):
            self.counts += np.bincount(codes.flatten().cpu().numpy(), minlength=len(self.counts))
        else:
            values = codes.double()
            self.latents = [
                self.latents[0] + values.numel(),
                self.latents[1] + float(values.sum()),
                self.latents[2] + float(values.square().sum()),
            ]
        if (maps := self.maps) is not None:
            distances = in_blocks(
                lambda x, y: perceptual_distances(maps.feature_maps(x), maps.feature_maps(y)), rows, made, images
            )
            self.distances += distances.double().cpu().tolist()
        return to_uint8(made)


def check_tokenizer(
    tokenizer: torch.nn.Module,
    images: Images,
    *,
    source: str,
    device: torch.device,
    extractor: FeatureExtractor | None = None,
    maps: FeatureMaps | None = None,
    seed: int = 0,
    blind: bool = False,
) -> Part:
    """Reconstruct images, and compare.

    Args:
        tokenizer: on `device`.
        images: of a size that it can take.
        source: where the tokenizer came from.
        device: where it computes.
        extractor: in whose features the distance between images and reconstructions is taken; None: no such distance.
        maps: an encoder with `feature_maps`, for a perceptual distance.
        seed: of the halves of the images.
        blind: whether there is no extractor because the encoder makes no usable representations.

    Raises:
        UserError: images of a size that it cannot take.
    """
    part = Part("tokenizer", source)
    passed = Reconstructions(images, codec_of(tokenizer), device, maps)
    if extractor is None:
        for _ in passed.batches(BATCH):
            pass
        way_out = "the encoder is of no use for it, give" if blind else "give an encoder among --model, or"
        part.notes.append(f"rFID is left out: {way_out} --extractor, such as inception-768.")
    else:
        _distances(part, passed, extractor, device, seed)
    mse = np.array(passed.errors)
    psnr = float((-10 * np.log10(np.maximum(mse, 1e-10))).mean())
    part.figures = {"images": len(mse), "size": images.size, "PSNR, dB": psnr, "MSE": float(mse.mean())} | part.figures
    if passed.distances:
        part.figures["perceptual distance"] = float(np.mean(passed.distances))
    if psnr < POOR:
        part.say(
            "bad",
            f"the tokenizer loses much of these images ({psnr:.1f} dB)",
            "train the tokenizer for longer or on this data, or take a finer one",
        )
    elif psnr < FAIR:
        part.say(
            "doubtful",
            f"the tokenizer loses fine detail ({psnr:.1f} dB)",
            "take a finer tokenizer if the images shall be sharp",
        )
    else:
        part.say("good", f"the tokenizer gives these images back at {psnr:.1f} dB")
    ratio = part.figures.get("distance ratio")
    if ratio is not None and ratio > VISIBLE:
        part.say(
            "bad" if ratio > STRONG else "doubtful",
            f"reconstructions are {ratio:.2f} times as far from other images as the originals are",
            "expect no generator of its codes to do better than that, or take another tokenizer",
        )
    elif ratio is not None:
        part.say("good", f"reconstructions are as near to other images as the originals ({ratio:.2f} times)")
    if len(passed.counts):
        _codes(part, passed.counts)
    else:
        _latents(part, passed.latents)
    return part


def _distances(
    part: Part, passed: Reconstructions, extractor: FeatureExtractor, device: torch.device, seed: int
) -> None:
    """The distance between images and reconstructions, and how both halves compare with the other half of the images."""
    count = passed.count() or 0
    features: list[np.ndarray] = []
    for images in (passed.images, passed):
        stats = measure(extractor, images, Wanted(sample=count), device=str(device), batch_size=BATCH, progress=False)
        assert stats.features is not None
        features.append(stats.features)
    real, made = features
    name = metric_name("fid", extractor.name)
    part.figures["rfid" if name == "fid" else f"reconstruction {name}"] = frechet_distance(real, made)
    order = np.random.default_rng(seed).permutation(count)
    half, other = order[: count // 2], order[count // 2 :]
    if len(half) < 2:
        part.notes.append(
            "Halves of the images are compared from 4 images on; raise --num-images or give more of them."
        )
        return
    floor = frechet_distance(real[half], real[other])
    lost = frechet_distance(made[half], real[other])
    part.figures |= {f"{name}, half to half": floor, f"{name}, reconstructed half to half": lost}
    if floor > 0:
        part.figures["distance ratio"] = lost / floor
    if count <= extractor.dim:
        part.notes.append(
            f"{count} images are no more than the {extractor.dim} features, so the distances are biased upwards: "
            "compare them only with others of as many images."
        )


def _codes(part: Part, counts: np.ndarray) -> None:
    used = float((counts > 0).mean())
    even = float(perplexity(torch.from_numpy(counts).double()))
    part.figures |= {"codes": len(counts), "codes used": used, "perplexity": even, "tokens": int(counts.sum())}
    if counts.sum() < LEAST_DRAWS * len(counts):
        part.notes.append(
            f"{counts.sum():,} tokens are few for {len(counts):,} codes: the share of codes used is a lower bound; raise "
            "--num-images."
        )
    elif used < USED or even < EVEN * len(counts):
        part.say(
            "doubtful",
            f"much of the codebook is idle ({used:.0%} of {len(counts):,} codes used, perplexity {even:,.0f})",
            "take a smaller codebook, or finite scalar quantisation (rcg-train-tokenizer --levels)",
        )
    else:
        part.say("good", f"{used:.0%} of the tokenizer's {len(counts):,} codes are used, perplexity {even:,.0f}")


def _latents(part: Part, sums: list[Any]) -> None:
    mean = sums[1] / sums[0]
    deviation = max(sums[2] / sums[0] - mean**2, 0.0) ** 0.5
    part.figures |= {"latents, mean": mean, "latents, deviation": deviation}
    if not 0.5 <= deviation <= 2:
        part.say(
            "bad",
            f"the latents have deviation {deviation:.2g} where generators expect about 1",
            "set the autoencoder's scaling_factor",
        )
    else:
        part.say("good", f"the tokenizer's latents have deviation {deviation:.2f}")
