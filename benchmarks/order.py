"""What the order of kernels and computing in place do for the memory that a program needs.

    python benchmarks/order.py                    all models, and random graphs
    python benchmarks/order.py densenet121 --list     with every kernel that copies or could not
                                                      work in place

The bound is the largest sum of bytes that one kernel needs to be alive, its scratch included. No
arena is smaller. For every model: the bound with results apart from their operands, then with those
in place that may be, in the model's order; then in the order that the planner takes, whether that
is proved to be the best one, and the time it took to find out. The last columns show what the
model's order is worth: the bound of a breadth-first order and the worst of some random ones, and
the worst bound that the planner makes of all these. Where the stem of a network sets its bound,
"from fork" has the network from its first fork on, by itself.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import models

from tilewright.compiler.api.compile import analyse
from tilewright.compiler.graph.ir import Graph, Op, Role
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.memory.buffers import BufferSpec, Step, live_ranges, resolve
from tilewright.compiler.memory.dependencies import predecessors
from tilewright.compiler.memory.order import reorder
from tilewright.compiler.memory.plan import ALIGNMENT
from tilewright.ops.operator import Injective, View

MIB = 2**20
SHUFFLES = 10
FORKED = ("inception_v1", "inception_v2", "resnet50")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help="names as in benchmarks/models.py (default: all)")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--list", action="store_true", help="name kernels that copy or take new memory")
    args = p.parse_args()
    print(f"{'MiB':14} {'kernels':>7} {'apart':>9} {'in place':>9} {'reordered':>9}  {'best':4}"
          f" {'ms':>6} | {'breadth':>9} {'random':>9} {'reordered':>9}")  # fmt: skip
    for name in args.models or models.NAMES:
        if name in models.TORCH_NAMES and not models.torch_installed():
            continue
        c = analyse(models.path(name, args.batch))
        report(name, Program.of(c))
        if args.list:
            print("\n".join(sharing(c)))
        if name in FORKED:
            c = analyse(from_fork(c.source))
            report("  from fork", Program.of(c))
    if not args.models:
        for count in (12, 50, 200):
            report(f"random {count}", random_graph(random.Random(count), count))


@dataclass(frozen=True)
class Program:
    """Steps in the order of the model, and the buffers that they share."""

    steps: tuple[Step, ...]
    buffers: tuple[BufferSpec, ...]

    @classmethod
    def of(cls, c: Compilation) -> Program:
        given = sorted(zip(c.plan.order, c.plan.steps, strict=True), key=lambda pair: pair[0])
        return cls(tuple(step for _, step in given), c.plan.buffers)

    def ordered(self, order: Sequence[int]) -> Program:
        return Program(tuple(self.steps[k] for k in order), self.buffers)

    def breadth_first(self) -> Program:
        """By the length of the longest way from the start."""
        depth: list[int] = []
        for mask in predecessors(self.steps, self.buffers):
            depth.append(1 + max((d for k, d in enumerate(depth) if mask >> k & 1), default=0))
        return self.ordered(sorted(range(len(depth)), key=lambda k: depth[k]))

    def shuffled(self, rng: random.Random) -> Program:
        before = predecessors(self.steps, self.buffers)
        order: list[int] = []
        done = 0
        while len(order) < len(before):
            ready = [t for t, mask in enumerate(before) if not (mask & ~done or done >> t & 1)]
            order.append(rng.choice(ready))
            done |= 1 << order[-1]
        return self.ordered(order)

    def bound(self) -> int:
        """From the live ranges themselves, not from the search."""
        ranges = live_ranges(self.steps, self.buffers)
        return max(
            rounded(step.scratch) + sum(rounded(r.bytes) for r in ranges if r.first <= k <= r.last)
            for k, step in enumerate(self.steps)
        )


def rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def report(name: str, program: Program) -> None:
    times = []
    for _ in range(5):
        start = time.thread_time()
        found = reorder(program.steps, program.buffers, alignment=ALIGNMENT)
        times.append(time.thread_time() - start)
    assert program.ordered(found.order).bound() == found.bound
    wide = program.breadth_first()
    shuffled = [program.shuffled(random.Random(seed)) for seed in range(SHUFFLES)]
    others = [reorder(p.steps, p.buffers, alignment=ALIGNMENT).bound for p in (wide, *shuffled)]
    apart = reorder(program.steps, program.buffers, alignment=ALIGNMENT, inplace=False).given
    proved = "yes" if found.proved else "?"
    print(f"{name:14} {len(program.steps):>7} {apart / MIB:>9.3f}"
          f" {found.given / MIB:>9.3f} {found.bound / MIB:>9.3f}  {proved:4}"
          f" {min(times) * 1e3:>6.1f} | {wide.bound() / MIB:>9.3f}"
          f" {max(p.bound() for p in shuffled) / MIB:>9.3f} {max(others) / MIB:>9.3f}",
          flush=True)  # fmt: skip


def from_fork(graph: Graph) -> Graph:
    """What comes behind the first result that several ops read."""
    fork = next(op.outputs[0] for op in graph.ops if len(graph.consumers[op.outputs[0]]) > 1)
    needed = set(graph.outputs)
    ops: list[Op] = []
    for op in reversed(graph.ops):
        if needed.intersection(op.outputs) and fork not in op.outputs:
            needed.update(op.reads)
            ops.insert(0, op)
    kept = {n for op in ops for n in (*op.reads, *op.outputs)}
    blobs = {n: b for n, b in graph.blobs.items() if n in kept}
    blobs[fork] = replace(blobs[fork], role=Role.INPUT)
    return Graph(graph.name, (fork,), graph.outputs, tuple(ops), blobs)


def random_graph(rng: random.Random, count: int) -> Program:
    """Steps that read up to three of the results before them; whatever nobody reads goes to the
    last one. Sizes spread over 64 KiB to 4 MiB."""
    sizes = [2 ** rng.randrange(16, 23) for _ in range(count)]
    reads = [sorted(rng.sample(range(t), min(t, rng.choice((1, 1, 2, 3))))) for t in range(count)]
    unread = set(range(count - 1)) - {u for each in reads[:-1] for u in each}
    reads[-1] = sorted({*reads[-1], *unread})
    steps = tuple(
        Step(f"s{t}", tuple(f"b{u}" for u in each) or ("x",), (f"b{t}",))
        for t, each in enumerate(reads)
    )
    return Program(steps, tuple(BufferSpec(f"b{t}", size) for t, size in enumerate(sizes)))


# --------------------------------------------------------------------------- what is not shared


def sharing(c: Compilation) -> list[str]:
    """Every kernel that only moves data, and every one whose result takes new memory although an
    operand of the same size ends there."""
    places = resolve(c.plan.buffers)
    last: dict[str, int] = {}
    for k, step in enumerate(c.plan.steps):
        last |= {places[n].root: k for n in (*step.reads, *step.writes) if n in places}
    taken = {written for written, _ in c.plan.inplace}
    views = [b for b in c.plan.buffers if b.alias_of is not None]
    lines = [f"    {len(views)} views and parts; {len(taken)} results in place of an operand"]
    for k, (step, launch) in enumerate(zip(c.plan.steps, c.launches, strict=True)):
        ops = [c.graph.ops[j] for j in launch.ops]
        words = "+".join(op.operator for op in ops)
        if all(op.has(View) or op.has(Injective) or moves(op.operator) for op in ops):
            size = sum(c.graph.type(n).nbytes for n in step.writes)
            lines.append(f"    {k:3} copies {size / 1024:9.1f} KiB  {words}")
        for n in step.writes:
            ending = [
                r for r in step.reads
                if n in places and r in places and last[places[r].root] == k
                and places[r].root != places[n].root
                and places[r].bytes * places[r].rows == places[n].bytes * places[n].rows
            ]  # fmt: skip
            if ending and n not in taken:
                size = c.graph.type(n).nbytes
                lines.append(f"    {k:3} apart  {size / 1024:9.1f} KiB  {launch.kernel.template}"
                             f" {dict(launch.kernel.config)}: {words}")  # fmt: skip
    return lines


def moves(operator: str) -> bool:
    return operator in ("reformat", "identity", "concat")


if __name__ == "__main__":
    main()
