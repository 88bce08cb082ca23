"""How many calls a second one program answers, called from one or several threads.

    python benchmarks/callers.py
    python benchmarks/callers.py resnet50 --threads 1,2 --callers 1,2,4 --rounds 9

For every number of threads that run kernels, one program is called by 1, 2, ... threads of Python
in a loop, for a fixed time: `at once`, as they come; and `one by one`, where a lock lets a single
call in, as a program with one arena would have to. All settings take turns; reported are the median
calls per second, the spread (the quarter of the rounds below, and above), and the processor's time
per call, which says more on a busy machine. The arenas kept afterwards are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time

import models
import numpy as np

import tilewright as tw


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", nargs="?", default="squeezenet", help=f"of {', '.join(models.NAMES)}")
    p.add_argument("--threads", default="1,2", help="threads that run kernels, of each program")
    p.add_argument("--callers", default="1,2,4", help="threads that call")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=float, default=0.5, help="time of one turn")
    args = p.parse_args()
    path = models.path(args.model)
    programs = {int(n): tw.compile(path, threads=int(n)) for n in args.threads.split(",")}
    settings = [
        (threads, int(callers), way)
        for threads in programs
        for callers in args.callers.split(",")
        for way in (("at once", "one by one") if callers != "1" else ("at once",))
    ]
    rates: dict[tuple[int, int, str], list[tuple[float, float]]] = {s: [] for s in settings}
    for _ in range(args.rounds):
        for threads, callers, way in settings:
            found = turn(programs[threads], callers, way == "at once", args.seconds)
            rates[threads, callers, way].append(found)
    print(f"{args.model}, {args.rounds} rounds of {args.seconds} s")
    for (threads, callers, way), found in rates.items():
        low, middle, high = statistics.quantiles([rate for rate, _ in found], n=4)
        cost = statistics.median(cost for _, cost in found)
        print(f"threads={threads}  {callers} callers {way:10s} {middle:8.1f} calls/s   {low:.1f} to"
              f" {high:.1f}   {cost * 1e3:.2f} ms of processor time per call")  # fmt: skip
    for threads, exe in programs.items():
        held = exe._program.contexts.idle
        print(f"threads={threads}  arenas kept: {len(held)} of {exe.plan.arena_bytes} bytes")


def turn(exe: tw.Executable, callers: int, at_once: bool, seconds: float) -> tuple[float, float]:
    """Finished calls of all callers together, per second; and processor time per call."""
    lock = contextlib.nullcontext() if at_once else threading.Lock()
    start = threading.Barrier(callers + 1)
    counts = [0] * callers
    end = 0.0

    def work(k: int) -> None:
        x = [np.zeros(s.shape, s.dtype) for s in exe.inputs]
        exe(*x)
        start.wait()
        while time.perf_counter() < end:
            with lock:
                exe(*x)
            counts[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(callers)]
    for t in threads:
        t.start()
    while start.n_waiting < callers:
        time.sleep(0.001)
    used, begin = time.process_time(), time.perf_counter()
    end = begin + seconds
    start.wait()
    for t in threads:
        t.join()
    calls = sum(counts)
    return calls / (time.perf_counter() - begin), (time.process_time() - used) / calls


if __name__ == "__main__":
    main()
