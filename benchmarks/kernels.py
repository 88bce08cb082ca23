"""How near to the machine's limits each kernel of a model comes.

    python benchmarks/kernels.py resnet50 squeezenet          one thread
    python benchmarks/kernels.py net.onnx --threads 2 --output kernels.json
    python benchmarks/kernels.py --below 0.85                 all models; only kernels below 85 %
    python benchmarks/kernels.py --moved                      how long would moving the bytes take?

A row per distinct kernel; where it is launched several times, the row is their mean. `of peak` is
the share of the measured multiply-add peak that the kernel's own multiply-adds reach; `as direct`
counts those of the problem as it is defined, which Winograd's algorithm needs fewer than: that
share may exceed 100 %. `of core` is the share of the time for which its instructions keep the
busiest unit of a core at work at least, `of memory` the share of the measured bandwidth of the
memory that it reads and writes, `of limit` the share of whichever binds. On one thread the clock is
the thread's own; several threads want the machine for themselves. What others do to caches, memory
and clock rate shows in no clock and only slows: a time is the lower quartile of the runs, as the
tuner's are, since the limits are the best that the machine was seen to do. The last line says what
the median would be.

With --moved, times are medians, and `of moving` is the time of a kernel that does nothing but read
the same inputs and write the same outputs, in the same place of the inference, over the kernel's
own (one thread; not where the multiply-adds take twice as long as the traffic). It says what the
bandwidths of whole levels cannot: where data really are by then, what short streams cost, and who
else uses the last cache and the memory.

With --output, results go to a JSON file as they come, with the machine, the versions and the
commit; a second run measures only the models that the file lacks (`--again` measures anew), and
benchmarks/report.py makes a section of docs/performance.md of it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import models
import numpy as np
from machine import about
from sheet import Sheet

import tilewright as tw
from tilewright.compiler.inspect.machine import Limits, limits
from tilewright.compiler.inspect.profile import Profile, ProfileRow, of_limit
from tilewright.compiler.text import table

WIDTH: Final = 40
"""Characters of a row's nodes."""

QUIET: Final = 0.25
"""The part of a launch's runs that are faster than what counts as its time."""

Row = dict[str, Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f".onnx files, or of: {', '.join(models.NAMES)}")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=40)
    p.add_argument("--below", type=float, default=float("inf"), help="show rows below this share")
    p.add_argument("--moved", action="store_true", help="time also what only moves the bytes")
    p.add_argument("--output", type=Path, help="JSON file")
    p.add_argument("--again", action="store_true", help="measure also what the file holds")
    args = p.parse_args()
    sheet = None if args.output is None else Sheet(args.output)
    limit = limits(args.threads)
    print(describe(limit))
    for name in args.models or models.NAMES:
        path = models.file_of(name)
        if sheet is not None and not args.again and sheet.has(path.stem):
            continue
        exe = tw.compile(path, threads=args.threads)
        assert isinstance(exe, tw.Executable)
        profile, median = profiled(exe, args.rounds, args.moved)
        slower = f"in the median {median / profile.seconds:.3f} times as long"
        print(f"\n{path.stem}\n{report(profile, args.below)}\n{slower}", flush=True)
        if sheet is not None:
            sheet.put(path.stem, {
                "about": about(threads=args.threads, rounds=args.rounds),
                "seconds": profile.seconds, "median_seconds": median,
                "limits": asdict(profile.limits),
                "kernels": kernels(profile),
            })  # fmt: skip
    if sheet is not None:
        print(f"written to {sheet.file}")


def profiled(exe: tw.Executable, rounds: int, moved: bool) -> tuple[Profile, float]:
    """The profile that counts; and the seconds of all launches by medians."""
    if moved:
        found = exe.profile(rounds=rounds, moved=True)
        return found, found.seconds
    samples = exe.samples(rounds=rounds)
    quiet, median = np.quantile(samples, (QUIET, 0.5), axis=0)
    return exe.profile_of([quiet.tolist()]), float(median.sum())


def describe(limit: Limits) -> str:
    """The machine's limits in two lines."""
    levels = ", ".join(
        f"{x.name} {x.read / 1e9:.0f}/{x.write / 1e9:.0f}/{x.copy / 1e9:.0f}" for x in limit.levels
    )
    return (f"{limit.threads} thread(s): {limit.flops / 1e9:.0f} GFLOP/s of multiply-adds\n"
            f"GB/s, read/write/copy: {levels}")  # fmt: skip


def kernels(profile: Profile) -> list[Row]:
    """A row per distinct kernel, longest first: seconds of all its launches together, shares as
    means over them."""
    groups: dict[str, list[ProfileRow]] = {}
    for r in profile.rows:
        groups.setdefault(r.kernel, []).append(r)
    out = []
    for kernel, same in groups.items():
        seconds = sum(r.seconds for r in same)
        of_peak = sum(r.compute_seconds for r in same) / max(seconds, 1e-12)
        direct = sum(r.flops for r in same) / max(sum(r.own_flops for r in same), 1)
        out.append({
            "kernel": kernel, "template": same[0].template, "launches": len(same),
            "seconds": seconds, "of_peak": of_peak, "as_direct": of_peak * direct,
            "of_core": sum(r.core_seconds for r in same) / max(seconds, 1e-12),
            "of_memory": sum(r.memory_seconds for r in same) / max(seconds, 1e-12),
            "of_limit": of_limit(same), "bound": same[0].bound, "level": same[0].level,
            "of_moving": of_moving(same), "nodes": same[0].label[:WIDTH],
        })  # fmt: skip
    return sorted(out, key=lambda r: -r["seconds"])


def of_moving(rows: Sequence[ProfileRow]) -> float | None:
    """What only moving the bytes of launches takes, over their time; None if not measured."""
    moved = [(r.moved_seconds, r.seconds) for r in rows if r.moved_seconds is not None]
    return sum(m for m, _ in moved) / sum(s for _, s in moved) if moved else None


def report(profile: Profile, below: float = float("inf")) -> str:
    """A row per distinct kernel, and shares weighted by time."""
    found = kernels(profile)
    rows = [
        (f"{r['seconds'] / r['launches'] * 1e6:.1f}", f"x{r['launches']}",
         f"{r['seconds'] / profile.seconds:.1%}", f"{r['of_peak']:.1%}", f"{r['as_direct']:.1%}",
         f"{r['of_core']:.1%}", f"{r['of_memory']:.1%}", f"{r['of_limit']:.1%}",
         "" if r["of_moving"] is None else f"{r['of_moving']:.0%}",
         r["level"] if r["bound"] == "memory" else r["bound"], r["kernel"], r["nodes"])
        for r in found if r["of_limit"] < below
    ]  # fmt: skip
    header = ("us", "", "share", "of peak", "as direct", "of core", "of memory", "of limit",
              "of moving", "bound by", "kernel", "nodes")  # fmt: skip
    total = [f"{profile.seconds * 1e3:.3f} ms, {profile.of_limit:.1%} of the limits"]
    for bound in ("arithmetic", "loads", "stores", "memory"):
        some = [r for r in found if r["bound"] == bound]
        if some:
            share = sum(r["seconds"] for r in some) / profile.seconds
            total.append(f"bound by {bound}: {share:.1%} of the time, "
                         f"{weighted(some, 'of_limit'):.1%} of the limit")  # fmt: skip
    reached = of_moving([replace(r, moved_seconds=min(r.moved_seconds, r.seconds))
                         for r in profile.rows if r.moved_seconds is not None])  # fmt: skip
    if reached is not None:
        total.append(f"{reached:.1%} of what moving the bytes takes")
    return f"{table(rows, header, 'rrrrrrrrr')}\n{'; '.join(total)}"


def weighted(rows: Sequence[Row], field: str) -> float:
    """The mean of a field, weighted by time."""
    return statistics.fmean([r[field] for r in rows], [r["seconds"] for r in rows])


if __name__ == "__main__":
    main()
