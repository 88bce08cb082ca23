"""Which candidate a task gets when measuring is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .outcome import Measurement, Outcome
from .task import Candidate

MARGIN: Final = 0.03
"""Times that differ by less than this share of the faster one are ties."""


def winner(
    default: Candidate, outcomes: Mapping[Candidate, Outcome], margin: float = MARGIN
) -> Candidate:
    """The candidate to use: of those that tie with the fastest, the default, else the first by
    (template, text). The default also where nothing was measured."""
    tied = ties(outcomes, margin)
    if default in tied or not tied:
        return default
    return min(tied, key=lambda c: (c.template, c.text))


def ties(outcomes: Mapping[Candidate, Outcome], margin: float = MARGIN) -> list[Candidate]:
    """The candidates whose times are within the margin of the fastest."""
    times = {c: o for c, o in outcomes.items() if isinstance(o, Measurement)}
    if not times:
        return []
    best = min(m.seconds for m in times.values())
    return [c for c, m in times.items() if m.seconds <= best * (1 + margin)]
