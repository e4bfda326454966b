"""Curves as inline SVG, for a page that needs nothing from elsewhere (`rcg.core.page` has their colours). A leaf."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28
MOST_TICKS, ROOM = 12, 34
"""Points whose places are all named on the axis, and pixels that a name takes."""
COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")
Points = Sequence[tuple[float, float]]


def number(value: float) -> str:
    """A figure in three digits or so, for labels."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def curve(
    title: str, series: Mapping[str, Points], logarithmic: bool = False, across: str = "step", last: bool = True
) -> str:
    """A line chart.

    Args:
        title: above it.
        series: name → (step, figure) points; those without points are left out, and all after the fourth of the others.
        logarithmic: the vertical axis, where all figures are above 0.
        across: what the horizontal axis counts.
        last: name each series' last figure.

    Returns:
        an `<figure>` with an `<svg>`; empty text where there are no points.
    """
    series = dict([(name, points) for name, points in series.items() if points][: len(COLOURS)])
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    if not ys:
        return ""
    logarithmic = logarithmic and min(ys) > 0

    def level(y: float) -> float:
        return math.log(y) if logarithmic else y

    low, high = level(min(ys)), level(max(ys))
    left, right = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - left) / (right - left) if right > left else 0.5
        up = (level(y) - low) / (high - low) if high > low else 0.5
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" class="axis"/>',
        _label(LEFT - 6, place(left, max(ys))[1] + 4, number(max(ys)), "end"),
        _label(LEFT - 6, place(left, min(ys))[1] + 4, number(min(ys)), "end") if high > low else "",
        _label(LEFT, HEIGHT - 8, number(left), "middle"),
        _label(WIDTH - RIGHT, HEIGHT - 8, f"{across} {number(right)}", "end"),
        *_between(sorted({place(x, ys[0])[0]: x for x in xs}.items()) if len(set(xs)) <= MOST_TICKS else []),
    ]
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        places = [place(x, y) for x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" style="stroke:{colour}"><title>{html.escape(name)}</title></polyline>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}">'
            f"<title>{html.escape(across)} {number(point[0])}: {number(point[1])}</title></circle>"
            for (x, y), point in zip(places, points, strict=True)
            if len(places) < 20
        ]
    keys = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}{" " + number(points[-1][1]) if last else ""}</span>'
        for colour, (name, points) in zip(COLOURS, series.items(), strict=False)
    )
    return (
        f'<figure class="wide"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f'<div class="keys">{keys}</div></figure>'
    )


def _between(ticks: Sequence[tuple[float, float]]) -> list[str]:
    """Labels of the places (x, figure) between the ends of the axis, where there is room for them."""
    labels, last = [], float(LEFT)
    for x, figure in ticks[1:-1]:
        if x - last >= ROOM and x <= WIDTH - RIGHT - 2.5 * ROOM:
            labels.append(_label(x, HEIGHT - 8, number(figure), "middle"))
            last = x
    return labels


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{html.escape(text)}</text>'
