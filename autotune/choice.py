"""Which candidate a task gets when measuring is over.

Times that differ by less than a margin are ties, and ties go to the candidate that comes first: the
default, then by (template, text), an order that no measurement changes. So tuning again gives the
same choice, as long as it is known on which side of the margin those are that come early:
`doubtful` says whom to run more often to know it. A tie counts only where it is sure, so that noise
never makes a winner that is slower than the fastest by more than the margin. The default alone has
the benefit of the doubt, up to a third of the margin: a gain that small is as likely to be lost
again among other kernels, and few samples find somebody who looks faster by a hundredth in any
space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from .outcome import Measurement, Outcome
from .task import Candidate

MARGIN: Final = 0.03
"""Times that differ by less than this share of the fastest are ties."""

Outcomes = Mapping[Candidate, Outcome]


def winner(default: Candidate, outcomes: Outcomes, margin: float = MARGIN) -> Candidate:
    """The candidate to use: the default if it is within a third of the margin of the fastest; else
    the first in order of the fastest and of those that are within the margin of it for sure,
    intervals considered. The default where nothing was measured."""
    times = _times(outcomes)
    if not times:
        return default
    best = _fastest(times)
    order = _in_order(default, times)
    if default in times and times[default].seconds <= times[best].seconds * (1 + margin / 3):
        return default
    return next(c for c in order if c == best or not _beats(times[best], times[c], margin))


def doubtful(default: Candidate, outcomes: Outcomes, margin: float = MARGIN) -> list[Candidate]:
    """Whom to run more often until the winner is certain, it and the fastest among them; nobody
    when it is.

    In doubt are those before the winner that may turn out to be within the margin, and those that
    may turn out to beat it by more than the margin.
    """
    times = _times(outcomes)
    if not times:
        return []
    chosen, best = winner(default, outcomes, margin), _fastest(times)
    order = _in_order(default, times)
    first = order.index(chosen)
    found = [
        c for k, c in enumerate(order)
        if c not in (chosen, best) and (
            _may_tie(times[best], times[c], margin) if k < first
            else _beats(times[c], times[chosen], margin)
        )
    ]  # fmt: skip
    return list(dict.fromkeys([*found, chosen, best])) if found else []


def place(default: Candidate, c: Candidate) -> tuple[bool, str, str]:
    """Where a candidate stands in the order that ties go by: small is early."""
    return (c != default, c.template, c.text)


def _beats(a: Measurement, b: Measurement, margin: float) -> bool:
    """Whether a may be faster than b by more than the margin."""
    return b.seconds * (1 + _off(a, b)) > a.seconds * (1 + margin)


def _may_tie(a: Measurement, b: Measurement, margin: float) -> bool:
    """Whether b may be within the margin of a."""
    return b.seconds * (1 - _off(a, b)) <= a.seconds * (1 + margin)


def _off(a: Measurement, b: Measurement) -> float:
    """How far the ratio of two times may be off, as a share of it."""
    return math.hypot((a.high - a.low) / a.seconds, (b.high - b.low) / b.seconds) / 2


def _fastest(times: Mapping[Candidate, Measurement]) -> Candidate:
    return min(times, key=lambda c: (times[c].seconds, c.template, c.text))


def _times(outcomes: Outcomes) -> dict[Candidate, Measurement]:
    return {c: o for c, o in outcomes.items() if isinstance(o, Measurement)}


def _in_order(default: Candidate, times: Mapping[Candidate, Measurement]) -> list[Candidate]:
    return sorted(times, key=lambda c: place(default, c))
