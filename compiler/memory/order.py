"""Another order of the same steps, for which less memory is enough.

The largest sum of bytes alive in one step bounds every packing from below, and it depends on the
order of the steps. Finding the best order is NP-hard; what networks need is mostly small:

* Where all that comes before a place must come before all that comes behind it, the steps fall into
  parts whose orders do not affect each other. Only a part that holds the peak is looked at, then
  the one with the next highest. One whose highest step needs what it needs in any order is done.
* A part is searched set by set: what is alive, and what a step costs, depends on which steps have
  run and not on their order. Sets of equal count form a level, and only the best way to each is
  kept. The first attempt keeps one set of a level, each further one four times as many, until none
  had to be left out: then the result is exact. Larger parts end as a beam search, within a budget.
* A run of steps that fits below a height which will be reached anyway, and that leaves no more
  alive than it found, may as well be done at once. This is the valley of Liu ("An application of
  generalized tree pebbling to sparse matrix factorization", 1987; for series-parallel graphs see
  Kayaaslan et al., "Scheduling series-parallel task graphs to minimize peak memory", 2018). It
  holds in any graph: if more has run before, such steps free as much or more, and take up no more.
* The given order is good for caches. So another one is taken only if it lowers the bound, and only
  in the parts where it does; there, neighbours are put back as far as the bound allows.

The budget counts steps tried, not seconds: the same steps get the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .buffers import BufferSpec, Step, resolve, round_up, shareable
from .dependencies import predecessors

_BUDGET = 20_000
"""Steps that one attempt on one part may try, if the last one foretells it: about 0.05 s."""

_WIDER = 4
"""How many times as many sets the next attempt keeps."""

_SMALL = 12
"""Steps of a part that is searched to the end in any case; no level has more than 924 sets."""


@dataclass(frozen=True, slots=True)
class Ordering:
    """The numbers of the given steps in their new order. `bound` is the largest sum of bytes alive
    in one step, `given` what it was before, `proved` whether no order has a lower one."""

    order: tuple[int, ...]
    bound: int
    given: int
    proved: bool


def reorder(
    steps: Sequence[Step],
    buffers: Iterable[BufferSpec],
    keep: Collection[str] = (),
    *,
    alignment: int = 1,
    inplace: bool = True,
) -> Ordering:
    """The given order, or one with a lower bound. Bytes are rounded up to `alignment`.

    The steps must be a description that `buffers.live_ranges` accepts. `inplace` tells whether
    results will share memory with operands as `buffers.choose_inplace` has it.
    """
    program = _Program.of(steps, tuple(buffers), keep, alignment, inplace)
    whole = program.part(0, len(steps))
    heights = whole.heights(range(len(steps)))
    order = list(range(len(steps)))
    reached = low = 0
    changed: list[tuple[int, _Part]] = []
    for first, end in sorted(program.parts(), key=lambda at: -max(heights[at[0] : at[1]])):
        height = max(heights[first:end])
        if height <= reached:
            break
        part = program.part(first, end)
        least = part.least()
        floor = max(least, reached)
        found, exact = part.best(floor, height) if floor < height else (None, True)
        if found is not None:
            order[first:end] = [first + t for t in found]
            changed.append((first, part))
            height = max(part.heights(found))
        low = max(low, height if exact and height > floor else least)
        reached = max(reached, height)
    for first, part in changed:
        end = first + len(part.before)
        low_enough = max(heights[first:end]) <= reached  # now that all parts are known
        near = [] if low_enough else part.nearer([t - first for t in order[first:end]], reached)
        order[first:end] = [first + t for t in near] or range(first, end)
    bound = max(whole.heights(order), default=0)
    return Ordering(tuple(order), bound, max(heights, default=0), low >= bound)


@dataclass(frozen=True, slots=True)
class _Program:
    """The steps by number and the buffers as roots by number; sets of steps are bit masks.

    Per step `before`, what must have run, its `scratch`, the roots that it `touches`, and the
    `pairs` (written root, read root) that may share memory. Per root its size, the steps that use
    it, and whether it is kept.
    """

    before: list[int]
    scratch: list[int]
    touches: list[list[int]]
    pairs: list[list[tuple[int, int]]]
    sizes: list[int]
    users: list[int]
    kept: list[bool]

    @classmethod
    def of(
        cls, steps: Sequence[Step], buffers: Sequence[BufferSpec], keep: Collection[str],
        alignment: int, inplace: bool,
    ) -> _Program:  # fmt: skip
        places = resolve(buffers)
        numbers: dict[str, int] = {}
        users: list[int] = []
        touches: list[list[int]] = []
        pairs: list[list[tuple[int, int]]] = []
        for t, step in enumerate(steps):
            names = dict.fromkeys((*step.reads, *step.writes))
            roots = dict.fromkeys(places[n].root for n in names if n in places)
            touches.append([numbers.setdefault(root, len(numbers)) for root in roots])
            users += [0] * (len(numbers) - len(users))
            for r in touches[-1]:
                users[r] |= 1 << t
            offered = shareable(step, t, places) if inplace else ()
            pairs.append([(numbers[places[w].root], numbers[places[r].root]) for w, r in offered])
        kept = {places[name].root for name in keep if name in places}
        return cls(
            predecessors(steps, buffers),
            [round_up(step.scratch, alignment) for step in steps],
            touches,
            pairs,
            [round_up(places[root].bytes, alignment) for root in numbers],
            users,
            [root in kept for root in numbers],
        )

    def parts(self) -> list[tuple[int, int]]:
        """The (first, end) of the parts that any order runs one after another."""
        ancestors = _closure(self.before)
        ends, everyone = [len(ancestors)], -1
        for t in reversed(range(1, len(ancestors))):
            everyone &= ancestors[t]
            if everyone & (1 << t) - 1 == (1 << t) - 1:
                ends.append(t)
        ends.reverse()
        return list(zip([0, *ends[:-1]], ends, strict=True)) if ancestors else []

    def part(self, first: int, end: int) -> _Part:
        """The steps from `first` to `end` (excluded) by themselves."""
        inner, earlier = (1 << (end - first)) - 1, (1 << first) - 1
        steps = range(first, end)
        uses = {
            r: _Use(
                r,
                self.sizes[r],
                self.users[r] >> first & inner,
                not self.users[r] & earlier,
                not self.users[r] >> end and not self.kept[r],
            )
            for t in steps
            for r in self.touches[t]
        }
        base = sum(
            size
            for size, users, kept in zip(self.sizes, self.users, self.kept, strict=True)
            if users & earlier and (users >> first or kept)
        )
        return _Part(
            base,
            [self.before[t] >> first for t in steps],
            [self.scratch[t] for t in steps],
            [[uses[r] for r in self.touches[t]] for t in steps],
            [[(uses[w], uses[r]) for w, r in self.pairs[t]] for t in steps],
        )


class _Use(NamedTuple):
    """A root as one part of the program sees it: its users there, and whether the first of them
    brings it into being and the last one ends it."""

    root: int
    size: int
    users: int
    begins: bool
    ends: bool


class _State(NamedTuple):
    """A set of steps that have run, and the best known way to it: `moves` after the state `back`.

    `height` is the most that was alive, or the floor of the search; `alive` what is alive now.
    """

    done: int
    ready: int
    alive: int
    height: int
    inversions: int
    back: _State | None = None
    moves: tuple[int, ...] = ()

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.height, self.alive, self.inversions

    def order(self) -> list[int]:
        found: list[int] = []
        state: _State | None = self
        while state is not None:
            found[:0] = state.moves
            state = state.back
        return found


@dataclass(frozen=True)
class _Part:
    """Steps that run together, numbered from 0; `base` bytes are alive when they begin."""

    base: int
    before: list[int]
    scratch: list[int]
    uses: list[list[_Use]]
    pairs: list[list[tuple[_Use, _Use]]]

    @cached_property
    def after(self) -> list[list[int]]:
        """The steps that wait for each step."""
        found: list[list[int]] = [[] for _ in self.before]
        for t, mask in enumerate(self.before):
            for u in _members(mask):
                found[u].append(t)
        return found

    # ---------------------------------------------------------------- what a step costs

    def run(self, done: int, alive: int, t: int) -> tuple[int, int]:
        """Bytes alive during step t, after the steps `done` which left `alive`; and behind it."""
        during = alive + self.scratch[t]
        behind = alive
        left = ~done & ~(1 << t)
        for _, size, users, begins, ends in self.uses[t]:
            if begins and not users & done:
                during += size
                behind += size
            if ends and not users & left:
                behind -= size
        if self.pairs[t]:
            taken: set[int] = set()
            for new, old in self.pairs[t]:
                born = new.begins and not new.users & done
                dies = old.ends and not old.users & left
                if born and dies and not {new.root, old.root} & taken:
                    taken |= {new.root, old.root}
                    during -= new.size
        return during, behind

    def heights(self, order: Sequence[int]) -> list[int]:
        """Bytes alive during each step of an order."""
        found = []
        done, alive = 0, self.base
        for t in order:
            during, alive = self.run(done, alive, t)
            done |= 1 << t
            found.append(during)
        return found

    def least(self) -> int:
        """A bound for any order: the most that must be alive during one step.

        That is all that it, or a step before it, has to touch, and it, or a step behind it, too.
        """
        ancestors = _closure(self.before)
        descendants = [0] * len(ancestors)
        for t, mask in enumerate(ancestors):
            for u in _members(mask):
                descendants[u] |= 1 << t
        everyone = (1 << len(ancestors)) - 1
        needs = [self.base + scratch for scratch in self.scratch]
        for use in {use for uses in self.uses for use in uses}:
            since = until = use.users
            for t in _members(use.users):
                since |= descendants[t]
                until |= ancestors[t]
            alive = (since if use.begins else everyone) & (until if use.ends else everyone)
            for t in _members(alive if use.begins else everyone & ~alive):
                needs[t] += use.size if use.begins else -use.size
        for t, pairs in enumerate(self.pairs):
            needs[t] -= sum(
                new.size
                for new in {new for new, old in pairs if new.begins and old.ends
                            and not new.users & ancestors[t] and not old.users & descendants[t]}
            )  # fmt: skip
        return max(needs)

    # ---------------------------------------------------------------- search

    def best(self, floor: int, ceiling: int) -> tuple[list[int] | None, bool]:
        """The lowest order found below `ceiling`, where `floor` is low enough; None if there is
        none. And whether that is proved: nothing lower, or nothing but what the floor hides."""
        best: _State | None = None
        width = 1
        while True:
            found, tried, complete = self.search(floor, best.height if best else ceiling, width)
            best = found or best
            if complete or (best is not None and best.height <= floor):
                return best and best.order(), True
            if _WIDER * tried > _BUDGET and len(self.before) > _SMALL:
                return best and best.order(), False
            width *= _WIDER

    def search(self, floor: int, ceiling: int, width: int) -> tuple[_State | None, int, bool]:
        """The lowest way through all steps below `ceiling` that keeps `width` sets of a level.

        Also the number of steps tried, and whether no set was left out.
        """
        levels: list[dict[int, _State]] = [{} for _ in range(len(self.before) + 1)]
        ready = sum(1 << t for t, mask in enumerate(self.before) if not mask)
        levels[0][0] = _State(0, ready, self.base, floor, 0)
        tried, complete = 0, True
        for level in levels[:-1]:
            states = list(level.values())
            level.clear()
            if len(states) > width:
                states, complete = sorted(states, key=lambda state: state.rank)[:width], False
            for state in states:
                tried += state.ready.bit_count()
                for new in self.moves(state):
                    known = levels[new.done.bit_count()]
                    if new.height < ceiling and (
                        new.done not in known or new.rank < known[new.done].rank
                    ):
                        known[new.done] = new
            if tried > _WIDER * _BUDGET:
                return None, tried, False
        return next(iter(levels[-1].values()), None), tried, complete

    def moves(self, state: _State) -> list[_State]:
        """What can follow a state; one run of steps alone if that is free."""
        found = []
        for t in _members(state.ready):
            during, behind = self.run(state.done, state.alive, t)
            new = self.moved(state, t, during, behind)
            found.append(new)
            if new.height == state.height:
                end = self.valley(state, new)
                if end is not None:
                    return [end]
        return found

    def valley(self, start: _State, state: _State) -> _State | None:
        """Where a run that began with one step leaves no more alive than it found, if its steps
        open one another and stay within the height."""
        moves = state.moves
        while state.alive > start.alive:
            opened = [t for t in self.after[moves[-1]] if not self.before[t] & ~state.done]
            if len(opened) != 1:
                return None
            during, behind = self.run(state.done, state.alive, opened[0])
            if during > start.height:
                return None
            state = self.moved(state, opened[0], during, behind)
            moves += state.moves
        return state._replace(back=start, moves=moves)

    def moved(self, state: _State, t: int, during: int, behind: int) -> _State:
        done = state.done | 1 << t
        ready = state.ready & ~(1 << t)
        for u in self.after[t]:
            if not self.before[u] & ~done:
                ready |= 1 << u
        skipped = (((1 << t) - 1) & ~state.done).bit_count()
        return _State(
            done, ready, behind, max(state.height, during), state.inversions + skipped, state, (t,)
        )

    # ---------------------------------------------------------------- back to the given order

    def nearer(self, order: Sequence[int], height: int) -> list[int]:
        """Neighbours change places as long as that takes away an inversion and stays within the
        height. What was given in front does not wait for what was given behind it."""
        order, budget = list(order), _BUDGET
        done, alive = [0], [self.base]
        for t in order:
            alive.append(self.run(done[-1], alive[-1], t)[1])
            done.append(done[-1] | 1 << t)
        changed = True
        while changed and budget > 0:
            changed = False
            for end in range(1, len(order)):
                for k in range(end, 0, -1):
                    late, early = order[k - 1 : k + 1]
                    if late < early or budget <= 0:
                        break
                    first, between = self.run(done[k - 1], alive[k - 1], early)
                    second, _ = self.run(done[k - 1] | 1 << early, between, late)
                    if max(first, second) > height:
                        break
                    budget -= 1
                    order[k - 1 : k + 1] = early, late
                    done[k], alive[k] = done[k - 1] | 1 << early, between
                    changed = True
        return order


def _closure(before: Sequence[int]) -> list[int]:
    """All that must have run before each step, from some of it; what waits is behind it."""
    found: list[int] = []
    for mask in before:
        everyone = mask
        for t in _members(mask):
            everyone |= found[t]
        found.append(everyone)
    return found


def _members(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
