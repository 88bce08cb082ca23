"""Runs generated CUDA source in plain Python, thread by thread: there is no GPU in CI.

The functions of the source become generators that stop where threads meet: at barriers and
shuffles. The threads of a block run one after the other in random order from stop to stop, so all
that they touch between two barriers is seen, whatever the order would be on a device. A SimError
says, with the line of the source:

* an access outside of a buffer, or of what nobody has written in shared memory;
* a race: two threads of a block touch an element without a barrier in between, or two blocks touch
  one, and one of them writes;
* a deadlock: threads wait at different barriers, or for one that has ended, or shuffle without the
  rest of their warp;
* a value of another type than the buffer's, or outside of what a function of the dialect takes.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cuda.dialect import FUNCTIONS
from tilewright.compiler.codegen.cuda.source import Entry

WARP = 32
MANY = -2


class SimError(AssertionError):
    """What no CUDA kernel may do."""


# --------------------------------------------------------------------------- source to generators


class _Stops(ast.NodeTransformer):
    """Barriers and shuffles as `yield`s that say where they are."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        text = ast.unparse(node.func)
        if text == "cuda.syncthreads":
            return ast.Yield(self._stop("barrier", node))
        if text == "shuffle_xor":
            return ast.Yield(self._stop("shuffle", node, *node.args))
        return node

    def _stop(self, kind: str, node: ast.Call, *more: ast.expr) -> ast.expr:
        return ast.Tuple([ast.Constant(kind), ast.Constant(node.lineno), *more], ast.Load())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body.append(ast.parse("if False:\n    yield").body[0])
        return node


class Block:
    """What all threads of the running block share, and who is running."""

    def __init__(self) -> None:
        self.number = self.thread = 0
        self.shared: list[Shared] = []
        self.seen: list[int] = []  # shared arrays that each thread has asked for
        self.touched: dict[int, tuple[int, int]] = {}  # address: writer, reader since a barrier
        self.line = 0

    def touch(self, address: int, writes: bool, what: str) -> None:
        """Note that the running thread touches an element; two threads must not."""
        writer, reader = self.touched.get(address, (-1, -1))
        me = self.thread
        if writer not in (-1, me) or (writes and reader not in (-1, me)):
            other = writer if writer not in (-1, me) else reader
            who = "others" if other == MANY else f"thread {other}"
            raise SimError(f"race: thread {me} {'writes' if writes else 'reads'} {what}, which "
                           f"{who} touched without a barrier in between")  # fmt: skip
        if writes:
            self.touched[address] = me, reader
        else:
            self.touched[address] = writer, me if reader in (-1, me) else MANY


class Global:
    """A buffer in global memory. blocks: by address, the block that wrote and the one that read."""

    def __init__(
        self, name: str, array: Any, writable: bool, block: Block,
        blocks: dict[int, tuple[int, int]],
    ) -> None:  # fmt: skip
        self.name, self.array, self.writable = name, array, writable
        self.block, self.blocks = block, blocks
        self.base, self.size = array.ctypes.data, array.itemsize

    def __getitem__(self, at: int) -> Any:
        self._touch(at, False)
        return plain(self.array[at])

    def __setitem__(self, at: int, value: Any) -> None:
        if not self.writable:
            raise SimError(f"{self.name} is read only")
        self._touch(at, True)
        self.array[at] = stored(value, self.array.dtype, self.name)

    def _touch(self, at: int, writes: bool) -> None:
        check_index(at, len(self.array), self.name)
        address = self.base + at * self.size
        self.block.touch(address, writes, f"{self.name}[{at}]")
        writer, reader = self.blocks.get(address, (-1, -1))
        me = self.block.number
        if writer not in (-1, me) or (writes and reader not in (-1, me)):
            raise SimError(f"race: blocks {me} and {max(writer, reader)} touch {self.name}[{at}]")
        if writes:
            self.blocks[address] = me, reader
        else:
            self.blocks[address] = writer, me if reader in (-1, me) else MANY


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


class LocalArray:
    """An array of one thread."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.values: dict[Any, Any] = {}
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.dtype = np.dtype(dtype)

    def _at(self, at: Any) -> Any:
        where = at if isinstance(at, tuple) else (at,)
        for k, n in zip(where, self.shape, strict=True):
            check_index(k, n, "a local array")
        return where

    def __getitem__(self, at: Any) -> Any:
        where = self._at(at)
        if where not in self.values:
            raise SimError(f"element {where} of a local array is read before it is set")
        return self.values[where]

    def __setitem__(self, at: Any, value: Any) -> None:
        where = self._at(at)
        self.values[where] = plain(np.asarray(stored(value, self.dtype, "a local"), self.dtype)[()])


def check_index(at: Any, size: int, name: str) -> None:
    if not isinstance(at, int) or isinstance(at, bool):
        raise SimError(f"the index {at!r} of {name} is a {type(at).__name__}")
    if not 0 <= at < size:
        raise SimError(f"{name}[{at}] is outside of its {size} elements")


def plain(x: Any) -> Any:
    """An element as the source computes with it: indices are Python's own integers."""
    return x.item() if x.dtype == np.int64 else x


def stored(value: Any, dtype: Any, name: str) -> Any:
    """A value on its way into memory. Raises SimError unless it has exactly the element's type."""
    if isinstance(value, bool):
        found: Any = np.dtype(np.bool_)
    elif isinstance(value, int):
        found, value = np.dtype(np.int64), wrapped(value, np.dtype(np.int64))
    else:
        found = np.asarray(value).dtype
    if found != dtype:
        raise SimError(f"{name} of {dtype} is given {value!r}, which is {found}")
    return value


def wrapped(x: Any, dtype: Any) -> Any:
    """An integer cut to the width of a type."""
    bits = dtype.itemsize * 8
    n = int(x) & ((1 << bits) - 1)
    return n - (1 << bits) if dtype.kind == "i" and n >> (bits - 1) else n


# --------------------------------------------------------------------------- the dialect


def _conversion(name: str, dtype: Any) -> Callable[[Any], Any]:
    def convert(x: Any) -> Any:
        if dtype.kind == "b":
            return bool(x != 0)
        if dtype.kind == "f":
            return dtype.type(x)
        if isinstance(x, (float, np.floating)):
            info = np.iinfo(dtype)
            held = min(max(float(x), float(info.min)), float(info.max))
            n = 0 if x != x else min(math.trunc(held), info.max)
        else:
            n = wrapped(x, dtype)
        return n if dtype == np.int64 else dtype.type(n)

    return convert


def _wide(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of floats, computed in float64 and rounded once."""

    def call(*args: Any) -> Any:
        return type(args[0])(f(*map(np.float64, args)))

    return call


def _float_or_integer(floats: Callable[..., Any], integers: Callable[..., Any]) -> Any:
    def call(*args: Any) -> Any:
        if isinstance(args[0], np.floating):
            return type(args[0])(floats(*args))
        made = integers(*map(int, args))
        kind = type(args[0])
        return made if kind in (int, bool) else kind(wrapped(made, np.dtype(kind)))

    return call


def _integer_shift(a: Any, b: Any, left: bool) -> Any:
    kind = type(a)
    bits = 64 if kind is int else np.dtype(kind).itemsize * 8
    signed = kind is int or np.dtype(kind).kind == "i"
    if not 0 <= int(b) < bits:
        n = -1 if not left and signed and a < 0 else 0
    else:
        n = int(a) << int(b) if left else int(a) >> int(b)
    n = wrapped(n, np.dtype(np.int64 if kind is int else kind))
    return n if kind is int else kind(n)


def _unsigned(name: str) -> Callable[[Any, Any], Any]:
    def call(a: Any, b: Any) -> Any:
        if not (0 <= a < 1 << 32 and 0 < b < 1 << 32):
            raise SimError(f"{name}({a}, {b}): both must be numbers from 0 to 2**32 - 1")
        return a // b if name == "udiv" else a % b

    return call


def _bf16(x: Any) -> Any:
    """The bits of the nearest bfloat16, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    if x != x:
        return np.uint16(bits >> 16 | 0x40)
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF)


def _truncated(a: int, b: int) -> int:
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _dialect() -> dict[str, Any]:
    types = {"f32": "f4", "f64": "f8", "bool": "?", **{f"i{8 * n}": f"i{n}" for n in (1, 2, 4, 8)},
             **{f"u{8 * n}": f"u{n}" for n in (1, 2, 4, 8)}}  # fmt: skip
    plain_names = ("exp log sqrt sin cos tan sinh cosh tanh log1p expm1").split()
    arcs = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh",
            "acosh": "arccosh", "atanh": "arctanh"}  # fmt: skip
    rounding = {"floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc}
    same: Callable[..., Any] = lambda x: x  # noqa: E731
    both = _float_or_integer
    return {
        **{n: _conversion(n, np.dtype(t)) for n, t in types.items()},
        **{n: _wide(getattr(np, n)) for n in plain_names},
        **{n: _wide(getattr(np, f)) for n, f in arcs.items()},
        **{n: both(f, same) for n, f in rounding.items()},
        "erf": _wide(math.erf), "rsqrt": _wide(lambda x: 1 / np.sqrt(x)),
        "fma": _wide(lambda a, b, c: a * b + c),
        "abs": both(np.abs, abs), "neg": both(np.negative, lambda x: -x),
        "max": both(np.maximum, max), "min": both(np.minimum, min),
        "pow": both(_wide(np.power), lambda a, b: int(np.power(float(a), float(b)))),
        "mod": both(np.mod, lambda a, b: a % b if b else 0),
        "fmod": both(np.fmod, lambda a, b: a - b * _truncated(a, b) if b else 0),
        "floordiv": both(np.floor_divide, lambda a, b: a // b if b else 0),
        "truncdiv": both(lambda a, b: np.trunc(a / b), _truncated),
        "div": both(np.divide, _truncated),
        "add": both(np.add, lambda a, b: a + b), "sub": both(np.subtract, lambda a, b: a - b),
        "mul": both(np.multiply, lambda a, b: a * b),
        "bitnot": both(np.invert, lambda x: ~x), "xor": lambda a, b: a ^ b,
        "shl": lambda a, b: _integer_shift(a, b, True),
        "shr": lambda a, b: _integer_shift(a, b, False),
        "isnan": lambda x: bool(np.isnan(x)), "isinf": lambda x: bool(np.isinf(x)),
        "unknown": same,
        "udiv": _unsigned("udiv"), "umod": _unsigned("umod"),
        "from_f16": lambda b: np.float32(b.view(np.float16)),
        "to_f16": lambda x: np.float16(x).view(np.uint16),
        "from_bf16": lambda b: np.array(int(b) << 16, np.uint32).view(np.float32)[()],
        "to_bf16": _bf16,
    }  # fmt: skip


DIALECT = _dialect()
assert set(FUNCTIONS) <= {*DIALECT, "shuffle_xor"}, set(FUNCTIONS) - set(DIALECT)


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
        block = Block()
        where: dict[str, Any] = {**DIALECT, "cuda": _cuda(block), "np": np,
                                 "inf": math.inf, "nan": math.nan}  # fmt: skip
        exec(code, where)
        blocks: dict[int, tuple[int, int]] = {}
        args = [Global(n, a, w, block, blocks) for n, a, w in buffers]
        for number in rng.permutation(entry.blocks):
            block.number = int(number)
            _run_block(where[entry.name], args, entry.threads, block, rng, lines)


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
    block.shared, block.seen, block.touched = [], [0] * count, {}
    threads: list[Thread] = [function(*args) for _ in range(count)]
    stops: list[Stop | None] = [("start", 0)] * count  # None: has ended
    answers: list[Any] = [None] * count
    ready = list(range(count))
    with np.errstate(all="ignore"):
        while ready:
            for k in rng.permutation(ready):
                stops[k] = _advance(threads[k], answers[k], int(k), block, lines)
                answers[k] = None
            ready = _shuffled(stops, answers) or _released(stops, block, lines)


def _advance(
    thread: Thread, answer: Any, number: int, block: Block, lines: Sequence[str]
) -> Stop | None:  # fmt: skip
    block.thread = number
    try:
        return thread.send(answer)
    except StopIteration:
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


def _shuffled(stops: list[Stop | None], answers: list[Any]) -> list[int]:
    """Threads of warps that all shuffle in the same place, with what they get."""
    ready = []
    for first in range(0, len(stops), WARP):
        warp = range(first, min(first + WARP, len(stops)))
        held = [stops[k] for k in warp]
        if len(warp) < WARP or any(s is None or s[0] != "shuffle" for s in held):
            continue
        if len({s[1] for s in held if s}) != 1 or len({s[3] for s in held if s}) != 1:
            continue
        for k in warp:
            other = stops[first + ((k - first) ^ stops[k][3])]  # type: ignore[index]
            answers[k] = other[2]  # type: ignore[index]
        ready += list(warp)
    return ready


def _released(stops: list[Stop | None], block: Block, lines: Sequence[str]) -> list[int]:
    """All threads, where all stand at one barrier; none, where all have ended."""
    if all(s is None for s in stops):
        return []
    places = {s[:2] if s else ("end", 0) for s in stops}
    if len(places) == 1 and next(iter(places))[0] == "barrier":
        block.touched = {}
        return list(range(len(stops)))
    shown = ", ".join(
        f"{sum((s[:2] if s else ('end', 0)) == p for s in stops)} threads "
        + (f"wait at line {p[1]} `{lines[p[1] - 1].strip()}`" if p[1] else "have ended")
        for p in sorted(places)
    )
    raise SimError(f"deadlock in block {block.number}: {shown}")
