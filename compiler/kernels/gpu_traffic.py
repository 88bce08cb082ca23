"""What a kernel of the general template should take on a GPU, in the model of `gpu_model`.

Such kernels move bytes, so it counts accesses: how many of them a thread makes one after the other,
how many bytes each of them brings, and how many sectors of 32 bytes the threads of a warp ask for
together. From that follow the bytes through the second cache and the time that threads wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Final

from ...ops.expr import Expr, linear
from ...ops.traverse import walk
from ...ops.types import f64
from .gpu_model import LATENCY, LAUNCH, WARP, WAVE, Chip, occupancy
from .gpu_sharing import item_loops, run_of
from .gpu_squares import transposed
from .pieces import Piece, buffer_loads, operations, stride, trip_count
from .reductions import reduces

SECTOR: Final = 32  # bytes that memory gives at least
AHEAD: Final = 4  # accesses of a loop that are on their way at once
FREE_THREADS: Final = 128  # of a block whose threads have nothing to do with each other
REGISTERS: Final = 32
PER_ACCESS: Final = 6.0  # instructions, for its place among others
PER_OPERATION: Final = 2.0
JOINING: Final = 2.0  # accesses that are as long as threads wait for each other in a reduction
EFFICIENCY: Final = 0.5  # of the multipliers' rate


@dataclass(frozen=True, slots=True)
class _Crew:
    """blocks of threads; sharing: threads of an item; neighbour: the loop along which threads side
    by side are apart, by `apart` rounds; wide: elements that an access may take along it."""

    blocks: int
    threads: int
    sharing: int
    neighbour: Expr | None
    apart: int
    wide: int

    @property
    def all(self) -> int:
        return self.blocks * self.threads


def nest_seconds(chip: Chip, pieces: Sequence[Piece], config: Mapping[str, Any]) -> float:
    """About how long the kernels of all pieces take."""
    return sum(_seconds(chip, p, config) for p in pieces)


def _seconds(chip: Chip, piece: Piece, config: Mapping[str, Any]) -> float:
    values = [a.value for a in piece.assignments]
    outer = [r for r in reduces(values) if r.free <= set(piece.loops)]
    crew = _crew(piece, config, bool(outer))
    fit = occupancy(chip, crew.threads, REGISTERS + 2 * config.get("each", 1), 0)
    if fit.blocks == 0:
        return float("inf")
    waves = ceil(crew.blocks / (chip.multiprocessors * fit.blocks))
    busiest = ceil(crew.blocks / chip.multiprocessors)
    accesses = through = moved = 0.0
    found = transposed(piece) if config["per"] == "square" else None
    turned = found[1] if found else ()
    asked: dict[tuple[Expr, ...], float] = {}  # of what is asked for together, the most accesses
    for n, around, inside in _loads(piece):
        count, size = prod(map(trip_count, around)), n.dtype.bytes
        step, wide, rounds = _along(n.args[0], crew, inside)
        step = 1 if n in turned else step
        made = count / rounds
        accesses += made
        asked[inside] = max(asked.get(inside, 0), made)
        through += made / WARP * SECTOR * _sectors(step, crew.apart, wide, size)
        moved += min(count, n.payload.elements) * size
    stored = prod(map(trip_count, piece.loops))
    for a in piece.assignments:
        accesses += stored / crew.wide
        moved += stored * a.buffer.dtype.bytes
    rounds = sum(asked.values()) / crew.all + (JOINING * len(outer) if crew.sharing > 1 else 0)
    waited = waves * LATENCY * max(rounds / AHEAD, 1)
    kind = "f64" if any(n.dtype is f64 for n in walk(*values)) else "f32"
    work = (PER_OPERATION * operations(piece) + PER_ACCESS * accesses) / crew.blocks
    arithmetic = busiest * work / (chip.rates[kind] * chip.clock * EFFICIENCY)
    cache = busiest * (through + moved) / crew.blocks * chip.multiprocessors / chip.cache
    return LAUNCH + WAVE + max(arithmetic, cache, moved / chip.memory, waited)


def _crew(piece: Piece, config: Mapping[str, Any], shares: bool) -> _Crew:
    rows = item_loops(piece)
    count = prod(map(trip_count, rows))
    each, per = int(config["each"]), config["per"] if shares else "thread"
    last = rows[-1] if rows else None
    if per == "block":
        return _Crew(max(count, 1), config["threads"], config["threads"], None, config["wide"],
                     config["wide"])  # fmt: skip
    each = each if count % each == 0 else 1
    if per == "columns":
        blocks = ceil(count / each / config["across"])
        return _Crew(blocks, config["across"] * config["down"], config["down"], last, each, each)
    blocks = max(1, ceil(count / each / FREE_THREADS))
    return _Crew(blocks, FREE_THREADS, 1, last, each, each)


def _along(
    at: Expr, crew: _Crew, inside: tuple[Expr, ...]
) -> tuple[int | None, int, float]:  # fmt: skip
    """How a load inside of some loops goes along what threads side by side count: (elements from
    one round to the next, neighbours that threads take at once, rounds of one of its accesses)."""
    loops = inside if crew.neighbour is None else (crew.neighbour,)
    if not loops:
        return 0, 1, 1
    step, wide = stride(at, loops[-1]), crew.wide
    if step == 0:
        return 0, 1, wide  # read once for all of them
    if step != 1:
        return step, 1, 1
    run = run_of(at, loops)
    terms, first = linear(at)
    apart = (first, prod(map(trip_count, run)), *(c for v, c in terms.items() if v not in run))
    if all(c % wide == 0 for c in apart):
        return 1, wide, wide
    if crew.sharing == 1 and wide > 1 and inside:  # a window that slides along them
        taps = trip_count(inside[-1])
        return 1, wide, wide * taps / (wide - 1 + taps)
    return 1, 1, 1


def _loads(piece: Piece) -> list[tuple[Expr, set[Expr], tuple[Expr, ...]]]:
    """Every load with all the loops that repeat it, and those that a block's threads share."""
    values = [a.value for a in piece.assignments]
    rows = item_loops(piece)
    columns = tuple(v for v in piece.loops if v not in rows)
    found: dict[Expr, tuple[set[Expr], tuple[Expr, ...]]] = {}
    for r in reduces(values):
        for n in buffer_loads(r.args[0]):
            found.setdefault(n, ({*r.free, *r.payload[1]}, r.payload[1]))
    for n in (n for value in values for n in buffer_loads(value)):
        found.setdefault(n, (set(piece.loops), columns))
    return [(n, *where) for n, where in found.items()]


def _sectors(step: int | None, apart: int, wide: int, size: int) -> int:
    """That the threads of a warp ask for: `wide` elements of so many bytes each, `apart` rounds of
    a loop from one thread to the next, whose rounds are `step` elements apart."""
    most = WARP * ceil(wide * size / SECTOR)
    if step is None:
        return most
    return min(most, ceil(((WARP - 1) * abs(step) * apart + wide) * size / SECTOR))
