"""What candidates that nobody has tried may still be worth.

A cost model's estimates, scaled to the times that were measured, are taken for the logarithmic
mean of the others' times, and how far the model was off so far for their spread. The gain is what
the best of them is expected to save over the best so far: the "expected improvement" of Jones,
Schonlau and Welch (Journal of Global Optimization 13, 1998), of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from .survey import Survey

SPREAD: Final = 0.1
"""Deviation of log(time / scaled estimate) that is expected before anything is measured."""
WEIGHT: Final = 3.0
"""Measurements that this expectation counts as."""
LIKE: Final = 0.4
"""Measurements of a template that those of all other templates count as."""
ALIKE: Final = 4.0
"""Candidates are so much alike that of n only n ** (1 / ALIKE) are as good as independent."""
STEPS: Final = 24
"""Points of the integral."""


def expected_gain(survey: Survey, places: Iterable[int]) -> float:
    """The share of the best time that trying these places is expected to save, 0 to 1.

    Before anything was measured the default stands for the best; where everything failed, anything
    is a gain.
    """
    rest = [k for k in places if k not in survey.tried]
    if not rest:
        return 0.0
    if not survey.measured and survey.tried:
        return 1.0
    means, spread = predictions(survey, rest)
    best = survey.best
    if best is None:
        limit = 0.0 if 0 in rest else math.inf
        best_log = means.get(0, limit)
        rest = [k for k in rest if k != 0]
    else:
        best_log = math.log(survey.measured[best].seconds)
    return _saved([means[k] - best_log for k in rest], spread)


def predictions(survey: Survey, places: Sequence[int]) -> tuple[Mapping[int, float], float]:
    """Of each place the mean of the logarithm of its seconds (of an unknown unit while nothing is
    measured); and the deviation of all of them."""
    logs = {k: math.log(m.seconds) - _estimate(survey, k) for k, m in survey.measured.items()}
    overall = fmean(logs.values()) if logs else 0.0
    by_template: dict[str, list[float]] = {}
    for k, value in logs.items():
        by_template.setdefault(survey.task.space[k].template, []).append(value)
    offsets = {t: (sum(v) + LIKE * overall) / (len(v) + LIKE) for t, v in by_template.items()}
    squares = sum(
        (value - offsets[survey.task.space[k].template]) ** 2 for k, value in logs.items()
    )
    spread = math.sqrt((WEIGHT * SPREAD**2 + squares) / (WEIGHT + len(logs)))
    return {
        k: _estimate(survey, k) + offsets.get(survey.task.space[k].template, overall) for k in places
    }, spread


def _estimate(survey: Survey, place: int) -> float:
    """The logarithm of what the cost model says; of 1 where there is none."""
    found = survey.task.estimates
    return math.log(max(found[place], 1e-300)) if found else 0.0


def _saved(ratios: Sequence[float], spread: float) -> float:
    """The mean of 1 - min(1, best of some log-normal times), given the means of the logarithms of
    times over the best so far: the integral of the chance that one of them is below x."""
    if not ratios:
        return 0.0
    lowest = min(0.0, *ratios) - 4 * spread
    width = -lowest / STEPS
    power = len(ratios) ** (1 / ALIKE - 1)
    total = 0.0
    for step in range(STEPS):
        x = lowest + (step + 0.5) * width
        none = math.prod(0.5 * math.erfc((x - r) / (spread * math.sqrt(2))) for r in ratios)
        total += (1 - none**power) * math.exp(x) * width
    return total
