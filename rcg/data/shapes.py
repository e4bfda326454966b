"""The embedded set: pictures of ten kinds of objects, drawn by formula at any resolution.

Everything that differs between two pictures is drawn independently: class, palette, background, layout, texture,
outline, shadow, place, size and turn. A model that is told nothing must commit to one combination; one that
averages shows mixed colours and blurred outlines. Picture *i* of a seed is the same scene at every resolution.

Coordinates run over [-1, 1]², x to the right and y down; an object's own coordinates have y up and radius about 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rcg.core.rng import derive_seed

SHAPES_VERSION = 1
"""Goes into the fingerprint: raise it when the same seed no longer gives the same pictures."""

Field = np.ndarray  # float32 [S, S]
_Sdf = Callable[[Field, Field], Field]  # signed distance to the outline, negative inside


def _disc(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 0.92


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.7) - 0.24


def _square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _triangle(x: Field, y: Field) -> Field:
    y = y + 0.15
    return np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.55


def _star(x: Field, y: Field) -> Field:
    sector = np.pi / 5
    angle = np.abs((np.arctan2(x, y) + sector) % (2 * sector) - sector)  # 0 at a tip, sector at a notch
    r = np.hypot(x, y)
    u, v = r * np.cos(angle) - 1.0, r * np.sin(angle)
    notch_u, notch_v = 0.45 * np.cos(sector) - 1.0, 0.45 * np.sin(sector)
    return (v * -notch_u + u * notch_v) / np.hypot(notch_u, notch_v)


def _heart(x: Field, y: Field) -> Field:
    x, c = np.abs(x), 0.8
    diamond = (x + np.abs(y + 0.1) - c) * 0.707
    return np.minimum(diamond, np.hypot(x - c / 2, y + 0.1 - c / 2) - c * 0.707)


def _cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.3)


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 0.95, 0.78 - np.hypot(x - 0.45, y - 0.1))


def _flower(x: Field, y: Field) -> Field:
    return 0.6 * (np.hypot(x, y) - 0.68 - 0.27 * np.cos(5 * np.arctan2(x, y)))


def _arrow(x: Field, y: Field) -> Field:
    x = np.abs(x)
    head = np.maximum(0.75 * x + 0.66 * (y - 0.95), -0.05 - y)
    return np.minimum(head, np.maximum(x - 0.24, np.abs(y + 0.4) - 0.52))


_KINDS: dict[str, _Sdf] = {
    "arrow": _arrow,
    "crescent": _crescent,
    "cross": _cross,
    "disc": _disc,
    "flower": _flower,
    "heart": _heart,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
CLASS_NAMES: tuple[str, ...] = tuple(_KINDS)
"""The ten classes, sorted; picture *i* shows class *i* mod 10."""


def labels(count: int) -> np.ndarray:
    """int64 [count]: the class of each of the first `count` pictures."""
    return np.arange(count, dtype=np.int64) % len(_KINDS)


def _colour(rng: np.random.Generator, hue: float, low: float, high: float) -> np.ndarray:
    """An RGB colour [3] in [0, 1] of a hue (in turns) and a random saturation, with a lightness in [low, high]."""
    saturation, value = rng.uniform(0.45, 0.95), rng.uniform(low, high)
    ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def _mix(a: np.ndarray, b: np.ndarray, share: Field) -> np.ndarray:
    return a + (b - a) * share[..., None]


def _soft(wave: Field, sharpness: float = 3.0) -> Field:
    return np.clip(0.5 + sharpness * wave, 0, 1)


def _background(rng: np.random.Generator, x: Field, y: Field, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kind, angle = rng.integers(7), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:  # plain
        return _mix(a, b, np.zeros_like(x))
    if kind == 1:  # a gradient
        return _mix(a, b, np.clip(0.5 + 0.4 * along, 0, 1))
    if kind == 2:  # a glow
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        return _mix(b, a, np.clip(0.75 * np.hypot(x - cx, y - cy), 0, 1))
    if kind == 3:  # a horizon under a sky
        level = rng.uniform(-0.1, 0.5)
        sky = _mix(a, np.ones(3, np.float32), np.clip(0.35 * (y + 1), 0, 1))
        return _mix(sky, b * (1 - 0.25 * np.clip(y, 0, 1))[..., None], _soft(y - level, 12))
    frequency = rng.uniform(4, 8)
    if kind == 4:  # stripes
        return _mix(a, b, _soft(np.sin(frequency * along)))
    if kind == 5:  # tiles
        return _mix(a, b, _soft(np.sin(frequency * along) * np.sin(frequency * across)))
    clouds = np.zeros_like(x)
    for k in range(1, 6):  # clouds: plane waves, the finer the fainter
        turn, phase = rng.uniform(0, 2 * np.pi, 2)
        clouds += np.sin(2.2 * k * (x * np.cos(turn) + y * np.sin(turn)) + phase) / k
    return _mix(a, b, np.clip(0.5 + 0.35 * clouds, 0, 1))


def _texture(rng: np.random.Generator, u: Field, v: Field, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kind, frequency = rng.integers(6), rng.uniform(5, 8)
    if kind == 0:  # plain
        share = np.zeros_like(u)
    elif kind == 1:  # stripes
        share = _soft(np.sin(frequency * u))
    elif kind == 2:  # dots
        share = _soft(np.cos(frequency * u) + np.cos(frequency * v) - 0.7)
    elif kind == 3:  # chequered
        share = _soft(np.sin(frequency * u) * np.sin(frequency * v))
    elif kind == 4:  # shaded like a ball lit from above
        share = np.clip(0.75 * np.hypot(u + 0.35, v - 0.4), 0, 1)
    else:  # rings
        share = _soft(np.sin(1.3 * frequency * np.hypot(u, v)))
    return _mix(a, b, share)


def _layout(rng: np.random.Generator) -> np.ndarray:
    """Where the objects are: float [n, 3] with centre x, y and radius."""
    kind = rng.integers(6)
    if kind <= 1:  # one, large
        places = [[0.0, 0.0, rng.uniform(0.6, 0.85)]]
    elif kind == 2:  # one, aside
        places = [[*rng.uniform(-0.4, 0.4, 2), rng.uniform(0.42, 0.55)]]
    elif kind == 3:  # a large and a small one
        side = rng.choice([-1.0, 1.0])
        places = [[0.28 * side, 0.2, 0.58], [-0.58 * side, -0.52, 0.32]]
    elif kind == 4:  # a row
        places = [[x, 0.0, 0.33] for x in (-0.64, 0.0, 0.64)]
    else:  # a block of four
        places = [[x, y, 0.4] for x in (-0.46, 0.46) for y in (-0.46, 0.46)]
    return np.array(places) + rng.normal(0, 0.03, (len(places), 3)) * [1, 1, 0.5]


def draw(seed: int, index: int, size: int) -> np.ndarray:
    """Draw a picture.

    Args:
        seed: seed of the set.
        index: which picture; its class is `index` mod 10.
        size: pixels of a side.

    Returns:
        uint8 [size, size, 3].
    """
    rng = np.random.default_rng(derive_seed(seed, index))
    sdf = _KINDS[CLASS_NAMES[index % len(_KINDS)]]
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)

    hue = rng.uniform()
    dark_ground = rng.uniform() < 0.4
    ground = (0.12, 0.4) if dark_ground else (0.65, 1.0)
    figure = (0.75, 1.0) if dark_ground else (0.2, 0.85)
    object_hue = hue + rng.choice([0.33, 0.5, 0.67]) + rng.normal(0, 0.03)
    picture = _background(rng, x, y, _colour(rng, hue, *ground), _colour(rng, hue + rng.normal(0, 0.08), *ground))

    places = _layout(rng)
    turn = rng.normal(0, 0.2)
    dx, dy = x - places[:, 0, None, None].astype(np.float32), places[:, 1, None, None].astype(np.float32) - y
    radius = places[:, 2, None, None].astype(np.float32)
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / radius
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / radius
    nearest = np.argmin(u * u + v * v, axis=0)[None]
    u, v = np.take_along_axis(u, nearest, 0)[0], np.take_along_axis(v, nearest, 0)[0]
    scale = radius[:, 0, 0][nearest[0]]

    if rng.uniform() < 0.5:
        shadow = np.clip(0.5 - sdf(u - 0.14, v + 0.16) * 6, 0, 1)
        picture *= (1 - 0.4 * shadow)[..., None]
    inside = sdf(u, v) * scale
    pixel = 2 / size
    skin = _texture(rng, u, v, _colour(rng, object_hue, *figure), _colour(rng, object_hue + 0.1, *figure))
    if rng.uniform() < 0.5:
        ink = np.float32(0.08 if not dark_ground else 0.97)
        skin = _mix(skin, np.full(3, ink), np.clip(0.5 + (inside + 0.07) / pixel, 0, 1))
    picture = _mix(picture, skin, np.clip(0.5 - inside / pixel, 0, 1))
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255), np.uint8)
