"""What Hopper GPUs do beside their threads: boxes copied by a unit of its own, barriers in shared
memory that count arrivals and bytes, products of matrices in shared memory, and clusters of blocks.

Copies land late and in random order, and products read their factors when they are waited for, as
late as they may. Who touches memory that is on its way, or being read, is told so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cuda.entry import DescribedTensor

from .hopper_model import (
    ATOM,
    ROW,
    accumulator_places,
    box_places,
    matrix_places,
    nearest_tf32,
    operand_places,
    swizzled,
)
from .simulated_arithmetic import SimError
from .simulated_memory import NOBODY, Block, Dynamic, Global, LocalArray, Piece, check_index
from .simulated_warps import Collective

GROUP = 128
TERMS = {"f16": 64, "bf16": 64, "tf32": 32, "s8": 128, "u8": 128}
WAITS = ("mbarrier_wait", "barrier_of", "cluster_barrier")
"""Functions that return what a thread waits for."""
Test = Callable[[], bool]


@dataclass
class Tensor:
    """A kernel's descriptor of a buffer."""

    map: DescribedTensor
    buffer: Global

    def elements(self, at: Sequence[int]) -> tuple[Any, Any]:
        """(positions in the buffer, whether inside) of a box."""
        where, inside = box_places(self.map, self.buffer.dtype.itemsize, at)
        where //= self.buffer.dtype.itemsize
        if inside.any() and where[inside].max() >= len(self.buffer.array):
            raise SimError(f"the tensor {self.map.name} goes beyond {self.buffer.name}")
        return where, inside


@dataclass
class Mbarrier:
    """arrivals: that a phase takes; pending, bytes: that this one still waits for."""

    arrivals: int
    pending: int
    bytes: int = 0
    phase: int = 0

    def arrive(self, more: int = 0) -> None:
        if self.pending == 0:
            raise SimError(f"a barrier of {self.arrivals} arrivals gets one more")
        self.pending -= 1
        self.bytes += more
        self._end()

    def complete(self, count: int) -> None:
        self.bytes -= count
        self._end()

    def _end(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.arrivals


@dataclass
class _Load:
    to: Piece
    rank: int
    where: Any
    values: Any
    barrier: Mbarrier


@dataclass
class _Store:
    tensor: Tensor
    source: Piece
    where: Any
    at: tuple[int, ...]
    block: int


@dataclass
class _Product:
    """left, right: [rows or columns, terms], read when they are asked for; places: of shared
    memory, that are read until then; held: what threads hold of the left factor, if they do."""

    left: Callable[[], Any]
    right: Callable[[], Any]
    places: list[Any]
    sums: list[LocalArray]
    add: bool
    columns: int
    held: list[LocalArray] = field(default_factory=list)


@dataclass
class _Gathering:
    """Threads at a barrier that is not for the whole block."""

    threads: set[int] = field(default_factory=set)
    round: int = 0


class Units:
    """All of them, for the blocks that run side by side."""

    def __init__(self, block: Block, rng: Any) -> None:
        self.block, self.rng = block, rng
        block.ended.append(self._ended)
        self.begin()

    def begin(self) -> None:
        """Other blocks run, beside units that are fast or slow."""
        self.pace = self.rng.choice((0.3, 0.01))
        self.barriers: dict[tuple[int, int], Mbarrier] = {}
        self.fenced = False
        self.loads: list[_Load] = []
        self.stores: dict[tuple[int, int], list[list[_Store]]] = {}
        self.products: dict[tuple[int, int], list[_Product]] = {}
        self.gatherings: dict[tuple[int, int], _Gathering] = {}
        self.gone: dict[int, int] = {}

    def step(self, hurry: bool) -> bool:
        """Some copies land; one at least, if any is there and nothing else goes on."""
        landed = False
        while self.loads and (self.rng.random() < self.pace or (hurry and not landed)):
            self._land(self.loads.pop(int(self.rng.integers(len(self.loads)))))
            landed = True
        return landed

    def finish(self) -> None:
        """All threads have ended."""
        if self.loads:
            raise SimError("blocks end with a copy to their shared memory on its way")

    def _ended(self, thread: int) -> None:
        rank = self.block.rank
        self.gone[rank] = self.gone.get(rank, 0) + 1
        if any(self.stores.get((rank, thread), [])):
            raise SimError("a thread ends while its copies still read shared memory")
        if self.products.get((rank, thread // GROUP)):
            raise SimError("a thread ends with products on their way")

    def names(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "mbarrier_init": self.init, "mbarrier_init_fence": self.init_fence,
            "mbarrier_expect": lambda bars, i, n: self.barrier(bars, i).arrive(n),
            "mbarrier_arrive": lambda bars, i: self.barrier(bars, i).arrive(),
            "mbarrier_arrive_at": lambda bars, i, r: self.barrier(bars, i, r).arrive(),
            "mbarrier_wait": self.wait, "barrier_of": self.gather,
            "cluster_barrier": self.gather_cluster, "proxy_fence": self.proxy_fence,
            "tma_prefetch": lambda tensor: None, "tma_commit": self.commit,
            "tma_wait": self.wait_read, "more_registers": _registers,
            "fewer_registers": _registers,
        }  # fmt: skip
        for rank in range(2, 6):
            made[f"tma_load_{rank}d"] = self.load
            made[f"tma_cast_{rank}d"] = self.cast
            made[f"tma_store_{rank}d"] = self.store
        return made

    def collectives(self) -> dict[str, Collective]:
        products = {f"wgmma_{kind}": Collective(self._product(kind), GROUP) for kind in TERMS}
        for kind in ("f16", "bf16"):
            products[f"wgmma_rows_{kind}"] = Collective(self._of_rows(kind), GROUP)
            products[f"wgmma_held_{kind}"] = Collective(self._of_registers(kind), GROUP)
        return {**products, "wgmma_wait": Collective(self._wait, GROUP),
                "wgmma_wait_held": Collective(self._wait_held, GROUP),
                "stmatrix": Collective(_stmatrix)}  # fmt: skip

    # ---------------------------------------------------------------- barriers

    def init(self, bars: Piece, i: int, count: int) -> None:
        bars.write(i, np.zeros(1, bars.dtype))
        self.barriers[self.block.rank, bars.place(i)] = Mbarrier(count, count)
        self.fenced = False

    def init_fence(self) -> None:
        self.fenced = True

    def barrier(self, bars: Piece, i: int, rank: int | None = None) -> Mbarrier:
        rank = self.block.rank if rank is None else rank
        if not 0 <= rank < self.block.cluster:
            raise SimError(f"block {rank} of a cluster of {self.block.cluster}")
        if self.gone.get(rank) == self.block.count:
            raise SimError(f"block {rank} of the cluster has ended")
        check_index(i, bars.count, "an array of barriers")
        found = self.barriers.get((rank, bars.place(i)))
        if found is None or not self.fenced:
            raise SimError(f"barrier {i} is used before it is there for all")
        return found

    def wait(self, bars: Piece, i: int, parity: int) -> Test:
        found = self.barrier(bars, i)
        if parity not in (0, 1):
            raise SimError(f"a barrier is asked for parity {parity}")
        return lambda: found.phase != parity

    def gather(self, number: int, threads: int) -> Test:
        if not 1 <= number <= 15 or threads % 32:
            raise SimError(f"{threads} threads at barrier {number}")
        dynamic, rank = self.block.dynamic, self.block.rank

        def met(there: set[int]) -> None:
            mine = np.isin(dynamic.writer, list(there))
            dynamic.released |= mine & ~dynamic.unfenced

        return self._gather((rank, number), self.block.thread, threads, met)

    def gather_cluster(self) -> Test:
        me = self.block.rank * self.block.count + self.block.thread
        return self._gather((-1, 0), me, self.block.cluster * self.block.count, lambda there: None)

    def _gather(
        self, key: tuple[int, int], me: int, threads: int, met: Callable[[set[int]], None]
    ) -> Test:  # fmt: skip
        found = self.gatherings.setdefault(key, _Gathering())
        if me in found.threads:
            raise SimError(f"a thread comes to barrier {key[1]} twice")
        found.threads.add(me)
        now = found.round
        if len(found.threads) == threads:
            met(found.threads)
            found.threads = set()
            found.round += 1
        return lambda: found.round != now

    def proxy_fence(self) -> None:
        d = self.block.dynamic
        d.unfenced[d.writer == self.block.thread] = False

    # ---------------------------------------------------------------- boxes

    def load(self, a: Piece, i: int, tensor: Tensor, bars: Piece, s: int, *at: int) -> None:
        self._load(a, i, tensor, bars, s, at, (self.block.rank,))

    def cast(self, a: Piece, i: int, tensor: Tensor, bars: Piece, s: int, *rest: int) -> None:
        *at, ranks = rest
        where = [k for k in range(ranks.bit_length()) if ranks >> k & 1]
        self._load(a, i, tensor, bars, s, at, where)

    def _load(
        self, a: Piece, i: int, tensor: Tensor, bars: Piece, s: int, at: Sequence[int],
        ranks: Sequence[int],
    ) -> None:  # fmt: skip
        where = self._box(a, i, tensor, at)
        elements, inside = tensor.elements(at)
        values = np.zeros(len(inside), tensor.buffer.dtype)
        values[inside] = tensor.buffer.array[elements[inside]]
        if tensor.map.tf32:
            values = nearest_tf32(values)
        for rank in ranks:
            d = self.block.dynamic_of(rank)
            if d.flying[where].any() or d.busy[where].any():
                raise SimError("a copy is asked for to where one is on its way, or something reads")
            d.flying[where] = True
            barrier = self.barrier(bars, s, rank)
            self.loads.append(_Load(a, rank, where, values, barrier))

    def _box(self, a: Piece, i: int, tensor: Tensor, at: Sequence[int]) -> Any:
        """The places in shared memory of the bytes of a box, as they lie in it."""
        if len(at) != len(tensor.map.dims) or not all(type(x) is int for x in at):
            raise SimError(f"coordinates {at} in a tensor of {len(tensor.map.dims)} axes")
        if a.dtype != tensor.buffer.dtype:
            raise SimError(f"{a.dtype} in shared memory, {tensor.buffer.dtype} in the tensor")
        count = int(np.prod(tensor.map.box))
        first = a.reach(i, count)
        if first % (ATOM if tensor.map.swizzle else 128):
            raise SimError(f"shared[{i}] is no place for a box: byte {first}")
        return swizzled(first + np.arange(count * a.dtype.itemsize), tensor.map.swizzle)

    def _land(self, x: _Load) -> None:
        d = self.block.dynamic_of(x.rank)
        if d.busy[x.where].any():
            raise SimError("a copy lands where something is being read")
        if self.gone.get(x.rank) == self.block.count:
            raise SimError(f"a copy comes to block {x.rank} of the cluster, which has ended")
        raw = x.values.view(np.uint8)
        d.bytes[x.where] = raw
        d.flying[x.where], d.known[x.where], d.unfenced[x.where] = False, True, False
        d.writer[x.where] = d.reader[x.where] = NOBODY
        x.barrier.complete(len(raw))

    def store(self, tensor: Tensor, a: Piece, i: int, *at: int) -> None:
        where = self._box(a, i, tensor, at)
        d, me = self.block.dynamic, self.block.thread
        _readable(d, where)
        seen = d.released[where] | np.isin(d.writer[where], (me, NOBODY))
        if not (seen & ~d.unfenced[where]).all():
            raise SimError("a copy reads what threads wrote, without a fence or barrier behind it")
        d.busy[where] += 1
        self._groups()[-1].append(_Store(tensor, a, where, at, self.block.number))

    def _groups(self) -> list[list[_Store]]:
        return self.stores.setdefault((self.block.rank, self.block.thread), [[]])

    def commit(self) -> None:
        self._groups().append([])

    def wait_read(self, n: int) -> None:
        groups = self._groups()
        while len(groups) - 1 > n:
            for x in groups.pop(0):
                self._store(x)

    def _store(self, x: _Store) -> None:
        d = self.block.dynamic
        d.busy[x.where] -= 1
        elements, inside = x.tensor.elements(x.at)
        values = d.bytes[x.where].view(x.tensor.buffer.dtype)
        for at, value in zip(elements[inside], values[inside], strict=True):
            x.tensor.buffer[int(at)] = value

    # ---------------------------------------------------------------- products

    def _product(self, kind: str) -> Callable[..., Sequence[None]]:
        def together(
            block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
        ) -> Sequence[None]:
            first, sums = args[0], [x[0] for x in args]
            _alike([(*x[2:3], *x[4:]) for x in args])
            a, i, b, j, add, tiles, columns, a_across, b_across = first[1:]
            left = _factor(block, a, i, kind, tiles * 64, bool(a_across))
            right = _factor(block, b, j, kind, columns, bool(b_across))
            queue = self._begin(block, numbers, kind, _Product(
                lambda: _numbers(block.dynamic, a, left, kind),
                lambda: _numbers(block.dynamic, b, right, kind),
                [left, right], sums, bool(add), columns,
            ))  # fmt: skip
            self._retire(block, queue, 1)
            return [None] * len(args)

        return together

    def _of_rows(self, kind: str) -> Callable[..., Sequence[None]]:
        def together(
            block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
        ) -> Sequence[None]:
            _alike([(*x[2:3], *x[4:]) for x in args])
            a, i, b, j, terms, columns, a_apart, b_apart = args[0][1:]
            left = _panels(block, a, i, kind, 64, terms, a_apart)
            right = _panels(block, b, j, kind, columns, terms, b_apart)
            self._begin(block, numbers, kind, _Product(
                lambda: _numbers(block.dynamic, a, left, kind),
                lambda: _numbers(block.dynamic, b, right, kind),
                [left, right], [x[0] for x in args], False, columns,
            ))  # fmt: skip
            return [None] * len(args)

        return together

    def _of_registers(self, kind: str) -> Callable[..., Sequence[None]]:
        def together(
            block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
        ) -> Sequence[None]:
            _alike([x[3:] for x in args])
            b, j, terms, columns = args[0][2:]
            held = [x[1] for x in args]
            if any(h.array.size != terms // 4 or h.dtype != np.uint32 for h in held):
                raise SimError(f"{held[0].array.size} registers of a factor of {terms} terms")
            if not all(h.known.all() for h in held):
                raise SimError("a factor is not in its registers")
            right = _factor(block, b, j, kind, columns, True, terms)
            self._begin(block, numbers, kind, _Product(
                lambda: _of_threads(held, terms, kind),
                lambda: _numbers(block.dynamic, b, right, kind),
                [right], [x[0] for x in args], True, columns, held,
            ))  # fmt: skip
            return [None] * len(args)

        return together

    def _begin(
        self, block: Block, numbers: Sequence[int], kind: str, p: _Product
    ) -> list[_Product]:  # fmt: skip
        queue = self.products.setdefault((block.rank, numbers[0] // GROUP), [])
        _check_sums(p.sums, len(p.left()) // 64 * p.columns // 2, kind)
        before = any(q.sums[0] is p.sums[0] for q in queue)
        if p.add and not (before or all(s.known.all() for s in p.sums)):
            raise SimError("sums are added to before they are set")
        for where in p.places:
            block.dynamic.busy[where.reshape(-1)] += 1
        for x in (*p.sums, *p.held):
            x.known[:] = False
        queue.append(p)
        return queue

    def _wait(
        self, block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
    ) -> Sequence[None]:
        sums, held, n = args[0]
        if held != sums.array.size:
            raise SimError(f"{held} sums are waited for, of {sums.array.size}")
        self._retire(block, self.products.get((block.rank, numbers[0] // GROUP), []), n)
        return [None] * len(args)

    def _wait_held(
        self, block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
    ) -> Sequence[None]:
        a, count = args[0][2:4]
        if count != a.array.size:
            raise SimError(f"{count} registers of a factor are waited for, of {a.array.size}")
        return self._wait(block, numbers, [(x[0], x[1], x[4]) for x in args])

    def _retire(self, block: Block, queue: list[_Product], most: int) -> None:
        """The oldest products are done; whose registers changed meanwhile is told so."""
        while len(queue) > most:
            p = queue.pop(0)
            if any(x.known.any() for x in (*p.sums, *p.held)):
                raise SimError("registers change while a product uses them")
            _multiply(block.dynamic, p)
            others = {id(x) for q in queue for x in (*q.sums, *q.held)}
            for x in (*p.sums, *p.held):
                x.known[:] = id(x) not in others


def _registers(count: int) -> None:
    if count % 8 or not 24 <= count <= 256:
        raise SimError(f"a thread cannot have {count} registers")


def _readable(d: Dynamic, where: Any) -> None:
    if d.flying[where].any():
        raise SimError("shared memory is read while a copy to it is on its way")
    if not d.known[where].all():
        raise SimError("shared memory is read before anything was written to it")


def _check_sums(sums: Sequence[LocalArray], held: int, kind: str) -> None:
    wanted = np.dtype(np.int32 if kind in ("s8", "u8") else np.float32)
    if any(s.array.size != held or s.dtype != wanted for s in sums):
        raise SimError(f"{sums[0].array.size} sums of {sums[0].dtype}; it takes {held} {wanted}")


def _alike(args: Sequence[tuple[Any, ...]]) -> None:
    if any(x != args[0] for x in args):
        raise SimError("threads of a group multiply different matrices")


def _panels(
    block: Block, a: Piece, i: int, kind: str, rows: int, terms: int, apart: int
) -> Any:  # fmt: skip
    """The same of a factor whose terms lie in stretches of 128 bytes, `apart` rows behind."""
    each = TERMS[kind]
    parts = [_factor(block, a, i + k * apart, kind, rows, False, min(terms - k, each))
             for k in range(0, terms, each)]  # fmt: skip
    return np.concatenate(parts, axis=1)


def _factor(
    block: Block, a: Piece, i: int, kind: str, rows: int, across: bool, terms: int = 0
) -> Any:  # fmt: skip
    """Places in shared memory [rows, terms, bytes] of a factor, which are there to be read; as many
    terms as have 128 bytes, or as many as are said."""
    size, terms = a.dtype.itemsize, terms or TERMS[kind]
    if size * TERMS[kind] != ROW or (across and size != 2):
        raise SimError(f"a factor of {a.dtype} for {kind}")
    at = matrix_places(rows, terms, size, across, terms * ROW, ATOM)
    first = a.reach(i, int(at.max()) // size + 1)
    if first % ATOM:
        raise SimError(f"shared[{i}] is no place for a factor: byte {first}")
    at = first + at
    where = swizzled(at, ROW)[..., None] + np.arange(size)
    _readable(block.dynamic, where.reshape(-1))
    if block.dynamic.unfenced[where].any():
        raise SimError("a product reads what threads wrote, without a fence behind it")
    return where


def _numbers(d: Dynamic, piece: Piece, where: Any, kind: str) -> Any:
    raw = d.bytes[where].reshape(where.shape[0], -1)
    x = np.ascontiguousarray(raw).view(piece.dtype)
    if kind == "f16":
        return x.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "tf32":
        return (x.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def _of_threads(held: Sequence[LocalArray], terms: int, kind: str) -> Any:
    """A left factor [64, terms] that a group's threads hold."""
    words = np.stack([h.array for h in held])
    row, term = operand_places(terms)
    x = np.zeros((64, terms))
    for k in range(2):
        bits = (words >> 16 * k & 0xFFFF).astype(np.uint32)
        x[row, term + k] = (bits.astype(np.uint16).view(np.float16) if kind == "f16"
                            else (bits << 16).view(np.float32))  # fmt: skip
    return x


def _multiply(d: Dynamic, p: _Product) -> None:
    for where in p.places:
        d.busy[where.reshape(-1)] -= 1
    made = p.left() @ p.right().T
    row, column = accumulator_places(p.columns)
    held = p.columns // 2
    for tile in range(len(made) // 64):
        part = made[tile * 64 + row, column]
        for t, s in enumerate(p.sums):
            mine = s.array[tile * held : (tile + 1) * held]
            mine[:] = part[t] + (mine if p.add else 0)


def _stmatrix(
    block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
) -> Sequence[None]:
    """Each lane writes a row of one of four matrices, of which it holds pairs of others."""
    a, i, _, columns = args[0]
    if any(x[1] != i or x[3] != columns for x in args):
        raise SimError("threads of a warp store matrices to different places")
    if a.reach(i, 16 * ROW // a.dtype.itemsize) % ATOM:
        raise SimError(f"shared[{i}] is no place for rows of matrices")
    registers = [x[2].read(0, columns // 2) for x in args]
    for pair in range(columns // 16):
        for lane, thread in enumerate(numbers):
            number, line = lane // 8, lane % 8
            held = pair * 8 + number * 2
            values = np.concatenate([registers[4 * line + q][held : held + 2] for q in range(4)])
            word = (2 * pair + number // 2) ^ line
            block.thread = thread
            a.write(i + (line + number % 2 * 8) * (ROW // 2) + word * 8, values)
    return [None] * len(args)
