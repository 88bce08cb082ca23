"""The chart of a memory plan: who lies where, and when.

Across: the steps of the program. Up: the addresses of the arena. A box is one block of memory, from
the step that first writes it to the one that last reads it; boxes never overlap, which is what the
plan's verifier proves. The stepped line is the sum of all that is alive: where it reaches the top
of the arena, no order of addresses could do with less. Donated inputs, which hold blocks as well,
stand above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from ..memory.buffers import LiveRange
from ..memory.plan import MemoryPlan
from ..text import human_bytes, printable
from .svg import box, document, element, label, line, number

WIDTH: Final = 1180
HEIGHT: Final = 640
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 100, 58
THINNEST: Final = 0.6
"""Pixels that a box is drawn with at least, however short it lives."""
EDGED: Final = 2.0
"""Pixels that a box with edges must be more than, both ways: they would hide a thinner one."""
CHARACTER: Final = 6.2
"""Pixels across of a letter in a box; names are cut to what fits."""
LINE: Final = 13.0
"""Pixels from one line of text in a box to the next."""
LEAST: Final = 6
"""Letters of a longer name that must fit for it to be written."""
LISTED: Final = 12
"""Names that a title lists."""

KINDS: Final = {
    "blob": "#4c8ed9",
    "in place": "#3aa76d",
    "scratch": "#e08a3c",
    "donated": "#a678c8",
}
"""Colours of boxes, readable on white and on black."""

STYLE: Final = (
    ":root{--page:#fff;--ink:#333;--grid:#e4e4e4;--line:#111;--name:#000}"
    "@media (prefers-color-scheme:dark){:root{--page:#16181c;--ink:#d5d7da;--grid:#33373d;"
    "--line:#fff;--name:#fff}}"
    ".page{fill:var(--page)}text{font-size:12px;fill:var(--ink)}"
    ".title{font-size:17px;font-weight:bold}.grid{stroke:var(--grid)}"
    ".box{fill-opacity:.72;stroke:var(--page);stroke-width:.5}.box:hover{fill-opacity:1}"
    ".thin{stroke:none;fill-opacity:1}"
    ".name{font-size:11px;fill:var(--name);pointer-events:none}.seam{stroke:var(--page);stroke-width:1;"
    "stroke-dasharray:3 2;pointer-events:none}"
    ".alive{stroke:var(--line);stroke-width:1.2;stroke-opacity:.75;fill:none;pointer-events:none}"
    ".bound{stroke:#d43d51;stroke-width:1.4;stroke-dasharray:5 3;pointer-events:none}"
    ".limit{stroke:var(--line);stroke-width:1;stroke-dasharray:2 3}"
)


@dataclass(frozen=True, slots=True)
class _Axes:
    """bytes: of the arena, and of what stands above it."""

    steps: int
    bytes: int

    def x(self, step: float) -> float:
        """Where a step begins."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(self.steps, 1)

    def y(self, address: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * address / max(self.bytes, 1)


@dataclass(frozen=True, slots=True)
class Box:
    """One block of memory as the chart shows it. offset: in the arena, or in the donated input that
    it lies in. address: in the chart. kind: one of KINDS. holds: blobs that are parts of it."""

    block: LiveRange
    offset: int
    address: int
    kind: str
    holds: tuple[str, ...]


def boxes(plan: MemoryPlan) -> list[Box]:
    """All blocks that some step touches; donated inputs stand above the arena, with gaps."""
    parts: dict[str, list[str]] = {}
    for spec in plan.buffers:
        if spec.alias_of is not None:
            parts.setdefault(spec.alias_of, []).append(spec.name)
    found: list[Box] = []

    def add(
        blocks: Sequence[LiveRange], offsets: Mapping[str, int], base: int, owner: str
    ) -> None:  # fmt: skip
        for block in blocks:
            if block.bytes and block.last >= 0:
                members = block.members or (block.name,)
                holds = tuple(part for member in members for part in parts.get(member, ()))
                offset = offsets[block.name]
                found.append(Box(block, offset, base + offset, _kind(block, owner), holds))

    add(plan.ranges, plan.offsets, 0, "")
    base = plan.arena_bytes
    for region in plan.regions:
        base += (plan.arena_bytes + region.bytes) // 30  # a gap
        add(region.ranges, region.offsets, base, region.name)
        base += region.bytes
    return found


def highest(plan: MemoryPlan) -> int:
    """The address in the chart at which everything ends."""
    gaps = sum((plan.arena_bytes + region.bytes) // 30 + region.bytes for region in plan.regions)
    return plan.arena_bytes + gaps


def alive(plan: MemoryPlan) -> list[int]:
    """Bytes of the arena that are alive in each step, rounded up as in the plan."""
    change = [0] * (len(plan.steps) + 1)
    for block in plan.ranges:
        size = -(-block.bytes // plan.alignment) * plan.alignment
        change[block.first] += size
        change[block.last + 1] -= size
    return list(accumulate(change))[:-1]


def draw(plan: MemoryPlan, name: str) -> str:
    """The chart as an SVG document. name: of the model."""
    axes = _Axes(len(plan.steps), highest(plan))
    births = _births(plan)
    parts = [
        element("rect", "", class_="page", width=WIDTH, height=HEIGHT),
        label(LEFT, 30, _cut(printable(name), 110), class_="title"),
        label(LEFT, 50, _summary(plan)),
        *_key(bool(plan.regions)),
        *_grid(axes, plan.arena_bytes),
    ]
    for each in boxes(plan):
        parts += _block(axes, each, _title(plan, each), births)
    parts += _limits(axes, plan)
    return document(WIDTH, HEIGHT, STYLE, parts)


def _summary(plan: MemoryPlan) -> str:
    gap = plan.arena_bytes - plan.lower_bound_bytes
    how = "optimal" if plan.optimal else f"{human_bytes(gap)} above the bound"
    return (f"arena {human_bytes(plan.arena_bytes)}, {how}; unshared "
            f"{human_bytes(plan.unshared_bytes)}; {len(plan.steps)} steps, {len(plan.ranges)} "
            f"blocks, {len(plan.inplace)} in place")  # fmt: skip


def _key(donated: bool) -> Iterator[str]:
    x = float(LEFT)
    for kind, color in KINDS.items():
        if kind == "donated" and not donated:
            continue
        yield element("rect", "", class_="box", x=x, y=62.0, width=12, height=12, fill=color)
        yield label(x + 17, 72, kind)
        x += 38 + 1.1 * CHARACTER * len(kind)
    for css, words in (("alive", "bytes alive"), ("bound", "the step that needs most")):
        yield line(x, 68, x + 22, 68, class_=css)
        yield label(x + 28, 72, words)
        x += 48 + CHARACTER * len(words)


def _grid(axes: _Axes, arena: int) -> Iterator[str]:
    """Steps below, addresses of the arena at the left."""
    low, far = float(HEIGHT - BOTTOM), float(WIDTH - RIGHT)
    for k in range(0, axes.steps, max(1, int(_pace(axes.steps / 14)))):
        x = axes.x(k + 0.5)
        yield line(x, low, x, low + 5, class_="grid")
        yield label(x, low + 18, str(k), text_anchor="middle")
    units = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
    word, unit = next((w, u) for w, u in units.items() if u <= axes.bytes or u == 1)
    pace = _pace(axes.bytes / unit / 8)
    for k in range(int(arena / unit / pace) + 1):
        y = axes.y(k * pace * unit)
        yield line(LEFT, y, far, y, class_="grid")
        yield label(LEFT - 8, y + 4, f"{k * pace:g}", text_anchor="end")
    middle = (low + TOP) / 2
    yield label((LEFT + far) / 2, HEIGHT - 16, "step", text_anchor="middle")
    yield label(22, middle, word, text_anchor="middle",
                transform=f"rotate(-90 22 {middle:.0f})")  # fmt: skip


def _pace(least: float) -> float:
    """The least of 1, 2, 5, 10, 20 and so on, or their fractions, that is not less."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(power * k for k in (1, 2, 5, 10) if power * k >= least)


def _kind(block: LiveRange, owner: str) -> str:
    if block.name == owner:
        return "donated"
    return "scratch" if not block.members else "in place" if block.members[1:] else "blob"


def _title(plan: MemoryPlan, each: Box) -> str:
    block, holds = each.block, each.holds
    lines = [*(block.members or (block.name,)), f"{block.bytes} bytes at {each.offset}",
             f"steps {block.first} to {block.last}: {_span(plan, block)}"]  # fmt: skip
    if holds:
        lines += ["holds", *holds[:LISTED]]
        lines += [f"and {len(holds) - LISTED} more"] if len(holds) > LISTED else []
    return "\n".join(map(printable, lines))


def _births(plan: MemoryPlan) -> dict[str, int]:
    """The first step that writes each name."""
    found: dict[str, int] = {}
    for k, step in enumerate(plan.steps):
        for name in step.writes:
            found.setdefault(name, k)
    return found


def _block(axes: _Axes, each: Box, title: str, births: Mapping[str, int]) -> Iterator[str]:
    """The box, seams where one tenant follows another in place, and names where there is room."""
    block, offset = each.block, each.address
    members = block.members or (block.name,)
    left, right = axes.x(block.first), axes.x(block.last + 1)
    low, top = axes.y(offset), axes.y(offset + block.bytes)
    wide, high = max(right - left, THINNEST), max(low - top, THINNEST)
    css = "box" if min(wide, high) > EDGED else "box thin"
    yield box(left, top, wide, high, title, class_=css, fill=KINDS[each.kind])
    starts = [block.first, *(births[m] for m in members[1:])]
    ends = [*starts[1:], block.last + 1]
    for start in starts[1:]:
        yield line(axes.x(start), low, axes.x(start), top, class_="seam")
    for member, start, end in zip(members, starts, ends, strict=True):
        yield from _words(axes.x(start), axes.x(end), top, low, member, block.bytes)


def _span(plan: MemoryPlan, block: LiveRange) -> str:
    first, last = (_cut(plan.steps[k].name, 60) for k in (block.first, block.last))
    return first if block.first == block.last else f"{first} ... {last}"


def _words(
    left: float, right: float, top: float, low: float, name: str, size: int
) -> Iterator[str]:  # fmt: skip
    """A name, its end if need be, and its bytes in a box, as far as there is room."""
    room = int((right - left - 6) / CHARACTER)
    name, amount = printable(name), human_bytes(size)
    short = name if len(name) <= room else f"..{name[2 - room :]}"
    texts = [short] if min(len(name), LEAST) <= room else []
    texts += [amount] if texts and len(amount) <= room else []
    for k, text in enumerate(texts[: int((low - top - 2) / LINE)]):
        yield label(left + 4, top + LINE * (k + 0.85), text, class_="name")


def _limits(axes: _Axes, plan: MemoryPlan) -> Iterator[str]:
    """What is alive in each step, the arena's end, and the step that needs most."""
    if plan.peak_step < 0:
        return
    corners = [f"{number(axes.x(k + end))},{number(axes.y(size))}"
               for k, size in enumerate(alive(plan)) for end in (0, 1)]  # fmt: skip
    yield element("polyline", "", class_="alive", points=" ".join(corners))
    far, top = float(WIDTH - RIGHT), axes.y(plan.arena_bytes)
    yield line(LEFT, top, far, top, class_="limit")
    x = axes.x(plan.peak_step + 0.5)
    yield line(x, float(HEIGHT - BOTTOM), x, TOP - 8.0, class_="bound")
    right = x > (LEFT + far) / 2
    step = _cut(printable(plan.steps[plan.peak_step].name), 60)
    words = f"{human_bytes(plan.alive_bytes)} alive in step {plan.peak_step} '{step}'"
    yield label(x - 5 if right else x + 5, TOP - 5.0, words,
                text_anchor="end" if right else "start")  # fmt: skip


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(most - 2, 0)] + ".."
