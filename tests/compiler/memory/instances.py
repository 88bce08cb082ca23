"""Packing problems whose optimum is known, and what a test needs to judge a packing.

Buffers are (first step, step after the last, bytes), as `pack` takes them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

Buffer = tuple[int, int, int]

GAP: list[Buffer] = [
    (2, 4, 4), (3, 6, 3), (4, 7, 3), (6, 10, 1), (6, 10, 1), (7, 10, 2), (5, 11, 1), (7, 12, 1),
    (8, 13, 1), (10, 13, 3), (11, 13, 2),
]  # fmt: skip
"""At most 7 bytes are alive together, and yet 8 are needed: found at random, proved by trying all
offsets (`fits`)."""


def meet(a: Buffer, b: Buffer) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def clash(buffers: Sequence[Buffer], offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers of two buffers that are alive together and overlap."""
    placed = list(zip(buffers, offsets, strict=True))
    return [
        (i, j)
        for i, (a, low) in enumerate(placed)
        for j, (b, other) in enumerate(placed[:i])
        if meet(a, b) and low < other + b[2] and other < low + a[2]
    ]


def fits(buffers: Sequence[Buffer], capacity: int) -> bool:
    """Whether there is a packing: tries all offsets, buffer by buffer in order of time."""
    order = sorted(buffers)
    offsets = [0] * len(order)

    def place(i: int) -> bool:
        if i == len(order):
            return True
        met = [j for j in range(i) if meet(order[i], order[j])]
        taken = [(offsets[j], offsets[j] + order[j][2]) for j in met]
        for low in range(capacity - order[i][2] + 1):
            if all(low + order[i][2] <= a or b <= low for a, b in taken):
                offsets[i] = low
                if place(i + 1):
                    return True
        return False

    return place(0)


def perfect(
    seed: int, pieces: int, times: int, capacity: int, *, unit: int = 1, alike: float = 0.0
) -> list[Buffer]:
    """A full rectangle of time x capacity in pieces: no byte is free at any time, so the optimum is
    the capacity, and hard to find.

    Pieces are cut in two, or into the five of a windmill, which no straight cuts make; a share of
    `alike` is cut into equal parts, as buffers of tiled loops are. Sizes are multiples of `unit`,
    and so must be the capacity.
    """
    rnd = random.Random(seed)
    parts = [(0, times, 0, capacity // unit)]
    while len(parts) < pieces:
        area = [(b - a) * (d - c) * (0.05 + rnd.random()) for a, b, c, d in parts]
        which = area.index(max(area))
        parts[which : which + 1] = _cut(rnd, *parts[which], alike)
    rnd.shuffle(parts)
    return [(a, b, (d - c) * unit) for a, b, c, d in parts]


_Part = tuple[int, int, int, int]


def _cut(rnd: random.Random, a: int, b: int, c: int, d: int, alike: float) -> list[_Part]:
    if rnd.random() < alike:
        times = [n for n in range(2, 7) if (b - a) % n == 0]
        sizes = [n for n in range(2, 7) if (d - c) % n == 0]
        if times and rnd.random() < 0.5:
            step = (b - a) // rnd.choice(times)
            return [(at, at + step, c, d) for at in range(a, b, step)]
        if sizes:
            step = (d - c) // rnd.choice(sizes)
            return [(a, b, at, at + step) for at in range(c, d, step)]
    if b - a > 2 and d - c > 2 and rnd.random() < 0.2:
        low, high = sorted(rnd.sample(range(a + 1, b), 2))
        under, over = sorted(rnd.sample(range(c + 1, d), 2))
        wings = [(a, high, c, under), (high, b, c, over), (low, b, over, d), (a, low, under, d)]
        return [*wings, (low, high, under, over)]
    if b - a > 1 and (d - c < 2 or rnd.random() < 0.5):
        at = rnd.randrange(a + 1, b)
        return [(a, at, c, d), (at, b, c, d)]
    at = rnd.randrange(c + 1, d)
    return [(a, b, c, at), (a, b, at, d)]


def adversarial(seed: int, pieces: int, capacity: int = 2**20) -> list[Buffer]:
    """Hundreds of buffers that fit the capacity, most of them of a size that others have, with
    stretches where every byte is needed and others with some room."""
    rnd = random.Random(seed)
    times = pieces // 2
    made = []
    for first, end, size in perfect(seed, pieces, times, capacity, unit=1024, alike=0.6):
        early = end - first > 1 and end > times // 2 and rnd.random() < 0.3
        made.append((first, rnd.randrange(first + 1, end) if early else end, size))
    return made


def training(seed: int, layers: int) -> list[Buffer]:
    """Forward and backward steps: activations live until their gradient is taken, gradients of
    weights to the end; besides, buffers of a few steps and workspaces of one."""
    rnd = random.Random(seed)
    steps = 2 * layers
    made: list[Buffer] = []
    for layer in range(layers):
        back = steps - layer - 1
        size = rnd.randrange(1, 200) * 1000
        made.append((layer, back + 1, size))
        made.append((back, min(steps, back + rnd.randrange(2, 4)), size))
        made.append((layer, layer + rnd.randrange(1, 4), rnd.randrange(1, 150) * 1000))
        for at in (layer, back):
            if rnd.random() < 0.5:
                made.append((at, at + 1, rnd.randrange(1, 300) * 1000))
        if rnd.random() < 0.5:
            made.append((back, steps, rnd.randrange(1, 40) * 1000))
    return made
