"""Records how long every candidate of some problems takes, and compares searches on that.

    python benchmarks/autotune_search.py                 what strategies make of the recordings
    python benchmarks/autotune_search.py --record        measures what they lack first; goes on
                                                         where it was interrupted
    python benchmarks/autotune_search.py --record --models squeezenet mobilenet --count 20

Recorded are distinct convolutions, matrix products and attentions of the models, as many of each
kernel template as it takes in turn to make up the count, each with its whole space. Candidates are
measured as by `tilewright tune` (in a process of its own, with cold weights, checked), one thread,
all candidates of a problem in turn.

A curve says how good the best of the first n candidates is that a strategy runs, as a share of the
best of the whole space; n counts the default, with which every strategy begins. `15 %` of a space
is rounded up: of fewer than 7 candidates it is the default alone.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import models
from sheet import RESULTS

from tilewright.autotune.choice import MARGIN
from tilewright.autotune.distance import distance
from tilewright.autotune.outcome import Failure
from tilewright.autotune.recording import Recording, read, write
from tilewright.autotune.replay import curve, share, trace, within
from tilewright.autotune.runner import Request, Runner
from tilewright.autotune.strategies.halving import Halving
from tilewright.autotune.strategies.random import Shuffled
from tilewright.autotune.task import Candidate, Key, Task
from tilewright.autotune.transfer import starts
from tilewright.compiler.api.build import device_of
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.text import table
from tilewright.compiler.tuning.local import local_runner
from tilewright.compiler.tuning.tasks import tasks_of
from tilewright.compiler.tuning.tuned import VERSIONS

FILE: Final = RESULTS / "autotune_spaces.json"
KINDS: Final = ("direct_conv", "winograd", "gemm", "depthwise_conv", "grouped_conv", "attention")
"""Templates of the defaults of the problems that are looked at."""

SHARES: Final = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
COUNTS: Final = (1, 2, 3, 5, 8)
SEEDS: Final = 20
"""Random orders whose mean is the baseline."""

NEAR: Final = 2
"""Recorded winners that a held-out problem starts from, as in a tuning session."""

LARGE: Final = 20
"""Candidates of spaces of which 15 % is more than one or two."""

ROUNDS: Final = 16

FLOPS: Final = 1e9
"""Of recorded problems, at most: whole spaces of larger ones take minutes."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--record", action="store_true", help="measure problems that the file lacks")
    p.add_argument("--models", nargs="*", default=list(models.NAMES), help="names, or .onnx files")
    p.add_argument("--count", type=int, default=40, help="problems to record (default: 40)")
    p.add_argument("--seconds", type=float, default=math.inf, help="end recording after these")
    p.add_argument("--file", type=Path, default=FILE, help="recordings")
    args = p.parse_args()
    if args.record:
        chosen = mixed([t for t, _ in tasks(args.models)], args.count)
        end = time.monotonic() + args.seconds
        with local_runner() as runner:
            record(chosen, runner, args.file, end)
    recordings = fitting(read(args.file))
    print(f"{len(recordings)} problems, {sum(len(r.task.space) for r in recordings)} candidates")
    print(describe(curves(recordings)))


# --------------------------------------------------------------------------- recording


def tasks(names: Sequence[str], numerics: str = "standard") -> Iterator[tuple[Task, str]]:
    """The distinct problems of models that are contractions, each with the first model that has it;
    for one thread."""
    seen: set[str] = set()
    for file in models.files(names):
        c = analyse(file, threads=1, numerics=numerics)
        for use in tasks_of(c, device_of(c.target, c.options)):
            task = use.task
            if task.default.template in KINDS and task.key.digest not in seen:
                seen.add(task.key.digest)
                yield task, file.stem


def mixed(found: Sequence[Task], count: int) -> list[Task]:
    """So many of the smaller tasks: of each template in turn, spread evenly over their order."""
    small = [t for t in found if t.features.get("flops", 0.0) <= FLOPS]
    by_kind = [[t for t in small if t.default.template == kind] for kind in KINDS]
    wanted = [0] * len(KINDS)
    while sum(wanted) < min(count, len(small)):
        for k, some in enumerate(by_kind):
            if wanted[k] < len(some) and sum(wanted) < count:
                wanted[k] += 1
    return [
        some[j * len(some) // n] for some, n in zip(by_kind, wanted, strict=True) for j in range(n)
    ]


def record(chosen: Sequence[Task], runner: Runner, file: Path, end: float) -> None:
    """Measure whole spaces, each at once, and write the file after each."""
    known = read(file) if file.exists() else []
    for number, task in enumerate(chosen, 1):
        short = short_task(task)
        if any(r.task.key == short.key and r.task.space == short.space for r in known):
            continue
        if time.monotonic() >= end:
            break
        start = time.monotonic()
        request = Request(tuple(range(len(task.space))), ROUNDS)
        outcomes = dict(runner.run(task, request, math.inf))
        if len(outcomes) < len(task.space):
            print(f"left out, not everything was measured: {task.label}")
            continue
        made = Recording(short, tuple(outcomes[k] for k in range(len(task.space))))
        known = [*(r for r in known if r.task.key != short.key), made]
        write(file, known)
        ratio = made.seconds.get(0, math.nan) / made.best
        took = time.monotonic() - start
        print(f"{number:3}/{len(chosen)} {task.default.template:14} {len(task.space):3} candidates,"
              f" default / best {ratio:.3f}, {took:4.1f} s  {task.label}", flush=True)  # fmt: skip
        for candidate, o in zip(task.space, made.outcomes, strict=True):
            if isinstance(o, Failure):
                print(f"    {candidate} failed: {o.kind}, {o.detail}")


def short_task(task: Task) -> Task:
    """The same without texts that only who makes kernels needs."""
    key = Key(task.key.digest, "", task.key.numerics)
    return replace(task, key=key, payload="", label=f"{task.default.template}: {task.label}")


def fitting(recordings: Sequence[Recording]) -> list[Recording]:
    """The recordings whose candidates are all of the templates of today: others say how searches
    did, not how they do."""
    return [r for r in recordings
            if all(VERSIONS.get(c.template) == c.version for c in r.task.space)]  # fmt: skip


# --------------------------------------------------------------------------- comparing


STRATEGIES: Final = ("random", "estimates", "halving", "halving, held out")
Some = list[tuple[int, tuple[float, ...]]]
"""For every problem the size of its space and a curve."""


def curves(
    recordings: Sequence[Recording], names: Sequence[str] = STRATEGIES
) -> dict[str, Some]:  # fmt: skip
    """Of the search, without and with starts from the other recordings; of the estimates alone; of
    random orders, whose curves are averaged."""

    def run(r: Recording, first: Sequence[int] = ()) -> tuple[float, ...]:
        return trace(r, Halving(enough=0.0), first).curve

    def chance(r: Recording) -> tuple[float, ...]:
        every = [trace(r, Shuffled(seed)).curve for seed in range(SEEDS)]
        return tuple(map(fmean, zip(*every, strict=True)))

    of = dict(zip(STRATEGIES, (
        chance, lambda r: curve(r, r.task.ranked()), run,
        lambda r: run(r, starts(r.task, near(r, recordings))),
    ), strict=True))  # fmt: skip
    return {name: [(len(r.task.space), of[name](r)) for r in recordings] for name in names}


def near(held_out: Recording, recordings: Sequence[Recording]) -> list[Candidate]:
    """Winners of the recordings that are nearest to another one, the nearest first."""
    found = []
    for number, r in enumerate(recordings):
        templates = {c.template for c in held_out.task.space}
        best = min(r.seconds, key=r.seconds.__getitem__)
        far = distance(held_out.task.features, r.task.features)
        if r is not held_out and far is not None and r.task.space[best].template in templates:
            found.append((far, number, r.task.space[best]))
    return [c for _, _, c in sorted(found, key=lambda f: f[:2])[:NEAR]]


def summary(some: Some) -> dict[str, Any]:
    """By share of the space and by number of candidates, over problems: median, mean, minimum, and
    how many of them come to 95 % of the best."""
    by_share = {f"{part:.0%}": [within(c, share(n, part)) for n, c in some] for part in SHARES}
    by_count = {str(k): [within(c, k) for _, c in some] for k in COUNTS}
    return {
        kind: {k: {"median": median(v), "mean": fmean(v), "least": min(v),
                   "near": sum(x >= 0.95 for x in v)} for k, v in by.items()}
        for kind, by in (("share", by_share), ("count", by_count))
    }  # fmt: skip


def describe(found: dict[str, Some]) -> str:
    """A table: median and least over problems."""
    rows = []
    for name, some in found.items():
        made = summary(some)
        rows.append([name, *(
            f"{v['median']:.1%} {v['least']:.0%}" for by in ("share", "count")
            for v in made[by].values()
        )])  # fmt: skip
    header = ["median, least", *(f"{part:.0%}" for part in SHARES), *(f"{k} runs" for k in COUNTS)]
    return table(rows, header, "lrrrrrrrrrrr")


def jitter(recordings: Sequence[Recording], most: float, tunings: int = 3) -> dict[str, Any]:
    """What becomes of the choice where samples are off by up to that share: how often the winner is
    slower by more than the margin than the fastest that ran, by how much at most, how often slower
    than the default, and of how many problems all tunings choose the same."""
    wrong, slower, same, excess, rounds = 0, 0, 0, 0.0, []
    for r in recordings:
        chosen = []
        for seed in range(tunings):
            t = trace(r, Halving(), jitter=most, seed=seed)
            won = r.seconds[r.task.places[t.winner]]
            ratio = won / min(r.seconds[k] for k in t.order if k in r.seconds)
            excess = max(excess, ratio - 1)
            wrong += ratio > 1 + MARGIN
            slower += won > r.seconds.get(0, math.inf)
            chosen.append(t.winner)
            rounds.append(t.rounds / len(t.order))
        same += len(set(chosen)) == 1
    n = len(recordings)
    return {"jitter": most, "problems": n, "tunings": tunings, "wrong": wrong / (n * tunings),
            "excess": excess, "slower": slower / (n * tunings), "agree": same / n,
            "rounds": fmean(rounds)}  # fmt: skip


if __name__ == "__main__":
    main()
