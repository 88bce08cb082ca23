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
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cuda.dialect import FUNCTIONS
from tilewright.compiler.codegen.cuda.entry import Entry
from tilewright.compiler.codegen.cuda.intrinsics import INTRINSICS

from .simulated_arithmetic import DIALECT, SimError
from .simulated_copies import copies
from .simulated_memory import Block, Global, LocalArray, Shared, accesses
from .simulated_tensor_cores import TENSOR_CORES
from .simulated_warps import WARPS, Collective

COLLECTIVES: Mapping[str, Collective] = {**WARPS, **TENSOR_CORES}
BARRIERS = ("cuda.syncthreads", "barrier")
UNTIL = "until"
"""A stop that a thread passes when the function that it comes with says so."""

__all__ = ["SimError", "run_source"]


# --------------------------------------------------------------------------- source to generators


class _Stops(ast.NodeTransformer):
    """Where threads meet, as `yield`s that say where they are."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        text = ast.unparse(node.func)
        if text in BARRIERS:
            return ast.Yield(self._stop("barrier", node))
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


Stop = tuple[Any, ...]
Thread = Generator[Stop, Any, None]


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
        where = _names(block, rng)
        exec(code, where)
        blocks: dict[int, tuple[int, int]] = {}
        args = [Global(n, a, w, block, blocks) for n, a, w in buffers]
        for number in rng.permutation(entry.blocks):
            block.begin(int(number), entry.threads)
            _run_block(where[entry.name], args, entry.threads, block, rng, lines)


def _names(block: Block, rng: Any) -> dict[str, Any]:
    """The globals of generated source."""
    names = {**DIALECT, **accesses(block), **copies(block, rng), "cuda": _cuda(block), "np": np,
             "inf": math.inf, "nan": math.nan}  # fmt: skip
    missing = {*FUNCTIONS, *INTRINSICS} - {*names, *COLLECTIVES, *BARRIERS}
    assert not missing, missing
    return names


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


def _run_block(
    function: Callable[..., Thread], args: Sequence[Global], count: int, block: Block, rng: Any,
    lines: Sequence[str],
) -> None:  # fmt: skip
    threads: list[Thread] = [function(*args) for _ in range(count)]
    stops: list[Stop | None] = [("start", 0)] * count  # None: has ended
    answers: list[Any] = [None] * count
    ready = list(range(count))
    with np.errstate(all="ignore"):
        while ready:
            for k in rng.permutation(ready):
                stops[k] = _advance(threads[k], answers[k], int(k), block, lines)
                answers[k] = None
            ready = _together(stops, answers, block, lines) or _released(stops, block, lines)


def _advance(
    thread: Thread, answer: Any, number: int, block: Block, lines: Sequence[str]
) -> Stop | None:  # fmt: skip
    block.thread = number
    try:
        return thread.send(answer)
    except StopIteration:
        try:
            for end in block.ended:
                end(number)
        except SimError as e:
            raise SimError(f"block {block.number}, thread {number}: {e}") from e
        return None
    except (SimError, UnboundLocalError, TypeError, ZeroDivisionError) as e:
        at = e.__traceback__
        line = 0
        while at is not None:
            if at.tb_frame.f_code.co_filename == "<kernel>":
                line = at.tb_lineno
            at = at.tb_next
        raise SimError(f"block {block.number}, thread {number}, line {line} "
                       f"`{lines[line - 1].strip()}`: {e}") from e  # fmt: skip


def _together(
    stops: list[Stop | None], answers: list[Any], block: Block, lines: Sequence[str]
) -> list[int]:  # fmt: skip
    """Threads that may go on without the whole block, with what they get: neighbours that are all
    in the same place, and those that waited for what is so now."""
    ready = [k for k, s in enumerate(stops) if s and s[0] == UNTIL and s[2]()]
    done = 0
    for k, s in enumerate(stops):
        if k < done or s is None or s[0] not in COLLECTIVES:
            continue
        found = COLLECTIVES[s[0]]
        first = k // found.threads * found.threads
        group = range(first, first + found.threads)
        held = [stops[j] for j in group if j < len(stops)]
        if len(held) < found.threads or any(t is None or t[:2] != s[:2] for t in held):
            continue
        try:
            got = found.together(block, group, [t[2:] for t in held if t])
        except SimError as e:
            raise SimError(f"block {block.number}, threads from {first}, line {s[1]} "
                           f"`{lines[s[1] - 1].strip()}`: {e}") from e  # fmt: skip
        for j, answer in zip(group, got, strict=True):
            answers[j] = answer
        ready += list(group)
        done = first + found.threads
    return ready


def _released(stops: list[Stop | None], block: Block, lines: Sequence[str]) -> list[int]:
    """All threads, where all stand at one barrier; none, where all have ended."""
    if all(s is None for s in stops):
        return []
    places = {s[:2] if s else ("end", 0) for s in stops}
    if len(places) == 1 and next(iter(places))[0] == "barrier":
        block.met()
        return list(range(len(stops)))
    shown = ", ".join(
        f"{sum((s[:2] if s else ('end', 0)) == p for s in stops)} threads "
        + (f"wait at line {p[1]} `{lines[p[1] - 1].strip()}`" if p[1] else "have ended")
        for p in sorted(places)
    )
    raise SimError(f"deadlock in block {block.number}: {shown}")
