"""How much memory a model's activations take: our plan beside other planners on the same live
ranges, what each of our decisions saves, and the resident memory of whole processes.

    python benchmarks/memory.py                       all models
    python benchmarks/memory.py resnet50 net.onnx     these

The planners (benchmarks/planners.py) get the blocks that ours packs: what kernels leave in memory
and their scratch, in the order chosen, results in place of operands joined already. So the table
compares packing alone; every answer is checked for overlaps here. Times are medians over rounds in
which the planners take turns, in seconds of the thread's own clock; `plan` is all of ours: choosing
an order and what is in place, packing, and verifying. Peak resident memory is that of a process
which loads the model and runs it, batch 1 (benchmarks/processes.py), in its second start, when
built code is stored. Results go to a JSON file as they come; a second run measures only the models
that the file lacks (`--again` measures anew), and benchmarks/report.py makes a section of
docs/performance.md of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import models
import planners
import processes
from machine import about
from sheet import RESULTS, Sheet

from tilewright.compiler.api.compile import analyse
from tilewright.compiler.memory.buffers import round_up
from tilewright.compiler.memory.plan import MemoryPlan, pack_blocks, plan

DEFAULT: Final = RESULTS / "memory.json"
CONTESTANTS: Final = ("tilewright", "onnxruntime")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f".onnx files, or of: {', '.join(models.NAMES)}")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=1, help="of the processes (default: 1)")
    p.add_argument("--output", type=Path, default=DEFAULT, help=f"JSON file (default: {DEFAULT})")
    p.add_argument("--again", action="store_true", help="measure also what the file holds")
    args = p.parse_args()
    sheet = Sheet(args.output)
    for path in models.files(args.models):
        if not args.again and sheet.has(path.stem):
            continue
        found = measure(analyse(path).plan, args.rounds)
        facts = about(rounds=args.rounds, threads=args.threads)
        if path.stem in models.NAMES:
            found["processes"] = resident(path.stem, path, args.threads)
        sheet.put(path.stem, {"about": facts} | found)
        print(line(sheet.rows[-1]), flush=True)
    print(f"written to {sheet.file}")


def measure(made: MemoryPlan, rounds: int) -> dict[str, Any]:
    """Bytes and seconds of all planners, and what each of our decisions saves."""
    align = made.alignment
    blocks = [(b.first, b.last, round_up(b.bytes, align)) for b in made.ranges]
    bound = planners.lower_bound(blocks)
    assert bound == made.alive_bytes, "the plan's bound is not that of its live ranges"
    contestants: dict[str, planners.Planner] = {
        **planners.PLANNERS, "ours": lambda _: list(pack_blocks(made.ranges, align).offsets)
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, planner in contestants.items():
        size = planners.height(blocks, planner(blocks))
        assert size >= bound, f"{name} is below the bound"
        found[name] = {"bytes": size}
    assert found["ours"]["bytes"] == made.arena_bytes
    calls: dict[str, Callable[[], Any]] = {
        name: lambda planner=planner: planner(blocks) for name, planner in contestants.items()
    }
    steps, buffers = made.given, made.buffers
    calls["plan"] = lambda: plan(steps, buffers, keep=made.keep, alignment=align)
    seconds = medians(calls, rounds)
    for name in contestants:
        found[name]["seconds"] = seconds[name]
    return {
        "steps": len(made.steps), "blocks": len(blocks), "bound_bytes": bound,
        "unshared_bytes": made.unshared_bytes, "plan_seconds": seconds["plan"],
        "planners": found, "levers": {x.name: x.saved for x in made.levers()},
    }  # fmt: skip


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            times[name].append(time.thread_time() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def resident(name: str, path: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Peak bytes of a process per contestant, and what its imports took of them."""
    found: dict[str, dict[str, Any]] = {}
    for contestant in CONTESTANTS:
        cost, _ = processes.measure(contestant, path, models.sample(name), threads)
        found[contestant] = cost if "error" in cost else {
            field: cost["warm"][field] for field in ("peak_bytes", "import_bytes")
        }  # fmt: skip
    return found


def line(r: dict[str, Any]) -> str:
    """One row of the table."""
    text = f"{r['name']:14s} bound {r['bound_bytes'] / 2**20:8.3f} MiB"
    for name, x in r["planners"].items():
        text += f"  {name} {x['bytes'] / max(r['bound_bytes'], 1):.3f}"
    for name, x in r.get("processes", {}).items():
        peak = x.get("peak_bytes")
        text += f"  {name} {f'{peak / 2**20:.0f} MiB' if peak else x['error']}"
    return text


if __name__ == "__main__":
    main()
