"""What a memory limit costs in speed.

    python benchmarks/limits.py resnet50 vgg19              two threads
    python benchmarks/limits.py inception_v1 --threads 1

A row per limit: none, half-way to the least that can be met, the least. `arena` is what the program
takes, `changed` how many kernels are others than without a limit. Programs take turns, so that what
else the machine does meets all of them; times are medians, with the spread of the middle half. On
one thread the clock is the thread's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import models
import numpy as np

import tilewright as tw
from tilewright.compiler.errors import MemoryLimitError
from tilewright.compiler.text import human_bytes, human_time, table


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f".onnx files, or of: {', '.join(models.NAMES)}")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=20)
    args = p.parse_args()
    for name in args.models or models.NAMES:
        path = models.file_of(name)
        programs = programs_of(path, args.threads)
        times = timed(programs, args.threads, args.rounds)
        print(f"\n{path.stem}, {args.threads} thread(s)\n{report(programs, times)}", flush=True)


def programs_of(path: Path, threads: int) -> list[tw.Executable]:
    """The program without a limit, and those with less memory that there are."""
    free = tw.compile(path, threads=threads)
    need = free.plan.arena_bytes
    try:
        tw.compile(path, threads=threads, memory_limit=0)
        return [free]
    except MemoryLimitError as e:
        low = e.least_bytes
    assert low is not None
    limits = [n for n in dict.fromkeys(((need + low) // 2, low)) if n < need]
    return [free, *(tw.compile(path, threads=threads, memory_limit=n) for n in limits)]


def timed(programs: Sequence[tw.Executable], threads: int, rounds: int) -> np.ndarray:
    """Seconds by program and round, after one round that does not count."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    rng = np.random.default_rng(0)
    feeds = [
        rng.standard_normal(s.shape).astype(s.dtype) if s.dtype.kind == "f"
        else np.ones(s.shape, s.dtype) for s in programs[0].inputs
    ]  # fmt: skip
    times = np.zeros((len(programs), rounds + 1))
    for turn in range(rounds + 1):
        for k, exe in enumerate(programs):
            start = clock()
            exe(*feeds)
            times[k, turn] = clock() - start
    return times[:, 1:]


def report(programs: Sequence[tw.Executable], times: np.ndarray) -> str:
    """A row per program."""
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75), axis=1)
    rows = []
    for k, exe in enumerate(programs):
        changed = sum(n.startswith("memory limit") for x in exe.kernels for n in x.notes)
        rows.append((
            human_bytes(exe.plan.arena_bytes), changed, human_time(middle[k]),
            f"{human_time(low[k])}..{human_time(high[k])}", f"{middle[k] / middle[0]:.2f}",
        ))  # fmt: skip
    return table(rows, ("arena", "changed", "time", "middle half", "to none"), "rrrrr")


if __name__ == "__main__":
    main()
