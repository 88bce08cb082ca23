"""Which candidates are neighbours: the moves of a local search."""

from __future__ import annotations

from collections.abc import Sequence

from ..task import Candidate, Value, canonical


def neighbours(space: Sequence[Candidate]) -> tuple[tuple[int, ...], ...]:
    """For every place in a space, the places of its neighbours, in order.

    Neighbours are of one template and differ in one field of their configs, by one step: of the
    candidates that agree in all other fields, none has a value between theirs. So a space with
    gaps, where not every value goes with every other, has as many moves as it allows.
    """
    lines: dict[tuple[str, int, str, str], list[int]] = {}
    for place, candidate in enumerate(space):
        for name in candidate.config:
            rest = canonical({k: v for k, v in candidate.config.items() if k != name})
            line = (candidate.template, candidate.version, name, rest)
            lines.setdefault(line, []).append(place)
    found: list[set[int]] = [set() for _ in space]
    for (_, _, name, _), places in lines.items():
        along = sorted(places, key=lambda k: _order(space[k].config[name]))
        for a, b in zip(along, along[1:], strict=False):
            found[a].add(b)
            found[b].add(a)
    return tuple(tuple(sorted(f)) for f in found)


def _order(value: Value) -> tuple[int, float, str]:
    """None, then numbers, then words."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, str):
        return (2, 0.0, value)
    return (1, float(value), "")
