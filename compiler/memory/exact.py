"""Exact search for a packing within a capacity: finds one, or proves that there is none.

What is packed has a lowest point at every moment: `release`, per buffer, is the lowest offset that
it can still have, and the least of them in a section is that section's floor. A run of sections
with equal floors between higher ones is a valley, and of one section in it, exactly one of these
holds: one of the buffers that can lie on its floor does (none could slip beneath it, so its place
is final), or none does, and then the floor rises to the next offset at which anything can rest.
Trying these for one section after another tries everything, and no packing twice.

* Where: at the section with the fewest options for its number of dead ends so far (Boussemart et
  al., "Boosting systematic search by weighting constraints", 2004), wherever in time that is.
* Which first: the largest or the longest-lived, but before them buffers whose top is level with a
  wall of the valley, as in best-fit for strip packing (Burke, Kendall and Whitwell, "A new
  placement heuristic for the orthogonal stock-cutting problem", 2004).
* Bound: a section is a machine, its buffers are jobs with release dates, and all must be done by
  the capacity. A buffer that would be too late for the rest if it came first is released only when
  another one can be done (Carlier, "The one-machine sequencing problem", 1982, has such rules).
* Taking back: every dead end knows the stretch of time that explains it, and the search goes back
  to the last decision in that stretch, not just to the last one (Prosser, "Hybrid algorithms for
  the constraint satisfaction problem", 1993). So independent regions are not searched again for
  each other's sake, as splitting at cuts in time achieves elsewhere (Moffitt, "MiniMalloc", 2023).
* Restarts with other preferences and growing budgets, since a bad early choice costs more than
  starting again (Gomes, Selman and Kautz, "Boosting combinatorial search through randomization",
  1998). What is varied comes from a fixed sequence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .sections import FAR, Ints, Problem

_Floats = npt.NDArray[np.float64]

_FIRST_BUDGET = 3
"""Placements of the first searches, per buffer."""

_GROWTH = 1.3
"""From one round of preferences to the next, of the budget."""

_NOISE = 0.1
"""By how much of all buffers a rank may move up or down, from the second round on."""

_REFRESH = 0.75
"""Tables are made anew when this share of their buffers is left."""

_MEMORY = 64 * 2**20
"""Bytes of states that can be gone back to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`offsets` of a packing within the capacity, or None; then `impossible` says if it is proved
    that there is none. `used` counts placements."""

    offsets: Ints | None
    impossible: bool
    used: int


def search(problem: Problem, capacity: int, budget: int, deadline: float) -> Outcome:
    """Look for a packing of at most `capacity` bytes with about `budget` placements."""
    if problem.bound > capacity:
        return Outcome(None, True, 0)
    used = 0
    share = float(_FIRST_BUDGET * len(problem.size))
    for number, (rank, fit) in enumerate(_preferences(problem)):
        tries = min(int(share * _GROWTH ** (number // 4)), budget - used)
        if tries <= 0 or time.monotonic() > deadline:
            break
        outcome = _Search(problem, capacity, rank, fit).run(tries, deadline)
        used += outcome.used
        if outcome.offsets is not None or outcome.impossible:
            return Outcome(outcome.offsets, outcome.impossible, used)
    return Outcome(None, False, used)


def _preferences(problem: Problem) -> Iterator[tuple[_Floats, bool]]:
    """Endless ways to rank buffers, the preferred ones highest, and whether fitting comes first."""
    count = len(problem.size)
    life, contention = problem.end - problem.start, problem.contention()
    orders = (
        np.lexsort((problem.size, contention)),
        np.lexsort((problem.size, life)),
    )
    ranks = [np.argsort(order, kind="stable").astype(np.float64) for order in orders]
    yield ranks[0], True
    yield ranks[1], True
    yield ranks[0], False
    yield ranks[1], False
    seed = 1
    while True:
        for fit in (True, False):
            for rank in ranks:
                moves = np.empty(count)
                for i in range(count):
                    seed = seed * 6364136223846793005 + 1442695040888963407 & 2**64 - 1
                    moves[i] = (seed >> 40) / 2**23 - 1
                yield rank + moves * (count * _NOISE), fit


@dataclass(frozen=True, slots=True)
class _Table:
    """Who is alive where: one entry per section and buffer in it, row by row.

    `sections` has the section of each row, `begin` its first entry; of entries, `buffer` is the
    buffer, `size` its size and `row` the row. Placed buffers may still be listed.
    """

    sections: Ints
    begin: Ints
    buffer: Ints
    size: Ints
    row: Ints
    buffers: int

    @classmethod
    def of(cls, problem: Problem, buffers: Ints) -> _Table:
        start, life = problem.start[buffers], (problem.end - problem.start)[buffers]
        buffer = np.repeat(buffers, life)
        within = np.arange(len(buffer)) - np.repeat(np.cumsum(life) - life, life)
        section = np.repeat(start, life) + within
        order = np.argsort(section, kind="stable")
        sections, begin, row = np.unique(section[order], return_index=True, return_inverse=True)
        buffer = buffer[order]
        return cls(sections, begin, buffer, problem.size[buffer], row.reshape(-1), len(buffers))


@dataclass(frozen=True, slots=True)
class _State:
    """A partial packing. Its arrays are never modified, so taking back is dropping it.

    `release` is the lowest offset of each buffer (FAR once placed), explained by what was decided
    in the sections from `low` up to `high`. Per section, `rest` is the bytes still to place and
    `touched` the level of the last decision in it, -1 for none.
    """

    table: _Table
    release: Ints
    low: Ints
    high: Ints
    rest: Ints
    touched: Ints
    left: int


@dataclass(slots=True)
class _Node:
    """A decision to take: what to put on the floor of `section`, at offset `floor`.

    `choices` are the buffers not yet tried, the preferred one at the end; -1 stands for none of
    them, which lifts the floor to `lifted`. That all choices fail is explained by what was decided
    in the sections from `low` up to `high`.
    """

    state: _State
    section: int
    floor: int
    lifted: int
    choices: list[int]
    low: int
    high: int


class _Search:
    """One depth-first search, with one ranking."""

    def __init__(self, problem: Problem, capacity: int, rank: _Floats, fit: bool) -> None:
        self.problem = problem
        self.capacity = capacity
        self.rank = rank
        self.fit = fit
        self.offsets = np.zeros(len(problem.size), np.int64)
        self.dead_ends = np.zeros(len(problem.load))
        bytes_each = 8 * (3 * len(problem.size) + 2 * len(problem.load))
        self.depth = max(64, _MEMORY // bytes_each)

    def run(self, tries: int, deadline: float) -> Outcome:
        problem = self.problem
        everyone = np.arange(len(problem.size))
        state = _State(
            _Table.of(problem, everyone),
            np.zeros(len(everyone), np.int64),
            problem.start,
            problem.end,
            problem.load,
            np.full(len(problem.load), -1),
            len(everyone),
        )
        nodes: dict[int, _Node] = {}
        level = used = 0
        conflict, state = self._bounded(state)
        while True:
            if conflict is None:
                if not state.left:
                    return Outcome(self.offsets, False, used)
                nodes[level] = self._branch(state)
                nodes.pop(level - self.depth, None)
                level += 1
            while conflict is not None or not nodes[level - 1].choices:
                if conflict is None:
                    node = nodes[level - 1]
                    conflict, state = (node.low, node.high), node.state
                    self.dead_ends[node.section] += 1
                level = int(state.touched[conflict[0] : conflict[1]].max()) + 1
                if not level:
                    return Outcome(None, True, used)
                if level - 1 not in nodes:
                    return Outcome(None, False, used)
                node = nodes[level - 1]
                node.low, node.high = min(node.low, conflict[0]), max(node.high, conflict[1])
                conflict = None
            if used >= tries or time.monotonic() > deadline:
                return Outcome(None, False, used)
            used += 1
            node = nodes[level - 1]
            choice = node.choices.pop()
            conflict, state = self._bounded(
                self._placed(node, choice, level - 1)
                if choice >= 0
                else self._lifted(node, level - 1)
            )

    def _placed(self, node: _Node, i: int, level: int) -> _State:
        """With buffer i on the floor."""
        state, problem = node.state, self.problem
        start, end, size = problem.start[i], problem.end[i], problem.size[i]
        self.offsets[i] = node.floor
        meets = (problem.start < end) & (problem.end > start)
        release = state.release.copy()
        np.maximum(release, node.floor + size, out=release, where=meets)
        release[i] = FAR
        rest, touched = state.rest.copy(), state.touched.copy()
        rest[start:end] -= size
        touched[start:end] = level
        table, left = state.table, state.left - 1
        if left and left < _REFRESH * table.buffers:
            table = _Table.of(problem, np.flatnonzero(release < FAR))
        return _State(table, release, state.low, state.high, rest, touched, left)

    def _lifted(self, node: _Node, level: int) -> _State:
        """With nothing on the floor."""
        state, problem = node.state, self.problem
        here = (problem.start <= node.section) & (problem.end > node.section)
        release = np.maximum(state.release, np.where(here, node.lifted, 0))
        touched = state.touched.copy()
        touched[node.section] = level
        return _State(
            state.table, release, state.low, state.high, state.rest, touched, state.left
        )  # fmt: skip

    def _bounded(self, state: _State) -> tuple[tuple[int, int] | None, _State]:
        """The state with releases as late as they must be; or the sections that explain why no
        packing within the capacity has it."""
        if not state.left:
            return None, state
        table = state.table
        release, low, high = state.release, state.low, state.high
        rest = state.rest[table.sections]
        latest = self.capacity - rest
        latest_each = latest[table.row]
        while True:
            released = release[table.buffer]
            floor = np.minimum.reduceat(released, table.begin)
            over = np.flatnonzero((floor > latest) & (floor < FAR))
            if len(over):
                break
            late = (released > latest_each) & (released < FAR)
            if not late.any():
                return None, state
            # Not first: such a buffer comes after the top of another one in the section.
            top = released + table.size
            first = np.minimum.reduceat(top, table.begin)[table.row]
            itself = top == first
            if (itself & late).any():
                lone = np.add.reduceat(itself, table.begin, dtype=np.int64) == 1
                others = np.minimum.reduceat(np.where(itself, 2 * FAR, top), table.begin)
                first = np.where(itself & lone[table.row], others[table.row], first)
            raised = np.flatnonzero(late & (first > released))
            if not len(raised):
                break
            if release is state.release:
                release, low, high = release.copy(), low.copy(), high.copy()
            who, row = table.buffer[raised], table.row[raised]
            np.maximum.at(release, who, np.minimum(first[raised], FAR - 1))
            listed = released < FAR
            lows = np.where(listed, low[table.buffer], FAR)
            highs = np.where(listed, high[table.buffer], 0)
            np.minimum.at(low, who, np.minimum.reduceat(lows, table.begin)[row])
            np.maximum.at(high, who, np.maximum.reduceat(highs, table.begin)[row])
            state = _State(table, release, low, high, state.rest, state.touched, state.left)
        if not len(over):
            over = self._overfull(state, np.unique(table.row[late]))
        if not len(over):
            return None, state
        row = over[0]
        self.dead_ends[table.sections[row]] += 1
        return self._explained(state, int(table.sections[row])), state

    def _overfull(self, state: _State, rows: Ints) -> Ints:
        """The first of the rows whose buffers end above the capacity, each as early as it can."""
        problem = self.problem
        order = np.flatnonzero(state.release < FAR)
        order = order[np.argsort(state.release[order], kind="stable")]
        sections = state.table.sections[rows][:, None]
        alive = (problem.start[order] <= sections) & (problem.end[order] > sections)
        after = np.cumsum((alive * problem.size[order])[:, ::-1], axis=1)[:, ::-1]
        ends = np.where(alive, after + state.release[order], 0).max(axis=1)
        return rows[np.flatnonzero(ends > self.capacity)[:1]]

    def _explained(self, state: _State, section: int) -> tuple[int, int]:
        """The sections in which all was decided that holds in this one."""
        problem = self.problem
        here = (problem.start <= section) & (problem.end > section) & (state.release < FAR)
        return int(state.low[here].min()), int(state.high[here].max())

    def _branch(self, state: _State) -> _Node:
        """The decision with the fewest options, and these in order."""
        problem, table, release = self.problem, state.table, state.release
        released = release[table.buffer]
        floors = np.minimum.reduceat(released, table.begin)
        floor = np.full(len(problem.load), FAR)
        floor[table.sections] = floors
        steps = np.flatnonzero(floor[1:] != floor[:-1]) + 1
        begin = np.concatenate(([0], steps))
        end = np.concatenate((steps, [len(floor)]))
        walls = np.concatenate(([FAR], floor[begin], [FAR]))
        valley = (walls[1:-1] < walls[:-2]) & (walls[1:-1] < walls[2:])
        run = np.repeat(np.arange(len(begin)), end - begin)[table.sections]
        count = np.add.reduceat(released == floors[table.row], table.begin, dtype=np.int64)
        slack = self.capacity - state.rest[table.sections] - floors
        options = count + (slack > 0)
        weight = 1 + self.dead_ends[table.sections]
        value = np.where(options > 1, options / weight, -1 / weight)
        row = int(np.argmin(np.where(valley[run], value, np.inf)))
        section, height = int(table.sections[row]), int(floors[row])

        here = (problem.start <= section) & (problem.end > section) & (release < FAR)
        low, high = int(state.low[here].min()), int(state.high[here].max())
        lowest = np.flatnonzero(here & (release == height))
        choices = self._ordered(lowest, height, run[row], begin, end, walls)
        lifted = int(release[here & (release > height)].min(initial=FAR))
        if slack[row] > 0:
            # What does not rest on the floor rests on something that doesn't reach this section.
            reach = problem.start[lowest].min(), problem.end[lowest].max()
            near = (problem.start < reach[1]) & (problem.end > reach[0]) & ~here & (release < FAR)
            low = min(low, int(state.low[near].min(initial=low)))
            high = max(high, int(state.high[near].max(initial=high)))
            lifted = min(lifted, int((release + problem.size)[near].min(initial=FAR)))
            if lifted - height <= slack[row]:
                choices.insert(0, -1)
        return _Node(state, section, height, lifted, choices, low, high)

    def _ordered(
        self, lowest: Ints, height: int, run: int, begin: Ints, end: Ints, walls: Ints
    ) -> list[int]:
        """Buffers to try on the floor of a valley, the preferred one last; of equals only one."""
        problem, count = self.problem, len(self.rank)
        rank = self.rank[lowest]
        if self.fit:
            start, stop = problem.start[lowest] == begin[run], problem.end[lowest] == end[run]
            top = problem.size[lowest] + height
            left = start & (top == walls[run]) & (begin[run] > 0)
            right = stop & (top == walls[run + 2]) & (end[run] < len(problem.load))
            level = 2 * left + 2 * right
            rank = rank + 2 * count * np.where(level > 0, level + (start & stop), 0)
        shapes = zip(
            problem.start[lowest].tolist(),
            problem.end[lowest].tolist(),
            problem.size[lowest].tolist(),
            strict=True,
        )
        distinct = list({shape: k for k, shape in enumerate(shapes)}.values())
        order = np.argsort(rank[distinct], kind="stable")
        chosen: list[int] = lowest[np.array(distinct)[order]].tolist()
        return chosen
