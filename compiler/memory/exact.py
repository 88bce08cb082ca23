"""Exact search for a packing within a capacity: finds one, or proves that there is none.

What is packed has a lowest point at every moment: `release`, per buffer, is the lowest offset that
it can still have, and the least of them in a section is that section's floor. A run of sections
with equal floors between higher ones is a valley, and of one section in it, exactly one of these
holds: one of the buffers that can lie on its floor does (none could slip beneath it, so its place
is final), or none does, and then the floor rises to the next offset at which anything can rest:
any packing can be lowered until all buffers rest on the ground or on others, so that only such are
looked for. Trying these for one section after another tries everything, and no packing twice.

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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .sections import FAR, Ints, Problem

_Floats = npt.NDArray[np.float64]
_Conflict = tuple[int, int] | None

_FIRST_BUDGET = 2
"""Placements of the first searches, per buffer."""

_GROWTH = 1.5
"""From one round of preferences to the next, of the budget."""

_NOISE = 0.1
"""By how much of all buffers a rank may move up or down, from the second round on."""

_LOW_FIRST = 4
"""How much a section at the capacity counts as having more options than one on the ground."""

_REFRESH = 0.75
"""Tables are made anew when this share of their buffers is left."""

_MEMORY = 64 * 2**20
"""Bytes of states that can be gone back to; in any case as many as `_DEPTH`."""

_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """`offsets` of a packing within the capacity, or None; then `impossible` says if it is proved
    that there is none. `used` counts placements."""

    offsets: Ints | None
    impossible: bool
    used: int


def search(
    problem: Problem, capacity: int, budget: int, deadline: float, attempt: int = 0
) -> Outcome:
    """Look for a packing of at most `capacity` bytes, with at most `budget` placements.

    Every `attempt` has preferences of its own. The deadline is one of time.monotonic().
    """
    if problem.bound > capacity:
        return Outcome(None, True, 0)
    used = 0
    share = float(_FIRST_BUDGET * len(problem.size))
    for number, (rank, fit) in enumerate(_preferences(problem, attempt)):
        tries = min(int(share * _GROWTH ** (number // 4)), budget - used)
        if tries <= 0 or time.monotonic() > deadline:
            break
        outcome = _Search(problem, capacity, rank, fit).run(tries, deadline)
        used += outcome.used
        if outcome.offsets is not None or outcome.impossible:
            return Outcome(outcome.offsets, outcome.impossible, used)
    return Outcome(None, False, used)


def _preferences(problem: Problem, attempt: int) -> Iterator[tuple[_Floats, bool]]:
    """Endless ways to rank buffers, the preferred ones highest, and whether fitting comes first."""
    count = len(problem.size)
    life, contention = problem.end - problem.start, problem.contention()
    orders = (
        np.lexsort((problem.size, contention)),
        np.lexsort((problem.size, life)),
    )
    ranks = [np.argsort(order, kind="stable").astype(np.float64) for order in orders]
    if not attempt:
        for fit in (True, False):
            yield ranks[0], fit
            yield ranks[1], fit
    seed = attempt + 1
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

    `sections` has the section of each row, `begin` its first entry and, at the end, the number of
    entries; of entries, `buffer` is the buffer, `size` its size and `row` the row. Buffers that are
    placed may still be listed.
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
        buffer = buffer[np.argsort(section, kind="stable")]
        count = np.bincount(section)
        sections = np.flatnonzero(count)
        count = count[sections]
        begin = np.concatenate(([0], np.cumsum(count)))
        row = np.repeat(np.arange(len(sections)), count)
        return cls(sections, begin, buffer, problem.size[buffer], row, len(buffers))

    def part(self, begin: int, end: int) -> _Table:
        """The rows of the sections from `begin` up to `end`."""
        low, high = np.searchsorted(self.sections, (begin, end))
        first, last = self.begin[low], self.begin[high]
        return _Table(
            self.sections[low:high],
            self.begin[low : high + 1] - first,
            self.buffer[first:last],
            self.size[first:last],
            self.row[first:last] - low,
            self.buffers,
        )


@dataclass(frozen=True, slots=True)
class _State:
    """A partial packing. Its arrays are never modified, so taking back is dropping it.

    `release` is the lowest offset of each buffer (FAR once placed), explained by what was decided
    in the sections from `low` up to `high`. Per section, `rest` is the bytes still to place,
    `ground` the height that was decided on, `floor` the least release, `options` the number of
    buffers that have it, and `touched` the level of the last decision in it, -1 for none.
    """

    table: _Table
    release: Ints
    low: Ints
    high: Ints
    rest: Ints
    ground: Ints
    floor: Ints
    options: Ints
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
        bytes_each = 8 * (3 * len(problem.size) + 5 * len(problem.load))
        self.depth = max(_DEPTH, _MEMORY // bytes_each)

    def run(self, tries: int, deadline: float) -> Outcome:
        nodes: dict[int, _Node] = {}
        level = used = 0
        conflict, state = self._start()
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
            if choice >= 0:
                conflict, state = self._placed(node, choice, level - 1)
            else:
                conflict, state = self._lifted(node, level - 1)

    def _start(self) -> tuple[_Conflict, _State]:
        problem = self.problem
        everyone, sections = np.arange(len(problem.size)), len(problem.load)
        state = _State(
            table=_Table.of(problem, everyone),
            release=np.zeros(len(everyone), np.int64),
            low=problem.start,
            high=problem.end,
            rest=problem.load,
            ground=np.zeros(sections, np.int64),
            floor=np.zeros(sections, np.int64),
            options=np.zeros(sections, np.int64),
            touched=np.full(sections, -1),
            left=len(everyone),
        )
        return self._bounded(state, 0, sections)

    def _placed(self, node: _Node, i: int, level: int) -> tuple[_Conflict, _State]:
        """With buffer i on the floor."""
        state, problem = node.state, self.problem
        start, end, size = problem.start[i], problem.end[i], problem.size[i]
        self.offsets[i] = node.floor
        release, rest = state.release.copy(), state.rest.copy()
        ground, floor, touched = state.ground.copy(), state.floor.copy(), state.touched.copy()
        meets = (problem.start < end) & (problem.end > start)
        np.maximum(release, node.floor + size, out=release, where=meets)
        release[i] = FAR
        rest[start:end] -= size
        ground[start:end] = node.floor + size
        floor[start:end][rest[start:end] == 0] = FAR
        touched[start:end] = level
        table, left = state.table, state.left - 1
        if left < _REFRESH * table.buffers:
            table = _Table.of(problem, np.flatnonzero(release < FAR))
        after = _State(
            table, release, state.low, state.high, rest, ground, floor, state.options, touched, left
        )
        return self._bounded(after, *self._reach(release != state.release))

    def _lifted(self, node: _Node, level: int) -> tuple[_Conflict, _State]:
        """With nothing on the floor."""
        state, problem = node.state, self.problem
        here = (problem.start <= node.section) & (problem.end > node.section)
        release = np.maximum(state.release, np.where(here, node.lifted, 0))
        ground, touched = state.ground.copy(), state.touched.copy()
        ground[node.section], touched[node.section] = node.lifted, level
        after = replace(
            state, release=release, ground=ground, floor=state.floor.copy(), touched=touched
        )
        return self._bounded(after, *self._reach(release != state.release))

    def _reach(self, buffers: npt.NDArray[np.bool_]) -> tuple[int, int]:
        """The sections that these buffers reach, at least from the first one up to the last."""
        return int(self.problem.start[buffers].min()), int(self.problem.end[buffers].max())

    def _bounded(self, state: _State, begin: int, end: int) -> tuple[_Conflict, _State]:
        """The state with releases as late as they must be, after a change between the sections; or
        a conflict if no packing within the capacity has it.

        The arrays of the state given may be filled in, those that explain it are copied.
        """
        if not state.left:
            return None, state
        release, low, high, full = state.release, state.low, state.high, state.table
        tight = np.zeros(len(state.floor), np.bool_)
        first, last = begin, end
        while True:
            table = full.part(begin, end)
            rows = table.begin[:-1]
            if not len(rows):
                break
            latest = self.capacity - state.rest[table.sections]
            released = release[table.buffer]
            floor = np.minimum.reduceat(released, rows)
            state.floor[table.sections] = floor
            over = (floor > latest) & (floor < FAR)
            if over.any():
                section = int(table.sections[over.argmax()])
                return self._conflict(state, section, int(state.floor[section])), state
            late = (released > latest[table.row]) & (released < FAR)
            if not late.any():
                break
            tight[table.sections] |= np.logical_or.reduceat(late, rows)
            first_top = self._tops(table, released, late)
            raised = np.flatnonzero(late & (first_top > released))
            if not len(raised):
                break
            if low is state.low:
                low, high = low.copy(), high.copy()
                state = replace(state, low=low, high=high)
            who, row = table.buffer[raised], table.row[raised]
            listed = released < FAR
            lows = np.minimum.reduceat(np.where(listed, low[table.buffer], FAR), rows)
            highs = np.maximum.reduceat(np.where(listed, high[table.buffer], 0), rows)
            np.minimum.at(low, who, lows[row])
            np.maximum.at(high, who, highs[row])
            np.maximum.at(release, who, first_top[raised])
            begin, end = int(self.problem.start[who].min()), int(self.problem.end[who].max())
            first, last = min(first, begin), max(last, end)
        overfull = self._overfull(state, np.flatnonzero(tight))
        if overfull is not None:
            return self._conflict(state, *overfull), state
        table = full.part(first, last)
        if len(table.sections):
            lowest = release[table.buffer] == state.floor[table.sections][table.row]
            options = state.options.copy()
            options[table.sections] = np.add.reduceat(lowest, table.begin[:-1], dtype=np.int64)
            state = replace(state, options=options)
        return None, state

    def _tops(self, table: _Table, released: Ints, late: npt.NDArray[np.bool_]) -> Ints:
        """Per entry, the least top that another buffer of the section can have: what can't come
        first comes after that."""
        rows = table.begin[:-1]
        top = released + table.size
        least = np.minimum.reduceat(top, rows)[table.row]
        own = top == least
        if (own & late).any():
            lone = np.add.reduceat(own, rows, dtype=np.int64) == 1
            second = np.minimum.reduceat(np.where(own, FAR - 1, top), rows)
            least = np.where(own & lone[table.row], second[table.row], least)
        return np.minimum(least, FAR - 1)

    def _overfull(self, state: _State, sections: Ints) -> tuple[int, int] | None:
        """One of the sections whose buffers end above the capacity, each as early as it can; and
        the offset from which on they leave no room."""
        problem = self.problem
        if not len(sections):
            return None
        near = (problem.start <= sections[-1]) & (problem.end > sections[0])
        order = np.flatnonzero(near & (state.release < FAR))
        order = order[np.argsort(state.release[order], kind="stable")[::-1]]
        within = sections[:, None]
        alive = (problem.start[order] <= within) & (problem.end[order] > within)
        ends = np.cumsum(alive * problem.size[order], axis=1)
        ends += state.release[order]
        ends *= alive
        row, column = divmod(int(ends.argmax()), len(order))
        if ends[row, column] <= self.capacity:
            return None
        return int(sections[row]), int(state.release[order[column]])

    def _conflict(self, state: _State, section: int, offset: int) -> tuple[int, int]:
        """The sections that explain that what this one has from an offset on is too much."""
        self.dead_ends[section] += 1
        problem = self.problem
        here = (problem.start <= section) & (problem.end > section) & (state.release < FAR)
        above = here & (state.release >= offset)
        return self._because(state, section, section + 1, above, offset)

    def _because(
        self, state: _State, begin: int, end: int, buffers: npt.NDArray[np.bool_], offset: int
    ) -> tuple[int, int]:
        """The sections that explain why buffers, alive in some from `begin` up to `end`, are
        released at the offset or later: these, and for buffers that meet none there that was
        decided to be that high, the nearest such one. The others owe their release to others."""
        start, stop = self.problem.start, self.problem.end
        decided = np.flatnonzero(state.ground >= offset)
        at, after = np.searchsorted(decided, (begin, end))
        met = np.searchsorted(decided, np.maximum(start, begin))
        buffers = buffers & (met == np.searchsorted(decided, np.minimum(stop, end)))
        left = int(decided[at - 1]) if at else -1
        right = int(decided[after]) if after < len(decided) else len(state.ground)
        by_left, by_right = buffers & (start <= left), buffers & (stop > right)
        if begin - left <= right - end:
            by_right &= ~by_left
        else:
            by_left &= ~by_right
        others = buffers & ~by_left & ~by_right
        low = min(left if by_left.any() else begin, int(state.low[others].min(initial=begin)))
        high = max(right + 1 if by_right.any() else end, int(state.high[others].max(initial=end)))
        return low, high

    def _branch(self, state: _State) -> _Node:
        """The decision with the fewest options, and these in order."""
        problem, release, floors = self.problem, state.release, state.floor
        steps = np.flatnonzero(floors[1:] != floors[:-1]) + 1
        begin = np.concatenate(([0], steps))
        end = np.concatenate((steps, [len(floors)]))
        walls = np.concatenate(([FAR], floors[begin], [FAR]))
        valley = (walls[1:-1] < walls[:-2]) & (walls[1:-1] < walls[2:])
        slack = self.capacity - state.rest - floors
        options = state.options + (slack > 0)
        value = options * (1 + _LOW_FIRST * floors / self.capacity)
        value = np.where(options > 1, value, -1) / (1 + self.dead_ends)
        section = int(np.argmin(np.where(np.repeat(valley, end - begin), value, np.inf)))
        floor, room = int(floors[section]), int(slack[section])

        here = (problem.start <= section) & (problem.end > section) & (release < FAR)
        lowest = np.flatnonzero(here & (release == floor))
        reach = int(problem.start[lowest].min()), int(problem.end[lowest].max())
        beside = (problem.start < reach[1]) & (problem.end > reach[0]) & (release < FAR)
        above, near = here & (release > floor), beside & ~here
        choices = self._ordered(lowest, floor, walls, begin, end)
        # Nothing can slip beneath the lowest.
        low, high = self._because(state, *reach, beside, floor)
        lifted = floor + 1
        if room > 0:
            # What does not rest on the floor rests on something that doesn't reach this section.
            lifted = int((release + problem.size)[near].min(initial=FAR))
            lifted = min(lifted, int(release[above].min(initial=FAR)), floor + room + 1)
            low = min(low, int(state.low[near].min(initial=low)))
            high = max(high, int(state.high[near].max(initial=high)))
        if lifted <= floor + room:
            choices.insert(0, -1)
        above_low, above_high = self._because(state, section, section + 1, above, lifted)
        low, high = min(low, above_low), max(high, above_high)
        return _Node(state, section, floor, lifted, choices, low, high)

    def _ordered(
        self, buffers: Ints, floor: int, walls: Ints, begins: Ints, ends: Ints
    ) -> list[int]:
        """Buffers to try on the floor of a valley, the preferred one last; of equals only one.

        Runs of sections with equal floors have `begins` and `ends`; `walls` are their floors, with
        one more on each side, where time ends.
        """
        run = int(np.searchsorted(ends, self.problem.start[buffers[0]], side="right"))
        begin, end, left, right = begins[run], ends[run], walls[run], walls[run + 2]
        problem = self.problem
        start, stop, size = problem.start[buffers], problem.end[buffers], problem.size[buffers]
        rank = self.rank[buffers]
        if self.fit:
            top, at_begin, at_end = floor + size, start == begin, stop == end
            level = 2 * (at_begin & (top == left)) + 2 * (at_end & (top == right))
            level += (level > 0) & at_begin & at_end
            rank = rank + 2 * len(self.rank) * level
        shapes = zip(start.tolist(), stop.tolist(), size.tolist(), strict=True)
        distinct = np.array(list({shape: k for k, shape in enumerate(shapes)}.values()))
        chosen: list[int] = buffers[distinct[np.argsort(rank[distinct], kind="stable")]].tolist()
        return chosen
