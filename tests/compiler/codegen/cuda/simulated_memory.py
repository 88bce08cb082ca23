"""Memory as a block of threads sees it: bounds, alignment, races, what nobody has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .simulated_arithmetic import SimError, plain, stored

MANY = -2
NOBODY = -1


class Block:
    """What all threads of the running block share, and who is running. ended: called with the
    number of every thread that ends."""

    def __init__(self, shared_bytes: int = 0) -> None:
        self.number = self.thread = 0
        self.shared_bytes = shared_bytes
        self.ended: list[Callable[[int], None]] = []
        self.begin(0, 0)

    def begin(self, number: int, threads: int, cluster: int = 1) -> None:
        """Other blocks run, so many side by side from `number` on; the first of them now."""
        self.count, self.cluster, self.rank = threads, cluster, 0
        self.others: dict[int, dict[str, Any]] = {}
        for rank in reversed(range(cluster)):
            self.number, self.rank = number + rank, rank
            self.shared: list[Shared] = []
            self.seen = [0] * threads  # shared arrays that each thread has asked for
            self.touched: dict[int, tuple[int, int]] = {}  # address: writer, reader since a barrier
            self.dynamic = Dynamic(self.shared_bytes)
            self._leave()

    def _leave(self) -> None:
        names = ("number", "rank", "shared", "seen", "touched", "dynamic")
        self.others[self.rank] = {n: getattr(self, n) for n in names}

    def enter(self, rank: int) -> None:
        """A thread of this block of the cluster runs next."""
        if rank != self.rank:
            self._leave()
            for name, value in self.others[rank].items():
                setattr(self, name, value)

    def dynamic_of(self, rank: int) -> Dynamic:
        """The shared memory of a block of the cluster."""
        found: Dynamic = self.others[rank]["dynamic"]
        return found

    def met(self) -> None:
        """All threads have been at a barrier."""
        self.touched = {}
        self.dynamic.writer[:] = self.dynamic.reader[:] = NOBODY

    def touch(self, address: int, writes: bool, what: str) -> None:
        """Note that the running thread touches an element; two threads must not."""
        writer, reader = self.touched.get(address, (NOBODY, NOBODY))
        me = self.thread
        if writer not in (NOBODY, me) or (writes and reader not in (NOBODY, me)):
            raise _race(me, writes, what, writer if writer not in (NOBODY, me) else reader)
        if writes:
            self.touched[address] = me, reader
        else:
            self.touched[address] = writer, me if reader in (NOBODY, me) else MANY


def _race(me: int, writes: bool, what: str, other: int) -> SimError:
    who = "others" if other == MANY else f"thread {other}"
    return SimError(f"race: thread {me} {'writes' if writes else 'reads'} {what}, which "
                    f"{who} touched without a barrier in between")  # fmt: skip


class Global:
    """A buffer in global memory. blocks: by address, the block that wrote and the one that read."""

    def __init__(
        self, name: str, array: Any, writable: bool, block: Block,
        blocks: dict[int, tuple[int, int]],
    ) -> None:  # fmt: skip
        self.name, self.array, self.writable = name, array, writable
        self.block, self.blocks = block, blocks
        self.base, self.dtype = array.ctypes.data, array.dtype

    def __getitem__(self, at: int) -> Any:
        self._touch(at, False)
        return plain(self.array[at])

    def __setitem__(self, at: int, value: Any) -> None:
        if not self.writable:
            raise SimError(f"{self.name} is read only")
        self._touch(at, True)
        self.array[at] = stored(value, self.dtype, self.name)

    def read(self, at: int, count: int) -> Any:
        """Neighbours in one access."""
        self.reach(at, count)
        for k in range(count):
            self._touch(at + k, False)
        return self.array[at : at + count].copy()

    def write(self, at: int, values: Any) -> None:
        if not self.writable:
            raise SimError(f"{self.name} is read only")
        self.reach(at, len(values))
        for k in range(len(values)):
            self._touch(at + k, True)
        self.array[at : at + len(values)] = values

    def reach(self, at: int, count: int) -> None:
        """Whether neighbours exist, at a multiple of their size."""
        check_index(at, len(self.array), self.name)
        check_index(at + count - 1, len(self.array), self.name)
        check_alignment(self.base + at * self.dtype.itemsize, count * self.dtype.itemsize,
                        f"{self.name}[{at}]")  # fmt: skip

    def _touch(self, at: int, writes: bool) -> None:
        check_index(at, len(self.array), self.name)
        address = self.base + at * self.dtype.itemsize
        self.block.touch(address, writes, f"{self.name}[{at}]")
        writer, reader = self.blocks.get(address, (NOBODY, NOBODY))
        me = self.block.number
        if writer not in (NOBODY, me) or (writes and reader not in (NOBODY, me)):
            raise SimError(f"race: blocks {me} and {max(writer, reader)} touch {self.name}[{at}]")
        if writes:
            self.blocks[address] = me, reader
        else:
            self.blocks[address] = writer, me if reader in (NOBODY, me) else MANY


class Shared:
    """An array in shared memory, of the running block."""

    def __init__(self, elements: int, dtype: Any, block: Block) -> None:
        self.array = np.zeros(elements, dtype)
        self.known = np.zeros(elements, bool)
        self.block = block

    def __getitem__(self, at: int) -> Any:
        check_index(at, len(self.array), "shared memory")
        self.block.touch(self.array.ctypes.data + at * self.array.itemsize, False, f"shared[{at}]")
        if not self.known[at]:
            raise SimError(f"shared[{at}] is read before anything was written to it")
        return plain(self.array[at])

    def __setitem__(self, at: int, value: Any) -> None:
        check_index(at, len(self.array), "shared memory")
        self.block.touch(self.array.ctypes.data + at * self.array.itemsize, True, f"shared[{at}]")
        self.known[at] = True
        self.array[at] = stored(value, self.array.dtype, "shared memory")


class Dynamic:
    """A block's dynamic shared memory, by bytes: what they hold, whether anybody wrote them, who
    did and who read them since the last barrier, and whether a copy to them is on its way. busy:
    how many units read them at this moment; unfenced: whether units may not see yet what a thread
    wrote; released: whether all threads know that it is there."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, 0xCD, np.uint8)
        self.known = np.zeros(size, bool)
        self.writer = np.full(size, NOBODY)
        self.reader = np.full(size, NOBODY)
        self.flying = np.zeros(size, bool)
        self.busy = np.zeros(size, np.int16)
        self.unfenced = np.zeros(size, bool)
        self.released = np.zeros(size, bool)


class Piece:
    """An array in dynamic shared memory."""

    def __init__(self, block: Block, start: int, count: int, dtype: Any) -> None:
        self.block, self.start, self.count, self.dtype = block, start, count, np.dtype(dtype)
        end = start + count * self.dtype.itemsize
        if end > block.shared_bytes:
            raise SimError(f"an array ends at byte {end} of {block.shared_bytes} of shared memory")

    def __getitem__(self, at: int) -> Any:
        return plain(self.read(at, 1)[0])

    def __setitem__(self, at: int, value: Any) -> None:
        held = np.array([stored(value, self.dtype, "shared memory")], self.dtype)
        self.write(at, held)

    def read(self, at: int, count: int) -> Any:
        """Neighbours in one access, by the running thread."""
        where = self._where(at, count)
        self._touch(where, at, False)
        d = self.block.dynamic
        if not d.known[where].all():
            raise SimError(f"shared[{at}] is read before anything was written to it")
        return d.bytes[where].view(self.dtype).copy()

    def write(self, at: int, values: Any) -> None:
        where = self._where(at, len(values))
        self._touch(where, at, True)
        d = self.block.dynamic
        d.bytes[where] = np.ascontiguousarray(values, self.dtype).view(np.uint8)
        d.known[where], d.unfenced[where], d.released[where] = True, True, False

    def place(self, at: int) -> int:
        """The byte in which an element begins."""
        return self.start + at * self.dtype.itemsize

    def reach(self, at: int, count: int) -> int:
        """The same for neighbours that must exist."""
        check_index(at, self.count, "shared memory")
        check_index(at + count - 1, self.count, "shared memory")
        return self.place(at)

    def expect(self, at: int, count: int) -> None:
        """A copy to neighbours is on its way."""
        where = self._where(at, count)
        self._touch(where, at, True)
        self.block.dynamic.flying[where] = True

    def land(self, at: int, values: Any) -> None:
        """The copy is here, and the running thread knows that it is."""
        self.block.dynamic.flying[self._where(at, len(values))] = False
        self.write(at, values)

    def _where(self, at: int, count: int) -> slice:
        check_index(at, self.count, "shared memory")
        check_index(at + count - 1, self.count, "shared memory")
        size = self.dtype.itemsize
        first = self.start + at * size
        check_alignment(first, count * size, f"shared[{at}]")
        return slice(first, first + count * size)

    def _touch(self, where: slice, at: int, writes: bool) -> None:
        d, me = self.block.dynamic, self.block.thread
        if d.flying[where].any():
            raise SimError(f"shared[{at}] is touched while a copy to it is on its way")
        if writes and d.busy[where].any():
            raise SimError(f"shared[{at}] is written while something still reads it")
        writer, reader = d.writer[where], d.reader[where]
        foreign = (writer != NOBODY) & (writer != me)
        if writes:
            foreign |= (reader != NOBODY) & (reader != me)
        if foreign.any():
            k = int(foreign.argmax())
            other = int(writer[k] if writer[k] not in (NOBODY, me) else reader[k])
            raise _race(me, writes, f"shared[{at}]", other)
        if writes:
            writer[:] = me
        else:
            reader[:] = np.where((reader == NOBODY) | (reader == me), me, MANY)


class LocalArray:
    """An array of one thread."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.dtype = np.dtype(dtype)
        self.array = np.zeros(self.shape, self.dtype)
        self.known = np.zeros(self.shape, bool)

    def _at(self, at: Any) -> Any:
        where = at if isinstance(at, tuple) else (at,)
        for k, n in zip(where, self.shape, strict=True):
            check_index(k, n, "a local array")
        return where

    def __getitem__(self, at: Any) -> Any:
        where = self._at(at)
        if not self.known[where]:
            raise SimError(f"element {where} of a local array is read before it is set")
        return plain(self.array[where])

    def __setitem__(self, at: Any, value: Any) -> None:
        where = self._at(at)
        self.array[where] = stored(value, self.dtype, "a local")
        self.known[where] = True

    def read(self, at: int, count: int) -> Any:
        """Neighbours in the order in which they lie in memory."""
        self._reach(at, count)
        if not self.known.reshape(-1)[at : at + count].all():
            raise SimError(f"elements from {at} of a local array are read before they are set")
        return self.array.reshape(-1)[at : at + count].copy()

    def write(self, at: int, values: Any) -> None:
        self._reach(at, len(values))
        if np.asarray(values).dtype != self.dtype:
            raise SimError(f"a local array of {self.dtype} is given {np.asarray(values).dtype}")
        self.array.reshape(-1)[at : at + len(values)] = values
        self.known.reshape(-1)[at : at + len(values)] = True

    def _reach(self, at: int, count: int) -> None:
        check_index(at, self.array.size, "a local array")
        check_index(at + count - 1, self.array.size, "a local array")


def check_index(at: Any, size: int, name: str) -> None:
    if not isinstance(at, int) or isinstance(at, bool):
        raise SimError(f"the index {at!r} of {name} is a {type(at).__name__}")
    if not 0 <= at < size:
        raise SimError(f"{name}[{at}] is outside of its {size} elements")


def check_alignment(address: int, size: int, what: str) -> None:
    if size & (size - 1) or size > 16:
        raise SimError(f"{what}: no access has {size} bytes")
    if address % size:
        raise SimError(f"{what} is not at a multiple of {size} bytes")


def accesses(block: Block) -> dict[str, Callable[..., Any]]:
    """The intrinsics of `block_memory`, but for the barrier."""

    def load_vector(r: LocalArray, k: int, x: Any, j: int, n: int) -> None:
        r.write(k, x.read(j, n))

    def store_vector(y: Any, j: int, r: LocalArray, k: int, n: int) -> None:
        if y.dtype != r.dtype:
            raise SimError(f"{y.dtype} in memory is given {r.dtype}")
        y.write(j, r.read(k, n))

    kinds = {"bool": "u1", "f16": "u2", "bf16": "u2", "f32": "f4", "f64": "f8",
             **{f"{k}{8 * n}": f"{k}{n}" for k in "iu" for n in (1, 2, 4, 8)}}  # fmt: skip
    pieces = {f"shared_{name}": lambda at, count, t=t: Piece(block, at, count, t)
              for name, t in kinds.items()}  # fmt: skip
    return {
        "unrolled": lambda: None,
        "load_vector": load_vector,
        "store_vector": store_vector,
        **pieces,
    }
