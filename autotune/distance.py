"""How far problems are from each other, by the numbers that describe them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

_ZERO: Final = math.log(0.5)  # as far below 1 as 2 is above


def distance(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[int, float] | None:
    """How unlike two problems are: features that only one of them has, which say that they are of
    different kinds, then the root mean square of the logarithms of the ratios of the others. Twice
    and half as many channels are equally far away. None where they share no feature.

    Features are 0 or more; 0, which has no logarithm, counts as a half.
    """
    shared = a.keys() & b.keys()
    if not shared:
        return None
    squares = math.fsum((_log(a[n]) - _log(b[n])) ** 2 for n in sorted(shared))
    return len(a.keys() ^ b.keys()), math.sqrt(squares / len(shared))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else _ZERO
