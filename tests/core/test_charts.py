"""Curves as SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from rcg.core.charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve, number


def places(svg: str) -> list[tuple[float, float]]:
    (line,) = re.findall(r'<polyline points="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


def test_a_curve_fills_its_frame_the_right_way_up() -> None:
    found = places(curve("loss", {"loss": [(10, 4.0), (20, 3.0), (30, 2.0)]}))
    assert found[0] == (LEFT, TOP)
    assert found[-1] == (WIDTH - RIGHT, HEIGHT - BOTTOM)
    assert found[1] == pytest.approx(((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2))


def test_a_logarithmic_curve_of_a_geometric_row_is_straight() -> None:
    heights = [y for _, y in places(curve("d", {"d": [(0, 100.0), (1, 10.0), (2, 1.0)]}, logarithmic=True))]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])
    assert places(curve("d", {"d": [(0, 1.0), (1, 0.0)]}, logarithmic=True))[1][1] == HEIGHT - BOTTOM  # then linear


@pytest.mark.parametrize("points", [[(5, 1.0)], [(0, 2.0), (9, 2.0)], [(3, 1.0), (3, 2.0)]])
def test_odd_curves_are_drawn_all_the_same(points: list[tuple[float, float]]) -> None:
    svg = curve("a < b", {"x & y": points})
    ElementTree.fromstring(svg)
    assert "nan" not in svg
    assert "a &lt; b" in svg


def test_what_is_not_drawn_has_no_say_in_the_frame() -> None:
    drawn = {str(i): [(0, 1.0), (1, 2.0)] for i in range(len(COLOURS))}
    assert curve("five", drawn | {"more": [(0, 1000.0)]}) == curve("five", drawn)


def test_no_points_are_no_chart() -> None:
    assert curve("loss", {"loss": []}) == ""


def test_few_points_are_named_on_the_axis_and_can_be_read() -> None:
    svg = curve("fid", {"fid": [(1, 5.0), (2, 3.0), (4, 4.0), (8, 9.0)]}, across="guidance", last=False)
    assert re.findall(r'text-anchor="middle">([^<]*)<', svg) == ["1", "2", "4"]
    assert "guidance 8" in svg
    assert "<title>guidance 2: 3</title>" in svg
    crowded = curve("x", {"x": [(float(i), 1.0 + i) for i in range(12)]})
    assert len(re.findall(r'text-anchor="middle"', crowded)) < 12


def test_figures_are_written_out() -> None:
    figures = (0.012345, 12.3456, 999.4, 999.5, -999.7, 12345.6)
    assert [number(x) for x in figures] == ["0.0123", "12.3", "999", "1,000", "-1,000", "12,346"]
