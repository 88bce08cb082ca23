"""How the tuner measures: what it costs, whether it repeats, and whether it tells of models.

    python benchmarks/measuring.py cost resnet50        time per candidate: build, check, timed runs
    python benchmarks/measuring.py repeat resnet50      the same candidates, measured three times
    python benchmarks/measuring.py conditions resnet50  hot and cold caches against inferences

`cost` builds into an empty store, in this process. `repeat` measures through worker processes as
tuning does, each time in new ones, and prints how far apart the times of a candidate are, and how
many are further apart than their intervals say. `conditions` compares the time of each task's
default kernel with what its first launch takes within inferences of the whole model, in turns;
`hot` is a kernel that is simply called again, `cold` is how the tuner does it. Its figures are the
medians of the calmest third of the samples of each, by the tuner's own probe.

--tasks N takes N tasks, spread over the model; --json FILE writes the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np

import tilewright as tw
from tilewright.autotune.outcome import Measurement
from tilewright.autotune.runner import Request
from tilewright.autotune.statistics import are_apart
from tilewright.compiler.api.build import device_of
from tilewright.compiler.tuning.bench import ProblemBench
from tilewright.compiler.tuning.local import local_runner
from tilewright.compiler.tuning.probe import strain
from tilewright.compiler.tuning.tasks import Use, tasks_of

Figures = list[dict[str, Any]]

IN_A_ROW = 4
"""Samples of one task at a time, as the tuner takes them; the first finds what another one left."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("what", choices=("cost", "repeat", "conditions"))
    p.add_argument("model", nargs="?", default="resnet50", help=f"of {', '.join(models.NAMES)}")
    p.add_argument("--tasks", type=int, default=10)
    p.add_argument("--candidates", type=int, default=6, help="of every task, spread over its space")
    p.add_argument("--rounds", type=int, default=10, help="samples of every candidate")
    p.add_argument("--times", type=int, default=3, help="measurements of every candidate")
    p.add_argument("--seconds", type=float, default=20, help="time of `conditions`")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    exe = tw.compile(models.path(args.model), threads=args.threads)
    c = exe._compilation
    uses = spread(tasks_of(c, device_of(c.target, c.options)), args.tasks)
    if args.what == "cost":
        figures = cost(uses, args.candidates, args.rounds)
    elif args.what == "repeat":
        figures = repeat(uses, args.candidates, args.rounds, args.times)
    else:
        figures = conditions(exe, uses, args.seconds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """So many of a sequence, at equal distances, from the first to the last."""
    count = min(count, len(found))
    return [found[k * (len(found) - 1) // max(count - 1, 1)] for k in range(count)]


def places(use: Use, count: int) -> list[int]:
    return spread(range(len(use.task.space)), count)


# --------------------------------------------------------------------------- cost


def cost(uses: Sequence[Use], candidates: int, rounds: int) -> Figures:
    """Milliseconds per candidate, of each step, and per task for what is made once."""
    figures: Figures = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TILEWRIGHT_CACHE"] = folder
        print("ms:  reference   build   check   timed    of one candidate of")
        for use in uses:
            bench = ProblemBench(use.task.payload, lambda *_: None)
            wanted = [(k, use.task.space[k]) for k in places(use, candidates)]
            reference = spent(bench.prepare)
            build = spent(lambda: [bench.build(*w) for w in wanted])  # noqa: B023
            check = spent(lambda: [bench.contender(*w) for w in wanted])  # noqa: B023
            counts = [rounds] * len(wanted)
            timed = spent(lambda: list(bench.measure(wanted, counts, math.inf)))  # noqa: B023
            each = [1e3 * s / len(wanted) for s in (build, check, timed)]
            figures.append({"task": use.task.label, "reference": 1e3 * reference}
                           | dict(zip(("build", "check", "timed"), each, strict=True)))  # fmt: skip
            print("     " + "".join(f"{x:8.1f}" for x in (1e3 * reference, *each)), use.task.label)
    names = "reference", "build", "check", "timed"
    medians = [statistics.median(f[n] for f in figures) for n in names]
    print("     " + "".join(f"{x:8.1f}" for x in medians), "median")
    return figures


def spent(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --------------------------------------------------------------------------- repeat


def repeat(uses: Sequence[Use], candidates: int, rounds: int, times: int) -> Figures:
    found: dict[tuple[int, int], list[Measurement]] = {}
    seconds = []
    for _ in range(times):
        with local_runner() as runner:
            start = time.monotonic()
            for number, use in enumerate(uses):
                request = Request(tuple(places(use, candidates)), rounds)
                for place, outcome in runner.run(use.task, request, math.inf):
                    if isinstance(outcome, Measurement):
                        found.setdefault((number, place), []).append(outcome)
                    else:
                        print(f"{use.task.label} {use.task.space[place]}: {outcome}")
            seconds.append(time.monotonic() - start)
    figures: Figures = []
    for (number, place), ms in found.items():
        middle = statistics.median(m.seconds for m in ms)
        figures.append({
            "task": uses[number].task.label, "candidate": str(uses[number].task.space[place]),
            "microseconds": [m.seconds * 1e6 for m in ms],
            "spread": (max(m.seconds for m in ms) - min(m.seconds for m in ms)) / middle,
            "interval": statistics.median((m.high - m.low) / m.seconds for m in ms),
            "apart": any(are_apart(a, b) for a in ms for b in ms),
            "contaminated": sum(m.contaminated for m in ms),
        })  # fmt: skip
    for number, use in enumerate(uses):
        own = [f for f, (n, _) in zip(figures, found, strict=True) if n == number]
        spreads = ", ".join(f"{f['spread']:.1%}" for f in own)
        print(f"{use.task.label:46s} {own[0]['microseconds'][0]:8.1f} us  spreads {spreads}")
    print(f"{len(figures)} candidates, {times} times, {rounds} rounds; "
          f"{statistics.median(seconds) / len(figures):.3f} s per candidate, with workers' start"
          f"\nspread of the medians: median {statistics.median(f['spread'] for f in figures):.2%}, "
          f"90th percentile {np.quantile([f['spread'] for f in figures], 0.9):.2%}"
          f"\nintervals: median {statistics.median(f['interval'] for f in figures):.2%} wide; "
          f"{sum(f['apart'] for f in figures)} candidates have two that do not meet"
          f"\ncontaminated: {sum(f['contaminated'] for f in figures)} of "
          f"{len(figures) * times} measurements")  # fmt: skip
    return figures


# --------------------------------------------------------------------------- conditions


def conditions(exe: tw.Executable, uses: Sequence[Use], seconds: float) -> Figures:
    inputs = [np.random.default_rng(0).standard_normal(s.shape).astype(s.dtype) for s in exe.inputs]
    taken: dict[tuple[int, str], list[tuple[float, float]]] = {}
    ready = []
    for use in uses:
        bench = ProblemBench(use.task.payload, lambda *_: None)
        bench.prepare()
        ready.append(bench.contender(0, use.task.default)[0])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        strains: list[float] = []
        ask = lambda *_: strains.append(strain())  # noqa: E731, B023
        _, spans = exe._program.timed(inputs, time.thread_time_ns, ask)
        ask()
        for number, use in enumerate(uses):
            for k in use.launches[:1]:
                pressure = max(strains[k : k + 2])
                taken.setdefault((number, "model"), []).append((pressure, spans[k]))
            made = ready[number]
            for how in ("hot", "cold"):
                for k in range(IN_A_ROW):
                    made.refresh(1) if how == "cold" else made.run(made.address(1))
                    before, address = strain(), made.address(1)
                    start = time.thread_time_ns()
                    made.run(address)
                    ns = time.thread_time_ns() - start
                    if k:
                        taken.setdefault((number, how), []).append((max(before, strain()), ns))
    figures: Figures = []
    for number, use in enumerate(uses):
        model, hot, cold = (calm(taken[number, how]) / 1e3 for how in ("model", "hot", "cold"))
        figures.append({"task": use.task.label, "model": model, "hot": hot, "cold": cold})
        print(f"{use.task.label:46s} in the model {model:8.1f} us   hot {hot / model:.3f}   "
              f"cold {cold / model:.3f}")  # fmt: skip
    for how in ("hot", "cold"):
        off = statistics.mean(abs(math.log(f[how] / f["model"])) for f in figures)
        print(f"{how}: off by {math.expm1(off):.1%} in the mean")
    return figures


def calm(found: Sequence[tuple[float, float]]) -> float:
    """The median of the third that was taken under the least pressure."""
    third = sorted(found)[: max(3, len(found) // 3)]
    return statistics.median(ns for _, ns in third)


if __name__ == "__main__":
    main()
