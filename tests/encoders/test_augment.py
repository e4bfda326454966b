"""The batched augmentation: each piece against torchvision on single images, and its distribution."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tv

from rcg.encoders import augment as ours
from tests.waiting import NoWaiting

CALM = ours.ViewRecipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=0, grey=0, blur=0, solarize=0, flip=0)


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.rand(8, 3, 32, 32)
    x[1] = x[1, :1]  # grey: hue undefined
    x[2] = (x[2] * 3).floor() / 2  # many ties between channels, and pure colours
    return x


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)],
)
def test_colour_pieces_match_torchvision(images: torch.Tensor, name: str, low: float, high: float) -> None:
    amounts = torch.empty(8).uniform_(low, high)
    out = getattr(ours, f"adjust_{name}")(images, amounts)
    theirs = torch.stack([getattr(tv, f"adjust_{name}")(x, float(a)) for x, a in zip(images, amounts, strict=True)])
    torch.testing.assert_close(out, theirs, atol=2e-6, rtol=0)
    assert (out - images).abs().max() > 0.02


def test_grey_and_solarize_match_torchvision(images: torch.Tensor) -> None:
    grey = ours.to_grey(images).expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey, tv.rgb_to_grayscale(images, num_output_channels=3), atol=1e-6, rtol=0)
    assert torch.equal(ours.solarize(images), tv.solarize(images, 0.5))


@pytest.mark.parametrize("radius", [1, 6])
def test_blur_matches_torchvision(images: torch.Tensor, radius: int) -> None:
    sigma = torch.empty(8).uniform_(0.1, 2.0)
    theirs = [tv.gaussian_blur(x, [2 * radius + 1] * 2, [float(s)] * 2) for x, s in zip(images, sigma, strict=True)]
    torch.testing.assert_close(ours.gaussian_blur(images, sigma, radius), torch.stack(theirs), atol=2e-6, rtol=0)


def test_crop_resize_flip_matches_torchvision(images: torch.Tensor) -> None:
    boxes = ours.draw_crops(8, 32, 32, (0.08, 1.0), (3 / 4, 4 / 3))
    flip = torch.arange(8) % 2 == 0
    out = ours.crop_resize(images, boxes, flip)
    for i in range(8):
        top, left, h, w = (int(v) for v in boxes[i])
        expected = tv.resized_crop(images[i], top, left, h, w, [32, 32], antialias=True)
        expected = tv.horizontal_flip(expected) if flip[i] else expected
        torch.testing.assert_close(out[i], expected, atol=2e-5, rtol=0)


def test_crops_have_torchvisions_distribution() -> None:
    torch.manual_seed(1)
    boxes = ours.draw_crops(4000, 40, 32, (0.2, 1.0), (3 / 4, 4 / 3))
    image = torch.zeros(3, 40, 32)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    ).float()
    top, left, h, w = boxes.t()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 40).all()
    assert (left + w <= 32).all()
    for column, name in enumerate(("top", "left", "height", "width")):
        error = theirs[:, column].std() / 4000**0.5
        assert (boxes[:, column].mean() - theirs[:, column].mean()).abs() < 5 * error, name
        assert 0.9 < boxes[:, column].std() / theirs[:, column].std() < 1.1, name


def test_impossible_crop_falls_back_to_the_centre() -> None:
    boxes = ours.draw_crops(3, 8, 64, (1.0, 1.0), (3 / 4, 4 / 3))  # no box of that area has that shape
    _, _, h, w = RandomResizedCrop.get_params(torch.zeros(3, 8, 64), [1.0, 1.0], [3 / 4, 4 / 3])
    assert boxes.tolist() == [[0.0, float((64 - w) // 2), float(h), float(w)]] * 3


def test_calm_recipe_changes_nothing_and_flip_mirrors(images: torch.Tensor) -> None:
    torch.testing.assert_close(ours.augment(images, CALM), images, atol=1e-5, rtol=0)
    flipped = ours.augment(images, dataclasses.replace(CALM, flip=1.0))
    torch.testing.assert_close(flipped, images.flip(3), atol=1e-5, rtol=0)


def test_jitter_is_some_order_of_the_four_adjustments(images: torch.Tensor) -> None:
    """Replays torchvision's adjustments in every order: one of the 24 must give what the batch gave."""
    torch.manual_seed(3)
    image = images[:1] * 0.5 + 0.25  # nothing is clipped, but the order still matters
    recipe = dataclasses.replace(CALM, jitter=1.0)
    orders = set()
    for seed in range(6):
        torch.manual_seed(seed)
        out = ours.augment(image, recipe)
        torch.manual_seed(seed)
        ours.draw_crops(1, 32, 32, recipe.crop_scale, recipe.crop_ratio)
        u = torch.rand(1, 10)[0, 6:10]
        b, c, s, h = ((2 * u - 1) * torch.tensor([0.4, 0.4, 0.2, 0.1]) + torch.tensor([1.0, 1, 1, 0])).tolist()
        order = torch.rand(1, 4).argsort(dim=1)[0].tolist()
        x = image[0]
        for op in order:
            x = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[op](x, (b, c, s, h)[op])
        torch.testing.assert_close(out[0], x, atol=2e-5, rtol=0)
        orders.add(tuple(order))
    assert len(orders) > 1


def test_recipes_are_the_papers_scaled_to_the_image() -> None:
    first, second = ours.moco_v3_recipes(224)
    assert (first.crop_scale, first.blur, first.solarize) == ((0.08, 1.0), 1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    assert first.blur_sigma == pytest.approx((0.1, 2.0))
    assert (first.jitter, first.brightness, first.contrast, first.saturation, first.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
    assert (first.grey, first.flip) == (0.2, 0.5)
    small, _ = ours.moco_v3_recipes(32)
    assert small.crop_scale[0] == pytest.approx(0.2)
    assert small.blur_sigma[1] == pytest.approx(2 * 32 / 224)
    assert ours.moco_v3_recipes(32, min_crop_scale=0.5)[1].crop_scale == (0.5, 1.0)


def test_probabilities_and_ranges_are_honoured() -> None:
    torch.manual_seed(0)
    images = torch.rand(1000, 3, 8, 8) * 0.4 + 0.5  # all ≥ 0.5, so solarised images are known by their mean
    recipe = dataclasses.replace(CALM, solarize=0.2, grey=0.3)
    out = ours.augment(images, recipe)
    solarized = out.mean(dim=(1, 2, 3)) < 0.5
    grey = (out - out.mean(1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert solarized.float().mean() == pytest.approx(0.2, abs=0.05)
    assert grey.float().mean() == pytest.approx(0.3, abs=0.06)
    blurred = ours.augment(images, dataclasses.replace(CALM, blur=0.1, blur_sigma=(1.0, 2.0)))
    assert ((blurred - images).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean() == pytest.approx(0.1, abs=0.04)
    for recipe in ours.moco_v3_recipes(8):
        view = ours.augment(images, recipe)
        assert view.shape == images.shape
        assert float(view.min()) >= 0
        assert float(view.max()) <= 1 + 1e-6


def test_views_follow_the_global_seed_and_not_the_chunk() -> None:
    images = torch.rand(50, 3, 16, 16)
    recipe = ours.moco_v3_recipes(16)[1]

    def view(seed: int, chunk: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return ours.augment(images, recipe, chunk)

    assert torch.equal(view(1, 64), view(1, 64))
    torch.testing.assert_close(view(1, 7), view(1, 64), atol=1e-5, rtol=0)
    assert (view(1, 64) - view(2, 64)).abs().mean() > 0.01


def test_mean_effect_is_torchvisions() -> None:
    """Statistics of the whole pipeline against the same pipeline made of torchvision's random transforms."""
    torch.manual_seed(0)
    yy, xx = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    image = torch.stack([xx, yy, 1 - xx * yy])
    recipe = ours.moco_v3_recipes(32)[1]
    out = ours.augment(image.expand(600, -1, -1, -1), recipe)
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=recipe.crop_scale, antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(3, recipe.blur_sigma)], p=0.1),
            v2.RandomSolarize(0.5, p=0.2),
            v2.RandomHorizontalFlip(),
        ]
    )
    theirs = torch.stack([pipeline(image) for _ in range(600)])
    for a, b in ((out, theirs), (out.std(dim=(2, 3)), theirs.std(dim=(2, 3)))):
        mine, other = a.flatten(1).mean(1), b.flatten(1).mean(1)
        assert (mine.mean() - other.mean()).abs() < 5 * (other.std() / 600**0.5 + mine.std() / 600**0.5)
        assert 0.85 < mine.std() / other.std() < 1.15


def test_views_do_not_wait_for_the_device() -> None:
    images = torch.empty(16, 3, 16, 16, device="meta")
    recipe = ours.SynCLRView(jitter=1.0, grey=0.5, solarize=0.5, blur=0.5, downsample=0.5, side=8)
    with NoWaiting():
        assert ours.augment(images, recipe).shape == (16, 3, 8, 8)
