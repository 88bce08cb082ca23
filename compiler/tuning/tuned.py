"""What was measured before, as choices for a compilation.

Per problem, the winner among the candidates on record takes the place of the default: those of this
device, or where it has none, of another one of the same model. What other models measured says
nothing certain about this one, and is left to searches to begin from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ...autotune.choice import MARGIN, winner
from ...autotune.outcome import Measurement
from ...autotune.records import Records
from ...autotune.row import Row
from ...autotune.task import Candidate, Key
from ..graph.ir import Graph
from ..kernels.device import Device
from ..kernels.select import TEMPLATES, digests_of, templates_for
from ..options import Numerics
from . import fingerprint
from .choices import Choice
from .problem import Problem, problems_of

_log: Final = logging.getLogger("tilewright")

VERSIONS: Final[Mapping[str, int]] = {t.name: t.version for t in TEMPLATES}
"""The templates that records of CPUs can be of, with the version that their configs must have been
for."""


def versions_for(device: Device, numerics: Numerics) -> dict[str, int]:
    """The templates that records of a device can be of, with the versions that they have now."""
    return {t.name: t.version for t in templates_for(device, numerics)}


def recorded(
    graph: Graph, device: Device, numerics: Numerics, place: str, records: Records
) -> dict[str, Choice]:
    """Choices for the groups of a graph, where records know something better than the default.

    place: the fingerprint of the device. Costs next to nothing where no records are kept.
    """
    if records.path is None or not records.path.exists():
        return {}
    digests = digests_of(graph)
    problems = {digests[s]: p for s, p in problems_of(graph, device, numerics).items()}
    keys = {digest: Key(p.text, place, numerics) for digest, p in problems.items()}
    versions = versions_for(device, numerics)
    rows = records.of_many(list(keys.values()), versions, 1 + MARGIN)
    found = {}
    for digest, key in keys.items():
        deciding = rows[key.digest] or from_elsewhere(key, records, versions)
        choice = choice_of(deciding, problems[digest], place)
        if choice is not None:
            found[digest] = choice
    _log.debug("%d of %d kinds of kernels are as recorded in %s", len(found), len(keys),
               records.path)  # fmt: skip
    return found


def from_elsewhere(key: Key, records: Records, versions: Mapping[str, int] = VERSIONS) -> list[Row]:
    """What is on record of a key's problem on another device of the same model."""
    return of_same_model(records.elsewhere(key, versions), key.device)


def of_same_model(rows: Iterable[Row], place: str) -> list[Row]:
    """The rows of one other device of the model of `place`: the one with the most, and of these the
    first by its text. Times of several devices do not compare."""
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        if fingerprint.same_model(row.device, place):
            by_device.setdefault(row.device, []).append(row)
    return min(by_device.values(), key=lambda r: (-len(r), r[0].device), default=[])


def choice_of(rows: Sequence[Row], problem: Problem, place: str) -> Choice | None:
    """The winner among the rows of one problem on one device; None where that is the default, or
    nothing was measured."""
    outcomes = {row.candidate: row.outcome for row in rows}
    if not any(isinstance(o, Measurement) for o in outcomes.values()):
        return None
    default = default_of(rows, problem)
    won = winner(default, outcomes)
    if won == default:
        return None
    (row,) = (r for r in rows if r.candidate == won)
    before, after = outcomes.get(default), row.seconds
    gain = ""
    if isinstance(before, Measurement) and after:
        gain = f", {before.seconds / after:.2f}x as fast as the default"
    where = "" if row.device == place else f" on {fingerprint.label(row.device)}"
    return Choice(won, f"tuned {row.date[:10]}{where}{gain}")


def default_of(rows: Sequence[Row], problem: Problem) -> Candidate:
    """What runs without tuning. Rows say which that was, which is found out faster than from the
    templates; these are asked where no row says so, or several do. A default that changed since is
    unknown until somebody tunes again, and runs meanwhile where the old one was the best."""
    marked = [row.candidate for row in rows if row.is_default]
    return marked[0] if len(marked) == 1 else problem.default()
