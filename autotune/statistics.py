"""What samples of a time say: a quantile, how far it is known, and whether they can be trusted.

Whatever disturbs a kernel makes it slower, and what others do to the last cache and to memory shows
in no clock: a time is the lower quartile of its samples, which is the same up to when more than
half of them are disturbed. Times are skewed and have outliers, so nothing here assumes a
distribution. The interval of a quantile is that of order statistics: of n independent samples,
between the k-th and the l-th smallest lies the true quantile with a probability that the binomial
distribution gives (e.g. David and Nagaraja, "Order Statistics", 2003, section 7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import ceil, comb
from typing import Final

from .outcome import Measurement

QUARTER: Final = 0.25
"""The share of its samples that are below a time."""

CONFIDENCE: Final = 0.95

WAITED: Final = 0.02
WAITED_SECONDS: Final = 3e-6
"""A sample was interrupted if its thread did not run for more than this share of it, and more than
these seconds: reading the clocks takes part of a microsecond, and ticks fall between them."""

CALM: Final = 0.03
"""Pressure of samples that count as undisturbed, at most."""

FEW: Final = 5
"""Calm samples that make a measurement by themselves, whatever the others were."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one run. pressure: how much other work got in the way while it was taken, 0 for
    none, and a few hundredths for little."""

    seconds: float
    pressure: float = 0.0

    @property
    def is_calm(self) -> bool:
        """Whether it is as good as on a machine of one's own."""
        return self.pressure <= CALM

    def pressed(self, more: float) -> Sample:
        """The sample with what was found out about it later."""
        return Sample(self.seconds, self.pressure + max(more, 0.0))


def sampled(wall: float, cpu: float, switches: int, strain: float, alone: bool) -> Sample:
    """A sample from what clocks said of one stretch of work.

    wall: seconds that went by. cpu: seconds that the calling thread had a processor for. switches:
    how often the system took a processor from one of the threads at work. strain: how many times as
    long as at best a known piece of work took, next to it. alone: nothing but the calling thread
    worked, so that what it waited for was not part of the work, and its own time is the better
    figure where it was made to wait.
    """
    waited = alone and wall - cpu > max(WAITED * wall, WAITED_SECONDS)
    interrupted = waited or switches > 0  # somebody else's data are in the caches now
    return Sample(cpu if waited else wall, max(strain - 1, 0.0) + interrupted)


def per_run(sample: Sample, runs: int) -> Sample:
    """The sample of one of so many equal runs."""
    return Sample(sample.seconds / runs, sample.pressure)


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number the mean of the middle two."""
    ordered = sorted(values)
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def quartile(values: Sequence[float]) -> float:
    """The lower one: the smallest value that a quarter of all are not above."""
    return sorted(values)[ceil(QUARTER * len(values)) - 1]


@cache
def _ranks(n: int, share: float, confidence: float) -> tuple[int, int]:
    """Between which of n samples the true quantile lies with that confidence, the rest of it in
    equal parts beyond either end; the first or the last where an end cannot have so little."""
    rest = (1 - confidence) / 2
    chances = (comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1))
    fewer = list(accumulate(chances, initial=0.0))  # [k]: that fewer than k samples lie below it
    first = max((k for k in range(1, n + 1) if fewer[k] <= rest), default=1)
    last = min((k for k in range(1, n + 1) if 1 - fewer[k] <= rest), default=n)
    return first, last


def interval(
    values: Sequence[float], share: float = 0.5, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """What encloses the true quantile that this share of all values are below, with that
    confidence. Few samples, less than six for the median and a dozen for the quartile, enclose it
    with less, at most: the smallest or the largest of them is an end then."""
    ordered = sorted(values)
    first, last = _ranks(len(ordered), share, confidence)
    return ordered[first - 1], ordered[last - 1]


def measurement(samples: Sequence[Sample]) -> Measurement:
    """The samples of one candidate as a measurement; of at least one.

    Only calm samples count, where there are enough of them. Otherwise the calmer half does, and the
    measurement is marked as contaminated.
    """
    used = [s for s in samples if s.is_calm]
    contaminated = len(used) < min(FEW, len(samples))
    if contaminated:
        used = sorted(samples, key=lambda s: s.pressure)[: (len(samples) + 1) // 2]
    seconds = [s.seconds for s in used]
    return Measurement(quartile(seconds), *interval(seconds, QUARTER), len(used), contaminated)


def are_apart(a: Measurement, b: Measurement) -> bool:
    """Whether one is faster than the other for sure: their intervals do not meet."""
    return a.high < b.low or b.high < a.low
