"""The stages of a compilation: names, text, what each pass changed, two of them side by side."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ..errors import OptionError
from ..graph.ir import Graph
from ..graph.text import to_text
from ..passes.base import Stage
from ..text import nearest

_TERMS: Final = 5
"""Operators that a line about changes lists."""
_AROUND: Final = 3
"""Lines alike that are shown beside different ones."""
_LEAST: Final = 24
"""Columns that one side of a comparison has at least."""


def stage_names(stages: Sequence[Stage]) -> tuple[str, ...]:
    """A name for every stage that stays the same from run to run: "00_import", "04_fold_scales"."""
    return tuple(f"{k:02d}_{s.name}" for k, s in enumerate(stages))


def stage_named(stages: Sequence[Stage], name: str, levels: Iterable[str] = ()) -> Stage:
    """The stage "04_fold_scales", or the last one called "fold_scales". Raises OptionError, which
    also lists the levels that could be meant."""
    whole = stage_names(stages)
    if name in whole:
        return stages[whole.index(name)]
    for stage in reversed(stages):
        if stage.name == name:
            return stage
    passes = dict.fromkeys(s.name for s in stages)
    known = (*levels, *passes)
    raise OptionError(f"there is no stage {name!r}{nearest(name, (*known, *whole))}; there are "
                      f"the levels {', '.join(levels)}, and the graph after the passes "
                      f"{', '.join(passes)}")  # fmt: skip


def stage_text(stages: Sequence[Stage], name: str, levels: Iterable[str] = ()) -> str:
    """The graph of `stage_named` as text that parses back."""
    return to_text(stage_named(stages, name, levels).graph)


# --------------------------------------------------------------------------- what changed


def changes(before: Graph, after: Graph) -> str:
    """What is different, in a few words: operators by their number, attributes, constants, layouts,
    places, groups; "" where that is nothing."""
    said = []
    old, new = (Counter(op.operator for op in g.ops) for g in (before, after))
    moved = sorted({*old, *new}, key=lambda n: (-abs(new[n] - old[n]), n))
    counts = [f"{new[n] - old[n]:+d} {n}" for n in moved if new[n] != old[n]]
    if counts:
        more = len(counts) - _TERMS
        said.append(", ".join([*counts[:_TERMS], *([f"{more} more"] if more > 0 else [])]))
    was = {op.outputs[0]: op for op in before.ops}
    both = [(was[op.outputs[0]], op) for op in after.ops if op.outputs[0] in was]
    same = [(a, b) for a, b in both if a.operator == b.operator]
    said += _count(sum(a.attrs != b.attrs for a, b in same), "op with other attributes",
                   "ops with other attributes")  # fmt: skip
    said += _count(sum(a.inputs != b.inputs for a, b in same), "op with other inputs",
                   "ops with other inputs")  # fmt: skip
    held = (set(before.constants), set(after.constants))
    said += _count(len(held[1] - held[0]), "new constant", "new constants")
    said += _count(len(held[0] - held[1]), "constant gone", "constants gone")
    shared = [(b, after.blobs[n]) for n, b in before.blobs.items() if n in after.blobs]
    said += _count(sum(a.type.layout != b.type.layout for a, b in shared), "layout", "layouts")
    placed = sum(b.inside is not None and a.inside != b.inside for a, b in shared)
    said += _count(placed, "blob placed in another", "blobs placed in others")
    if [op.group for op in before.ops] != [op.group for op in after.ops]:
        groups = {op.group for op in after.ops if op.group is not None}
        if groups and any(a.group != b.group for a, b in both):
            said.append(f"{len(after.ops)} ops in {len(groups)} groups")
    if not said and [op.outputs for op in before.ops] != [op.outputs for op in after.ops]:
        said.append("another order")
    return "; ".join(said)


def _count(number: int, one: str, several: str) -> list[str]:
    return [f"{number} {one if number == 1 else several}"] if number else []


def listed(stages: Sequence[Stage]) -> Iterator[tuple[str, float, int, str]]:
    """Of every stage: its name, milliseconds, ops, and what it changed."""
    before: Graph | None = None
    for name, stage in zip(stage_names(stages), stages, strict=True):
        said = "" if before is None or before is stage.graph else changes(before, stage.graph)
        if stage.changed and not said:
            said = "-" if before is None else "names or constants"
        yield name, stage.milliseconds, len(stage.graph.ops), said or "nothing"
        before = stage.graph


# --------------------------------------------------------------------------- side by side


def side_by_side(titles: tuple[str, str], texts: tuple[str, str], columns: int = 0) -> str:
    """Two texts next to each other, where they differ in more than blanks, and a few lines around
    that. Between them: "|" where a line is another, "<" and ">" where one side has none. columns:
    of the whole; lines are cut to fit, or not at all for 0."""
    left, right = (t.splitlines() for t in texts)
    rows: list[tuple[str, str, str]] = []
    bare = [[" ".join(x.split()) for x in side] for side in (left, right)]  # blocks are indented
    matcher = difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False)
    blocks = matcher.get_opcodes()
    for number, (kind, a, b, c, d) in enumerate(blocks):
        if kind == "equal":
            pairs = list(zip(left[a:b], right[c:d], strict=True))
            rows += _alike(pairs, number > 0, number + 1 < len(blocks))
            continue
        for k in range(max(b - a, d - c)):
            x = left[a + k] if k < b - a else ""
            y = right[c + k] if k < d - c else ""
            rows.append((x, "|" if k < min(b - a, d - c) else "<" if k < b - a else ">", y))
    wide = max((len(x) for x, _, _ in rows), default=0)
    wide = max(wide, len(titles[0]))
    if columns:
        wide = min(wide, max((columns - 3) // 2, _LEAST))
        rows = [(_cut(x, wide), mark, _cut(y, wide)) for x, mark, y in rows]
    lines = [f"{titles[0]:<{wide}}   {titles[1]}"]
    lines += [f"{x:<{wide}} {mark} {y}".rstrip() for x, mark, y in rows]
    return "\n".join(lines) + "\n"


def _alike(
    lines: Sequence[tuple[str, str]], after: bool, before: bool
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """Lines that both sides have. after, before: whether others stand above and below."""
    first, last = _AROUND * after, _AROUND * before
    hidden = len(lines) - first - last
    if hidden <= 1:
        first, hidden, last = len(lines), 0, 0
    yield from ((x, " ", y) for x, y in lines[:first])
    if hidden:
        yield f"... {hidden} lines alike", " ", "..."
    yield from ((x, " ", y) for x, y in lines[len(lines) - last :])


def _cut(text: str, wide: int) -> str:
    return text if len(text) <= wide else text[: wide - 1] + "~"
