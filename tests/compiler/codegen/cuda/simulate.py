"""Runs generated CUDA source in plain Python, thread by thread: there is no GPU in CI.

The functions of the source become generators that stop where threads meet: at barriers, shuffles
and matrix instructions. The threads of a block run one after the other in random order from stop to
stop, so all that they touch between two barriers is seen, whatever the order would be on a device.
A SimError says, with the line of the source:

* an access outside of a buffer, at an address that is no multiple of its size, or of what nobody
  has written in shared memory;
* a race: two threads of a block touch an element without a barrier in between, or two blocks touch
  one, and one of them writes;
* an asynchronous copy that is not waited for, or whose place is touched before that;
* a deadlock: threads wait at different barriers, or for one that has ended, or shuffle without the
  rest of their warp;
* a value of another type than the buffer's, or outside of what a function of the dialect takes.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import numpy as np

from tilewright.compiler.codegen.cuda.dialect import FUNCTIONS
from tilewright.compiler.codegen.cuda.entry import Entry
from tilewright.compiler.codegen.cuda.intrinsics import INTRINSICS

from .simulated_arithmetic import DIALECT, SimError
from .simulated_copies import copies
from .simulated_fragments import COLLECTIVES as PRODUCTS
from .simulated_fragments import FRAGMENTS
from .simulated_hopper import WAITS, Tensor, Units
from .simulated_memory import Block, Global, LocalArray, Shared, accesses
from .simulated_tensor_cores import TENSOR_CORES, round_tf32
from .simulated_tiles import TILES
from .simulated_warps import WARP, WARPS, Collective

Stop = tuple[Any, ...]
Thread = Generator[Stop, Any, None]
COLLECTIVES: Mapping[str, Collective] = {
    **WARPS, **TENSOR_CORES, **PRODUCTS, **Units(Block(), np.random.default_rng()).collectives()
}  # fmt: skip
BARRIERS = ("cuda.syncthreads", "barrier")
UNTIL = "until"
"""A stop that a thread passes when the function that it comes with says so."""
MOOD: Final = 16  # rounds for which warps, and blocks of a cluster, are as fast as they are
READY: Stop = ("ready", 0)
"""Where a thread is that may go on, and has not yet."""

__all__ = ["SimError", "run_source"]


# --------------------------------------------------------------------------- source to generators


class _Stops(ast.NodeTransformer):
    """Where threads meet, as `yield`s that say where they are."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        text = ast.unparse(node.func)
        if text in BARRIERS:
            return ast.Yield(self._stop("barrier", node))
        if text in WAITS:
            return ast.Yield(self._stop(UNTIL, node, node))
        if text in COLLECTIVES:
            return ast.Yield(self._stop(text, node, *node.args))
        return node

    def _stop(self, kind: str, node: ast.Call, *more: ast.expr) -> ast.expr:
        return ast.Tuple([ast.Constant(kind), ast.Constant(node.lineno), *more], ast.Load())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body.append(ast.parse("if False:\n    yield").body[0])
        return node


# --------------------------------------------------------------------------- running


def run_source(
    text: str, entries: Sequence[Entry], buffers: Sequence[tuple[str, Any, bool]], seed: int = 0
) -> None:
    """Launch every entry of a kernel in turn. buffers: name, array and whether it may be written.

    Raises SimError.
    """
    tree = ast.fix_missing_locations(_Stops().visit(ast.parse(text)))
    code = compile(tree, "<kernel>", "exec")
    rng = np.random.default_rng(seed)
    lines = text.splitlines()
    for entry in entries:
        block = Block(entry.shared_bytes)
        units = Units(block, rng)
        where = _names(block, rng) | units.names()
        missing = {*FUNCTIONS, *INTRINSICS} - {*where, *COLLECTIVES, *BARRIERS}
        assert not missing, missing
        exec(code, where)
        blocks: dict[int, tuple[int, int]] = {}
        args = [Global(n, a, w, block, blocks) for n, a, w in buffers]
        args += [Tensor(m, args[m.buffer]) for m in entry.tensor_maps]
        for number in rng.permutation(entry.blocks // entry.cluster):
            block.begin(int(number) * entry.cluster, entry.threads, entry.cluster)
            units.begin()
            _Run(where[entry.name], args, block, units, rng, lines).run()


def _names(block: Block, rng: Any) -> dict[str, Any]:
    """The globals of generated source."""
    return {**DIALECT, **accesses(block), **copies(block, rng), **TILES, **FRAGMENTS,
            "round_tf32": round_tf32, "cuda": _cuda(block), "np": np, "inf": math.inf,
            "nan": math.nan}  # fmt: skip


def _cuda(block: Block) -> Any:
    """What the source calls `cuda`."""

    class Index:
        def __init__(self, name: str) -> None:
            self.name = name

        @property
        def x(self) -> int:
            return int(getattr(block, self.name))

    def shared(elements: int, dtype: Any) -> Shared:
        k = block.seen[block.thread]
        block.seen[block.thread] += 1
        if k == len(block.shared):
            block.shared.append(Shared(elements, dtype, block))
        return block.shared[k]

    return SimpleNamespace(
        blockIdx=Index("number"), threadIdx=Index("thread"),
        shared=SimpleNamespace(array=shared), local=SimpleNamespace(array=LocalArray),
    )  # fmt: skip


class _Run:
    """A block, or the blocks of a cluster, whose threads are numbered one block after the other."""

    def __init__(
        self, function: Callable[..., Thread], args: Sequence[Any], block: Block, units: Units,
        rng: Any, lines: Sequence[str],
    ) -> None:  # fmt: skip
        self.block, self.units, self.rng, self.lines = block, units, rng, lines
        count = block.count * block.cluster
        self.drifts = any(f"{name}(" in line for name in WAITS for line in lines)
        self.round, self.pace = 0, np.ones(count // WARP)
        self.collectives = {**COLLECTIVES, **units.collectives()}
        self.threads: list[Thread] = [function(*args) for _ in range(count)]
        self.stops: list[Stop | None] = [("start", 0)] * count  # None: has ended
        self.answers: list[Any] = [None] * count

    def run(self) -> None:
        ready = list(range(len(self.threads)))
        with np.errstate(all="ignore"):
            while ready:
                for k in ready:
                    self.stops[k] = READY
                chosen = self.chosen(ready)
                for k in self.rng.permutation(chosen):
                    self.stops[k] = self.advance(int(k))
                    self.answers[k] = None
                self.step(hurry=False)
                ready = [k for k in ready if self.stops[k] is READY] + self.together()
                while not ready and self.step(hurry=True):
                    ready = self.together()
                if not ready and any(self.stops):
                    self.stuck()
            self.within("", self.units.finish)

    def chosen(self, ready: list[int]) -> list[int]:
        """Those that run next: all, or where warps need not wait for each other, some of them, so
        that others fall behind."""
        if not self.drifts:
            return ready
        if self.round % MOOD == 0:
            blocks = self.rng.choice((0.03, 1), self.block.cluster)
            warps = self.rng.choice((0.1, 0.5, 0.9), len(self.threads) // WARP)
            self.pace = warps * np.repeat(blocks, len(warps) // self.block.cluster)
        self.round += 1
        warps = sorted({k // WARP for k in ready})
        run = {w for w in warps if self.rng.random() < self.pace[w]}
        run = run or {warps[int(self.rng.integers(len(warps)))]}
        return [k for k in ready if k // WARP in run]

    def step(self, hurry: bool) -> bool:
        return bool(self.within("", lambda: self.units.step(hurry)))

    def enter(self, k: int) -> int:
        """The number of thread k in its block, which runs."""
        rank, number = divmod(k, self.block.count)
        self.block.enter(rank)
        return number

    def advance(self, k: int) -> Stop | None:
        number = self.block.thread = self.enter(k)
        try:
            return self.threads[k].send(self.answers[k])
        except StopIteration:
            for end in self.block.ended:
                self.within(f", thread {number}", lambda end=end: end(number))
            return None
        except (SimError, UnboundLocalError, TypeError, ZeroDivisionError) as e:
            at = e.__traceback__
            line = 0
            while at is not None:
                if at.tb_frame.f_code.co_filename == "<kernel>":
                    line = at.tb_lineno
                at = at.tb_next
            raise SimError(f"block {self.block.number}, thread {number}, line {line} "
                           f"`{self.lines[line - 1].strip()}`: {e}") from e  # fmt: skip

    def within(self, where: str, what: Callable[[], Any]) -> Any:
        """what(), whose errors say in which block."""
        try:
            return what()
        except SimError as e:
            raise SimError(f"block {self.block.number}{where}: {e}") from e

    def together(self) -> list[int]:
        """Threads that may go on, with what they get: all of a block at one barrier, neighbours
        that are in one place, and those that waited for what is so now."""
        ready = [k for k, s in enumerate(self.stops) if s and s[0] == UNTIL and s[2]()]
        ready += self.released()
        done = 0
        for k, s in enumerate(self.stops):
            if k < done or s is None or s[0] not in self.collectives:
                continue
            found = self.collectives[s[0]]
            first = k // found.threads * found.threads
            group = range(first, first + found.threads)
            held = [self.stops[j] for j in group if j < len(self.stops)]
            if len(held) < found.threads or any(t is None or t[:2] != s[:2] for t in held):
                continue
            number = self.enter(first)
            got = self.within(
                f", threads from {number}, line {s[1]} `{self.lines[s[1] - 1].strip()}`",
                lambda found=found, number=number, held=held: found.together(
                    self.block, range(number, number + found.threads), [t[2:] for t in held if t]
                ),
            )
            for j, answer in zip(group, got, strict=True):
                self.answers[j] = answer
            ready += list(group)
            done = first + found.threads
        return ready

    def released(self) -> list[int]:
        """The threads of blocks that all stand at one barrier."""
        ready: list[int] = []
        for first in range(0, len(self.stops), self.block.count):
            block = range(first, first + self.block.count)
            at = self.stops[first]
            if (
                at
                and at[0] == "barrier"
                and all(s and s[:2] == at[:2] for s in self.stops[block.start : block.stop])
            ):
                self.enter(first)
                self.block.met()
                ready += list(block)
        return ready

    def stuck(self) -> NoReturn:
        """Nothing goes on."""
        found = [s[:2] if s else ("end", 0) for s in self.stops]
        shown = ", ".join(
            f"{found.count(p)} threads "
            + (f"wait at line {p[1]} `{self.lines[p[1] - 1].strip()}`" if p[1] else "have ended")
            for p in sorted(set(found))
        )
        raise SimError(f"deadlock in block {self.block.number}: {shown}")
