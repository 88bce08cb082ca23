"""Draws the results of autotune.py: how soon searches find the best, and how good defaults are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tilewright.compiler.inspect.svg import document, element, label, line

COLORS: Final = ("#999999", "#17a2b8", "#1f77b4", "#d95f02", "#2ca02c")
STYLE: Final = (
    "text{font-size:12px;fill:#333}.title{font-size:14px;font-weight:bold}.grid{stroke:#e4e4e4}"
    ".curve{fill:none;stroke-width:2}.mark{stroke:#c7375d;stroke-dasharray:4 3}"
)
WIDTH, HEIGHT = 360, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 46, 76

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram. xs, ys: ranges. curves: points by name. marks: heights worth a dashed line."""

    title: str
    below: str
    xs: tuple[float, float]
    ys: tuple[float, float]
    curves: Mapping[str, Points]
    steps: tuple[float, float]
    percent: tuple[bool, bool] = (False, True)
    marks: tuple[float, ...] = ()


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side as an SVG document."""
    width = len(panels) * WIDTH
    parts = [element("rect", "", width=width, height=HEIGHT, fill="#fff")]
    for number, panel in enumerate(panels):
        inner = "".join(_panel(panel))
        parts.append(element("g", inner, transform=f"translate({number * WIDTH},0)"))
    return document(width, HEIGHT, STYLE, parts)


def _panel(p: Panel) -> list[str]:
    def x(value: float) -> float:
        low, high = p.xs
        return LEFT + (WIDTH - LEFT - RIGHT) * (min(max(value, low), high) - low) / (high - low)

    def y(value: float) -> float:
        low, high = p.ys
        inside = (min(max(value, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * inside

    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    out = [label(LEFT, 24, p.title, class_="title"),
           label((LEFT + right) / 2, floor + 34, p.below, text_anchor="middle")]  # fmt: skip
    for value in _ticks(p.xs, p.steps[0]):
        out += [line(x(value), floor, x(value), TOP, class_="grid"),
                label(x(value), floor + 16, _number(value, p.percent[0]),
                      text_anchor="middle")]  # fmt: skip
    for value in _ticks(p.ys, p.steps[1]):
        out += [line(LEFT, y(value), right, y(value), class_="grid"),
                label(LEFT - 6, y(value) + 4, _number(value, p.percent[1]),
                      text_anchor="end")]  # fmt: skip
    out += [line(LEFT, y(m), right, y(m), class_="mark") for m in p.marks]
    at = LEFT
    for color, (name, points) in zip(COLORS, p.curves.items(), strict=False):
        inside = [(a, b) for a, b in points if p.xs[0] <= a <= p.xs[1]]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in inside)
        out += [element("polyline", "", points=path, class_="curve", stroke=color),
                line(at, HEIGHT - 16, at + 14, HEIGHT - 16, stroke=color, stroke_width=3),
                label(at + 18, HEIGHT - 12, name)]  # fmt: skip
        at += 34 + 7 * len(name)
    return out


def _ticks(ends: tuple[float, float], step: float) -> list[float]:
    first, last = math.ceil(ends[0] / step - 1e-9), math.floor(ends[1] / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _number(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:g}"
