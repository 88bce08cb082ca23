"""How near to the machine's limits each kernel of a model comes.

    python benchmarks/kernels.py resnet50 squeezenet          one thread
    python benchmarks/kernels.py net.onnx --threads 2 --output kernels.json
    python benchmarks/kernels.py --below 0.85                 all models; only kernels below 85 %

A row per launch: its share of the measured multiply-add peak, and of the measured bandwidth of the
memory it reads and writes; `of limit` is the share of whichever binds. Where a kernel is launched
several times on equal shapes, the row is their mean. On one thread the clock is the thread's own,
so that others on the machine disturb little; several threads want the machine for themselves.
The numbers go to a JSON file on request.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
from machine import about

import tilewright as tw
from tilewright.compiler.inspect.machine import Limits, limits
from tilewright.compiler.inspect.profile import Profile, ProfileRow, of_limit
from tilewright.compiler.text import table

WIDTH = 40
"""Characters of a row's nodes."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f".onnx files, or of: {', '.join(models.NAMES)}")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=30)
    p.add_argument("--below", type=float, default=float("inf"), help="show rows below this share")
    p.add_argument("--output", type=Path, help="JSON file")
    args = p.parse_args()
    limit = limits(args.threads)
    print(describe(limit))
    found = {}
    for name in args.models or models.NAMES:
        path = Path(name) if name.endswith(".onnx") else models.path(name)
        exe = tw.compile(path, threads=args.threads)
        assert isinstance(exe, tw.Executable)
        profile = exe.profile(rounds=args.rounds)
        found[path.stem] = profile
        print(f"\n{path.stem}\n{report(profile, args.below)}", flush=True)
    if args.output is not None:
        results = {name: profile.as_json() for name, profile in found.items()}
        facts = about(threads=args.threads, rounds=args.rounds)
        args.output.write_text(json.dumps({"about": facts, "results": results}, indent=1) + "\n")
        print(f"written to {args.output}")


def describe(limit: Limits) -> str:
    """The machine's limits in two lines."""
    levels = ", ".join(
        f"{x.name} {x.read / 1e9:.0f}/{x.write / 1e9:.0f}/{x.copy / 1e9:.0f}" for x in limit.levels
    )
    return (f"{limit.threads} thread(s): {limit.flops / 1e9:.0f} GFLOP/s of multiply-adds\n"
            f"GB/s, read/write/copy: {levels}")  # fmt: skip


def report(profile: Profile, below: float = float("inf")) -> str:
    """A row per distinct kernel, and shares weighted by time."""
    groups: dict[str, list[ProfileRow]] = {}
    for r in profile.rows:
        groups.setdefault(r.kernel, []).append(r)
    rows: list[tuple[Any, ...]] = []
    for kernel, same in sorted(groups.items(), key=lambda x: -sum(r.seconds for r in x[1])):
        share = of_limit(same)
        if share < below:
            r = same[0]
            rows.append((
                f"{statistics.fmean(x.seconds for x in same) * 1e6:.1f}", f"x{len(same)}",
                f"{sum(x.share for x in same):.1%}", f"{mean(same, 'of_peak'):.1%}",
                f"{mean(same, 'of_bandwidth'):.1%}", f"{share:.1%}",
                "peak" if r.bound == "compute" else r.level, kernel, r.label[:WIDTH],
            ))  # fmt: skip
    header = ("us", "", "share", "of peak", "of memory", "of limit", "bound", "kernel", "nodes")
    total = [f"{profile.seconds * 1e3:.3f} ms, {profile.of_limit:.1%} of the limits"]
    for bound in ("compute", "memory"):
        some = [r for r in profile.rows if r.bound == bound]
        if some:
            time = sum(r.seconds for r in some)
            total.append(f"{bound} bound: {time / profile.seconds:.1%} of the time, "
                         f"{of_limit(some):.1%} of the limit")  # fmt: skip
    return f"{table(rows, header, 'rrrrrr')}\n{'; '.join(total)}"


def mean(rows: Sequence[ProfileRow], field: str) -> float:
    """Of a figure of each launch."""
    return statistics.fmean(getattr(r, field) for r in rows)


if __name__ == "__main__":
    main()
