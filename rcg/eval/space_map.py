"""A map of the representation space: real and generated images as points in the plane, and a page's canvas that shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from rcg.core.page import data_uri
from rcg.core.pictures import make_grid

POINTS = 400
"""Images of either side on the map, at most."""
SIDE = 48
"""Pixels of a thumbnail, at most."""
LEAST = 8
"""Images of a side without which there is no map."""


@dataclass(frozen=True)
class SpaceMap:
    """Points of real and generated images.

    Attributes:
        pca: float64 [R + G, 2], the first principal components of the real images' features, the real ones first.
        tsne: float64 [R + G, 2], t-SNE of all of them (van der Maaten and Hinton 2008): neighbours stay neighbours, large
            distances mean nothing.
        explained: share of the real features' variance that the two components hold.
        real, generated: numbers of the images in their sets.
    """

    pca: np.ndarray
    tsne: np.ndarray
    explained: float
    real: list[int]
    generated: list[int]

    def to_json(self) -> dict[str, Any]:
        """What a report holds of it."""
        count = len(self.real)

        def points(rows: np.ndarray) -> list[list[float]]:
            return [[round(float(x), 4), round(float(y), 4)] for x, y in rows]

        return {
            side: {"numbers": numbers, "pca": points(self.pca[part]), "tsne": points(self.tsne[part])}
            for side, numbers, part in (
                ("real", self.real, slice(0, count)),
                ("generated", self.generated, slice(count, None)),
            )
        } | {"explained": self.explained}


def _unit(points: np.ndarray) -> np.ndarray:
    """Centred, and within -1 to 1 but for outliers: the 99 % quantile of the distances to the centre is 1."""
    centred = points - np.median(points, axis=0)
    reach = float(np.quantile(np.abs(centred).max(axis=1), 0.99))
    return centred / reach if reach > 0 else centred


def make_map(
    real: np.ndarray,
    generated: np.ndarray,
    real_numbers: Sequence[int],
    generated_numbers: Sequence[int],
    seed: int = 0,
) -> SpaceMap:
    """Lay images out in the plane.

    Args:
        real, generated: features [R, D] and [G, D], at least 8 of each; of more than 400, 400 are taken,
            spread evenly (a set's kept features are a random sample, so these are one too).
        real_numbers, generated_numbers: of the images.
        seed: of t-SNE.
    """
    chosen = [_spread(len(rows), POINTS) for rows in (real, generated)]
    a, b = (rows[i].astype(np.float64) for rows, i in zip((real, generated), chosen, strict=True))
    both = np.concatenate([a, b])
    few = min(50, *both.shape, len(a))
    components = PCA(few, random_state=0).fit(a)
    flat = components.transform(both)
    near = TSNE(
        2,
        init=flat[:, :2] / (flat[:, 0].std() or 1.0) * 1e-4,
        perplexity=min(30, (len(both) - 1) / 3),
        random_state=seed % 2**32,
    )
    return SpaceMap(
        pca=_unit(flat[:, :2]),
        tsne=_unit(near.fit_transform(flat).astype(np.float64)),
        explained=float(np.nan_to_num(components.explained_variance_ratio_[:2]).sum()),  # of equal images 0
        real=[int(real_numbers[i]) for i in chosen[0]],
        generated=[int(generated_numbers[i]) for i in chosen[1]],
    )


def _spread(length: int, count: int) -> np.ndarray:
    """At most `count` places of `length`, evenly spread (a sorted folder would otherwise show its first class only)."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(np.int64))


def thumbnail(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture no larger than `side`, in its own proportions."""
    small = image.convert("RGB")
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def map_figure(found: SpaceMap, real: Sequence[Image.Image], generated: Sequence[Image.Image]) -> str:
    """The map as HTML; `STYLE` and `SCRIPT` belong to it.

    Args:
        found: the points.
        real, generated: their pictures, in order, all of one size.
    """
    thumbs = [thumbnail(image) for image in (*real, *generated)]
    columns = 32
    atlas = make_grid(thumbs, columns, padding=0)
    data = {
        "w": thumbs[0].width,
        "h": thumbs[0].height,
        "columns": min(columns, len(thumbs)),
        "real": len(real),
        "numbers": [*found.real, *found.generated],
        "pca": found.pca.round(4).tolist(),
        "tsne": found.tsne.round(4).tolist(),
    }
    boxes = "".join(
        f'<label><input type="checkbox" id="map-{name}" checked> <i class="dot" style="background:{colour}"></i>{label}</label>'
        for name, colour, label in (
            ("real", "var(--c0)", f"{len(real)} real"),
            ("generated", "var(--c1)", f"{len(generated)} generated"),
        )
    )
    alt = f"Map of {len(real)} real and {len(generated)} generated images; images that look alike to the extractor lie together."
    return (
        f'<div class="map-bar">{boxes}<label><input type="checkbox" id="map-pictures"> pictures</label>'
        '<label>layout <select id="map-layout"><option value="tsne">t-SNE</option><option value="pca">PCA</option></select>'
        '</label><button id="map-in" aria-label="closer">+</button><button id="map-out" aria-label="further away">−</button>'
        '<button id="map-reset">whole map</button></div>'
        f'<div class="map"><canvas id="map" tabindex="0" role="img" aria-label="{alt}"></canvas>'
        '<div id="map-tip" hidden><canvas></canvas><span></span></div></div>'
        f"<noscript>{_still(found)}</noscript>"
        f'<img id="map-atlas" alt="" hidden src="{data_uri(atlas)}">'
        f'<script type="application/json" id="map-data">{json.dumps(data, separators=(",", ":"))}</script>'
    )


def _still(found: SpaceMap) -> str:
    """The map for readers without JavaScript: points only."""
    points = "".join(
        f'<circle cx="{100 + 95 * x:.1f}" cy="{100 - 95 * y:.1f}" r="1.5" style="fill:var(--c{int(i >= len(found.real))})"/>'
        for i, (x, y) in enumerate(found.tsne.tolist())
    )
    return f'<svg viewBox="0 0 200 200" role="img" aria-label="map">{points}</svg>'


STYLE = """
.map-bar { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; margin: .6rem 0; font-size: .9rem }
.map-bar .dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .3rem }
.map-bar button, .map-bar select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 5px; padding: .1rem .6rem; min-height: 1.9rem }
.map { position: relative; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card) }
#map { display: block; width: 100%; height: min(70vh, 38rem); touch-action: none; cursor: grab; image-rendering: pixelated }
#map:focus-visible { outline: 2px solid var(--c0); outline-offset: -2px }
#map-tip { position: absolute; pointer-events: none; background: var(--paper); border: 1px solid var(--line); padding: 6px;
  border-radius: 6px; font-size: .8rem; box-shadow: 0 2px 10px #0004 }
#map-tip canvas { display: block; image-rendering: pixelated; margin-bottom: 3px }
"""
SCRIPT = """
(() => {
  const by = id => document.getElementById(id), canvas = by('map');
  if (!canvas) return;
  const data = JSON.parse(by('map-data').textContent), atlas = by('map-atlas'), tip = by('map-tip'), g = canvas.getContext('2d');
  const count = data.numbers.length, home = () => ({ x: 0, y: 0, zoom: 1 });
  let view = home(), points = data.tsne.map(p => p.slice()), hovered = -1, fingers = new Map(), moved = 0;
  const shown = i => by(i < data.real ? 'map-real' : 'map-generated').checked;
  const colour = i => getComputedStyle(document.documentElement).getPropertyValue(i < data.real ? '--c0' : '--c1');
  const least = () => Math.min(canvas.clientWidth, canvas.clientHeight) * .47 * view.zoom;
  // the longer side may be stretched a little
  const across = () => Math.min(canvas.clientWidth * .47 * view.zoom, 1.5 * least());
  const up = () => Math.min(canvas.clientHeight * .47 * view.zoom, 1.5 * least());
  const place = p => [canvas.clientWidth / 2 + (p[0] - view.x) * across(), canvas.clientHeight / 2 - (p[1] - view.y) * up()];
  const side = () => Math.min(96, Math.max(14, 15 * Math.sqrt(view.zoom)));
  const source = i => [i % data.columns * data.w, Math.floor(i / data.columns) * data.h, data.w, data.h];
  function draw() {
    const dpr = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== Math.round(w * dpr) || canvas.height !== Math.round(h * dpr)) {
      canvas.width = Math.round(w * dpr); canvas.height = Math.round(h * dpr);
    }
    g.setTransform(dpr, 0, 0, dpr, 0, 0);
    g.clearRect(0, 0, w, h);
    g.imageSmoothingEnabled = false;
    const pictures = by('map-pictures').checked, colours = [colour(0), colour(count - 1)];
    // in a mixed order, so that neither side covers the other
    const order = [...Array(count).keys()].sort((a, b) => (a * 7919) % 1009 - (b * 7919) % 1009);
    if (hovered >= 0) order.push(hovered);
    for (const i of order) {
      if (!shown(i)) continue;
      const [x, y] = place(points[i]), ink = colours[i < data.real ? 0 : 1];
      if (x < -60 || y < -60 || x > w + 60 || y > h + 60) continue;
      if (pictures) {
        const long = side() * (i === hovered ? 1.6 : 1), sw = long * data.w / Math.max(data.w, data.h), sh = long * data.h / Math.max(data.w, data.h);
        g.fillStyle = ink;
        g.fillRect(x - sw / 2 - 1.5, y - sh / 2 - 1.5, sw + 3, sh + 3);
        g.drawImage(atlas, ...source(i), x - sw / 2, y - sh / 2, sw, sh);
      } else {
        g.globalAlpha = i === hovered ? 1 : .75;
        g.fillStyle = ink;
        g.beginPath();
        g.arc(x, y, i === hovered ? 7 : 3.6, 0, 7);
        g.fill();
        g.globalAlpha = 1;
      }
    }
  }
  const local = e => { const r = canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
  function nearest(x, y) {
    let best = -1, least = by('map-pictures').checked ? side() * .7 : 14;
    for (let i = 0; i < count; i++) {
      if (!shown(i)) continue;
      const [px, py] = place(points[i]), d = Math.hypot(px - x, py - y);
      if (d < least) { least = d; best = i; }
    }
    return best;
  }
  function hover(x, y) {
    const found = nearest(x, y);
    if (found !== hovered) { hovered = found; draw(); }
    tip.hidden = found < 0;
    if (found < 0) return;
    const face = tip.firstChild, zoom = Math.max(1, Math.round(112 / Math.max(data.w, data.h)));
    face.width = data.w * zoom; face.height = data.h * zoom;
    const pen = face.getContext('2d');
    pen.imageSmoothingEnabled = false;
    pen.drawImage(atlas, ...source(found), 0, 0, face.width, face.height);
    tip.lastChild.textContent = (found < data.real ? 'real ' : 'generated ') + data.numbers[found];
    const right = x + tip.offsetWidth + 24 > canvas.clientWidth, low = y + tip.offsetHeight + 24 > canvas.clientHeight;
    tip.style.left = Math.max(0, right ? x - tip.offsetWidth - 14 : x + 14) + 'px';
    tip.style.top = Math.max(0, low ? y - tip.offsetHeight - 14 : y + 14) + 'px';
  }
  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const wide = across(), high = up(), dx = x - canvas.clientWidth / 2, dy = y - canvas.clientHeight / 2;
    view.zoom = Math.min(60, Math.max(.5, view.zoom * factor));
    view.x += dx / wide - dx / across();
    view.y -= dy / high - dy / up();
    draw();
  }
  canvas.addEventListener('wheel', e => { e.preventDefault(); zoom(Math.exp(-e.deltaY / 400), ...local(e)); }, { passive: false });
  canvas.addEventListener('pointerdown', e => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, local(e)); moved = 0; });
  canvas.addEventListener('pointermove', e => {
    const now = local(e), before = fingers.get(e.pointerId);
    if (!before) return hover(...now);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== e.pointerId)[1];
      const gap = p => Math.hypot(p[0] - other[0], p[1] - other[1]);
      zoom(gap(now) / Math.max(1, gap(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else {
      view.x -= (now[0] - before[0]) / across();
      view.y += (now[1] - before[1]) / up();
      tip.hidden = true;
      draw();
    }
    fingers.set(e.pointerId, now);
  });
  for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, e => {
    if (fingers.delete(e.pointerId) && end === 'pointerup' && moved < 6) hover(...local(e));
  });
  canvas.addEventListener('pointerleave', () => { if (!fingers.size) { tip.hidden = true; hovered = -1; draw(); } });
  canvas.addEventListener('keydown', e => {
    const step = .2 / view.zoom, go = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[e.key];
    if (go) { view.x += go[0]; view.y += go[1]; draw(); }
    else if (e.key === '+' || e.key === '=') zoom(1.4);
    else if (e.key === '-') zoom(1 / 1.4);
    else return;
    e.preventDefault();
  });
  by('map-in').onclick = () => zoom(1.6);
  by('map-out').onclick = () => zoom(1 / 1.6);
  by('map-reset').onclick = () => { view = home(); draw(); };
  by('map-layout').onchange = e => {
    const from = points.map(p => p.slice()), to = data[e.target.value], begun = performance.now();
    const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    requestAnimationFrame(function glide(time) {
      const t = still ? 1 : Math.min(1, Math.max(0, (time - begun) / 500)), s = t * t * (3 - 2 * t);
      points = from.map((p, i) => [p[0] + (to[i][0] - p[0]) * s, p[1] + (to[i][1] - p[1]) * s]);
      draw();
      if (t < 1) requestAnimationFrame(glide);
    });
  };
  for (const id of ['map-real', 'map-generated', 'map-pictures']) by(id).onchange = draw;
  new ResizeObserver(draw).observe(canvas);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  if (count <= 1000) by('map-pictures').checked = true;
  atlas.decode().then(draw, draw);
})();
"""
