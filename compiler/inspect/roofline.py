"""The roofline diagram of a profile: what every kernel reaches, beside what the machine allows.

Across: operations per byte of least traffic. Up: GFLOP/s. The roof is the measured multiply-add
peak; the slopes are the measured bandwidths of the memory levels. A disk is a kernel, launches on
equal shapes taken together; its area is its share of the time. Both axes are logarithmic. Kernels
that only move data stand at the left edge, as high as the slope of what they move per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .machine import Limits
from .profile import Profile, ProfileRow, of_limit
from .svg import circle, document, element, label, line

WIDTH: Final = 1180
HEIGHT: Final = 640
LEFT, RIGHT, TOP, BOTTOM = 78, 330, 74, 60
LARGEST: Final = 34.0
"""Radius of a disk that stands for all of the time."""
NAMED: Final = 12
"""So many kernels, those that take longest, have a number, and a line in the key."""
KEY_CHARACTERS: Final = 32
COLORS: Final = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#c7375d", "#8c6d31", "#17a2b8")

STYLE: Final = (
    "text{font-size:12px;fill:#333}.title{font-size:17px;font-weight:bold}.grid{stroke:#e4e4e4}"
    ".roof{stroke:#222;stroke-width:2;fill:none}.slope{stroke:#777;stroke-width:1.2}"
    ".limit{fill:#555}.name{font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".leader{stroke:#999;stroke-width:.8}.dot{fill-opacity:.6;stroke-width:1}.dot:hover{fill-opacity:1}"
)


@dataclass(frozen=True, slots=True)
class Dot:
    """Launches of one kernel."""

    kernel: str
    template: str
    intensity: float
    gflops: float
    gbytes: float
    share: float
    of_limit: float
    title: str
    short: str


@dataclass(frozen=True, slots=True)
class Axes:
    """Decades shown, and where they lie."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, intensity: float) -> float:
        span = WIDTH - LEFT - RIGHT
        return LEFT + span * (_log(intensity) - self.left) / (self.right - self.left)

    def y(self, gflops: float) -> float:
        span = HEIGHT - TOP - BOTTOM
        return HEIGHT - BOTTOM - span * (_log(gflops) - self.bottom) / (self.top - self.bottom)


def draw(profile: Profile, name: str) -> str:
    """The diagram as an SVG document. name: of the model."""
    dots = _dots(profile.rows)
    axes = _axes(dots, profile.limits)
    templates = sorted({d.template for d in dots}, key=lambda t: -_share(dots, t))
    color = {t: COLORS[min(k, len(COLORS) - 1)] for k, t in enumerate(templates)}
    n = profile.limits.threads
    parts = [
        element("rect", "", width=WIDTH, height=HEIGHT, fill="#fff"),
        label(LEFT, 30, name, class_="title"),
        label(LEFT, 50, f"{profile.seconds * 1e3:.3g} ms in {len(profile.rows)} launches, "
              f"{n} thread{'s' if n > 1 else ''}, {profile.of_limit:.0%} of the machine's limits; "
              "area: share of time"),
        *_grid(axes),
        *_limits(axes, profile.limits),
        *(_disk(axes, d, color[d.template]) for d in sorted(dots, key=lambda d: -d.share)),
        *_numbers(axes, dots),
        *_key(templates, color, dots),
    ]  # fmt: skip
    return document(WIDTH, HEIGHT, STYLE, parts)


def _dots(rows: Sequence[ProfileRow]) -> list[Dot]:
    groups: dict[str, list[ProfileRow]] = {}
    for r in rows:
        groups.setdefault(r.kernel, []).append(r)
    out = []
    for kernel, same in groups.items():
        seconds = max(sum(r.seconds for r in same), 1e-12)
        # What the kernel itself multiplies: the direct count of Winograd's lies above the roof.
        flops, traffic = sum(r.own_flops for r in same), sum(r.bytes for r in same)
        share = sum(r.share for r in same)
        gflops = flops / seconds / 1e9
        reached = of_limit(same)
        nodes = "\n".join(r.label for r in same)
        title = (f"{kernel}, {len(same)} launch{'es' if len(same) > 1 else ''}\n{nodes}\n"
                 f"{seconds * 1e6:.1f} us, {share:.1%} of the time\n{gflops:.1f} GFLOP/s, "
                 f"{traffic / seconds / 1e9:.1f} GB/s, {reached:.0%} of the limit "
                 f"({same[0].bound})")  # fmt: skip
        short = same[0].label + (f" (x{len(same)})" if len(same) > 1 else "")
        out.append(Dot(kernel, same[0].template, flops / max(traffic, 1), gflops,
                       traffic / seconds / 1e9, share, reached, title, short))  # fmt: skip
    return out


def _axes(dots: Sequence[Dot], limits: Limits) -> Axes:
    """Whole decades around all that is shown but for kernels that only move data."""
    some = [d for d in dots if d.intensity > 0.01]
    ridge = limits.flops / limits.levels[-1].read
    peak = limits.flops / 1e9
    xs = [_log(d.intensity) for d in some] + [_log(ridge)]
    ys = [_log(d.gflops) for d in some] + [_log(peak)]
    left = max(math.floor(min(xs) - 0.2), -3)
    bottom = max(math.floor(min(ys) - 0.2), math.floor(_log(peak)) - 4)
    return Axes(left, math.ceil(max(xs) + 0.3), bottom, _log(max(peak, 10 ** max(ys))) + 0.25)


def _grid(axes: Axes) -> list[str]:
    out = []
    low, high = HEIGHT - BOTTOM, TOP
    for k in range(math.floor(axes.left), math.floor(axes.right) + 1):
        x = axes.x(10.0**k)
        out += [line(x, low, x, high, class_="grid"),
                label(x, low + 18, _decade(k), text_anchor="middle")]  # fmt: skip
    for k in range(math.floor(axes.bottom), math.floor(axes.top) + 1):
        y = axes.y(10.0**k)
        out += [line(LEFT, y, WIDTH - RIGHT, y, class_="grid"),
                label(LEFT - 8, y + 4, _decade(k), text_anchor="end")]  # fmt: skip
    middle = (low + high) / 2
    out += [
        label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, "operations per byte",
              text_anchor="middle"),
        label(22, middle, "GFLOP/s", text_anchor="middle",
              transform=f"rotate(-90 22 {middle:.0f})"),
    ]  # fmt: skip
    return out


def _limits(axes: Axes, limits: Limits) -> list[str]:
    peak = limits.flops / 1e9
    out = []
    for level in limits.levels:
        speed = level.read / 1e9
        ridge = peak / speed
        start = max(10.0**axes.left, 10.0**axes.bottom / speed)
        x, y = axes.x(start), axes.y(start * speed)
        out.append(line(x, y, axes.x(ridge), axes.y(peak), class_="slope"))
        # The words lie on the slope, near its foot, in its direction.
        angle = math.degrees(math.atan2(axes.y(peak) - y, axes.x(ridge) - x))
        out.append(label(x + 10, y - 6, f"{level.name} {speed:.0f} GB/s", class_="limit",
                         transform=f"rotate({angle:.1f} {x:.1f} {y:.1f})"))  # fmt: skip
    nearest = peak / (limits.levels[0].read / 1e9)
    y = axes.y(peak)
    out += [line(axes.x(nearest), y, WIDTH - RIGHT, y, class_="roof"),
            label(axes.x(nearest) + 6, y - 8, f"{peak:.0f} GFLOP/s, multiply-adds",
                  class_="limit")]  # fmt: skip
    return out


def _place(axes: Axes, d: Dot) -> tuple[float, float]:
    """A disk's centre; what lies outside the axes stands at their edge."""
    x = max(d.intensity, 10.0**axes.left)
    return axes.x(x), axes.y(max(d.gbytes * x, 10.0**axes.bottom))


def _radius(d: Dot) -> float:
    return max(2.5, LARGEST * math.sqrt(d.share))


def _disk(axes: Axes, d: Dot, color: str) -> str:
    x, y = _place(axes, d)
    return circle(x, y, _radius(d), d.title, class_="dot", fill=color, stroke=color)


def _longest(dots: Sequence[Dot]) -> list[Dot]:
    return sorted(dots, key=lambda d: -d.share)[:NAMED]


def _numbers(axes: Axes, dots: Sequence[Dot]) -> list[str]:
    """On the disks of the kernels that take longest, beside small ones; lower where another number
    lies there."""
    taken: list[tuple[float, float]] = []
    out = []
    for k, d in enumerate(_longest(dots), 1):
        x, y = _place(axes, d)
        x += 0 if _radius(d) > 8 else _radius(d) + 7
        low = y
        while any(abs(x - a) < 14 and abs(low - b) < 12 for a, b in taken):
            low += 6
        taken.append((x, low))
        if low - y > 6:
            out.append(line(x, y, x, low - 8, class_="leader"))
        out.append(label(x, low + 4, str(k), class_="name", text_anchor="middle"))
    return out


def _key(templates: Sequence[str], color: dict[str, str], dots: Sequence[Dot]) -> list[str]:
    """Templates and numbered kernels, right of the diagram."""
    left, far, row = float(WIDTH - RIGHT + 26), float(WIDTH - 16), float(TOP + 8)
    out = [label(far - 52, row, "time", text_anchor="end", class_="limit"),
           label(far, row, "of limit", text_anchor="end", class_="limit")]  # fmt: skip
    for t in templates:
        row += 18
        some = [d for d in dots if d.template == t]
        share = _share(dots, t)
        reached = sum(d.of_limit * d.share for d in some) / max(share, 1e-12)
        out += [element("circle", "", cx=left, cy=row - 4, r=5.0, fill=color[t], class_="dot"),
                label(left + 14, row, t), *_figures(far, row, share, reached)]  # fmt: skip
    row += 12
    for k, d in enumerate(_longest(dots), 1):
        row += 17
        short = d.short
        if len(short) > KEY_CHARACTERS:
            short = short[: KEY_CHARACTERS - 3] + "..."
        out += [label(left + 8, row, str(k), class_="name", text_anchor="end"),
                label(left + 14, row, short, class_="name"),
                *_figures(far, row, d.share, d.of_limit)]  # fmt: skip
    return out


def _figures(far: float, row: float, share: float, reached: float) -> list[str]:
    return [label(far - 52, row, f"{share:.0%}", text_anchor="end", class_="name"),
            label(far, row, f"{reached:.0%}", text_anchor="end", class_="name")]  # fmt: skip


def _share(dots: Sequence[Dot], template: str) -> float:
    return sum(d.share for d in dots if d.template == template)


def _decade(k: int) -> str:
    return f"{10**k:g}" if k >= 0 else f"{10.0**k:.{-k}f}"


def _log(x: float) -> float:
    return math.log10(max(x, 1e-9))
