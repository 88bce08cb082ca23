"""How soon the tuner finds good kernels, how sure it is of them, and how good the defaults are.

    python benchmarks/autotune.py                    all figures, in some 12 minutes; goes on where
                                                     it was interrupted
    python benchmarks/autotune.py --minutes 30       more problems for the table of defaults
    python benchmarks/autotune.py --only regret transfer jitter     nothing is measured: a minute
    python benchmarks/autotune.py --only retune      the three tunings alone, with a quarter of the
                                                     minutes; likewise for each of the parts
    python benchmarks/autotune.py --fresh            forgets what was measured

Results go to results/autotune.json and results/autotune.svg; benchmarks/report.py makes a section
of docs/performance.md of them. The parts:

    spaces     measures whole spaces of 40 problems (autotune_search.py --record), in four tenths
               of the time; those of older templates are replaced, and never used
    regret     how good the best of the first n candidates is, replaying those
    transfer   the same where each problem starts from what won in the nearest others
    jitter     which winners come of it if samples are off by up to 1 %, 3 %, 10 %
    retune     three tunings of some problems, measured anew each time: do they agree?
    defaults   every contraction of the models searched: the default over the best

What is measured for `defaults` is kept in a file of records, as long as there is the file with the
results. Problems of less than a GFLOP come first, otherwise in an order that has nothing to do with
models, so that those that there is time for stand for the others.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import models
from autotune_plot import Panel, draw
from autotune_search import (
    FILE,
    FLOPS,
    LARGE,
    NEAR,
    Some,
    curves,
    fitting,
    jitter,
    mixed,
    record,
    summary,
    tasks,
)
from machine import about
from sheet import RESULTS, Sheet

from tilewright.autotune.choice import winner
from tilewright.autotune.outcome import Measurement, Outcome
from tilewright.autotune.recording import Recording, read, write
from tilewright.autotune.records import Records
from tilewright.autotune.replay import within
from tilewright.autotune.runner import Request, Runner, Strategy
from tilewright.autotune.strategies.halving import Halving
from tilewright.autotune.task import Candidate, Task
from tilewright.autotune.transfer import starts
from tilewright.compiler.store import cache_directory
from tilewright.compiler.tuning.local import local_runner

SPACES: Final = 40
AGAIN: Final = 16
"""Problems that are tuned three times."""
TUNINGS: Final = 3
PLAIN: Final = Halving()
QUICK: Final = Halving(most=32)
"""For ratios that need to be known to a percent only."""
DOUBTED: Final = 1.05
"""Defaults that are so much slower than the best are timed again, beside it alone."""
CONFIRMING: Final = 32
"""Samples of each then."""
RETUNE_SHARE: Final = 0.25
SPACES_SHARE: Final = 0.4
"""Of the time."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--models", nargs="*", default=list(models.NAMES), help="names, or .onnx files")
    p.add_argument("--minutes", type=float, default=12.0, help="for all of it (default: 12)")
    p.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="parts")
    p.add_argument("--output", type=Path, default=RESULTS / "autotune.json")
    p.add_argument("--spaces", type=Path, default=FILE, help="recorded spaces")
    p.add_argument("--records", type=Path, default=_records(), help="what `defaults` measured")
    p.add_argument("--fresh", action="store_true", help="forget what was measured")
    args = p.parse_args()
    begin = time.monotonic()
    if args.fresh:
        args.output.unlink(missing_ok=True)
        args.spaces.unlink(missing_ok=True)
    if not args.output.exists():
        args.records.unlink(missing_ok=True)
    run = Run(args, begin + 60 * args.minutes, Sheet(args.output))
    for name in PARTS:
        if name in args.only:
            start = time.monotonic()
            PARTS[name](run)
            print(f"== {name} took {time.monotonic() - start:.0f} s", flush=True)
    file = args.output.with_suffix(".svg")
    file.write_text(draw(panels(run.sheet.rows)), encoding="utf-8")
    print(f"written to {args.output} and {file}")


def _records() -> Path:
    root = cache_directory()
    folder = Path(tempfile.gettempdir()) if root is None else root
    return folder / "benchmarks" / "autotune.sqlite"


class Run:
    """What the parts share."""

    def __init__(self, args: argparse.Namespace, end: float, sheet: Sheet) -> None:
        self.args, self.end, self.sheet = args, end, sheet
        self._tasks: list[tuple[Task, str]] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.monotonic())

    @property
    def tasks(self) -> list[tuple[Task, str]]:
        """Every distinct contraction of the models, and the first model that has it."""
        if not self._tasks:
            self._tasks = list(tasks(self.args.models))
        return self._tasks

    @cached_property
    def recordings(self) -> list[Recording]:
        """The recorded spaces that are of today's templates."""
        every = read(self.args.spaces)
        found = fitting(every)
        print(f"{len(found)} of {len(every)} recorded spaces are of today's templates")
        if not found:
            raise SystemExit(f"{self.args.spaces} has no space of today's templates: --only spaces"
                             " measures some")  # fmt: skip
        return found

    def put(self, name: str, row: dict[str, Any]) -> None:
        """A result; what was measured when."""
        self.sheet.put(name, {"about": about(threads=1), **row})


# --------------------------------------------------------------------------- recorded spaces


def spaces(run: Run) -> None:
    """Measure what is missing of the recordings; those of older templates are dropped."""
    chosen = mixed([t for t, _ in run.tasks], SPACES)
    with local_runner() as runner:
        record(chosen, runner, run.args.spaces, time.monotonic() + SPACES_SHARE * run.left)
    write(run.args.spaces, fitting(read(run.args.spaces)))


def regret(run: Run) -> None:
    """Curves of all strategies."""
    run.put("regret", _compared(run.recordings, ("random", "estimates", "halving")))
    _say(run, "regret")


def transfer(run: Run) -> None:
    """Curves from scratch and from near winners."""
    run.put("transfer", _compared(run.recordings, ("random", "halving", "halving, held out")))
    _say(run, "transfer")


def _compared(recordings: Sequence[Recording], names: Sequence[str]) -> dict[str, Any]:
    found = curves(recordings, names)
    sizes = [len(r.task.space) for r in recordings]
    made = {}
    for name, some in found.items():
        large = [x for x in some if x[0] >= LARGE]
        made[name] = {**summary(some), "large": summary(large) if large else {},
                      "curve": _median_curve(some), "runs": _by_count(some)}  # fmt: skip
    return {"problems": len(sizes), "candidates": sum(sizes), "sizes": sizes,
            "large": sum(n >= LARGE for n in sizes), "strategies": made}  # fmt: skip


def _median_curve(some: Some) -> list[tuple[float, float]]:
    """Points (share of the space, median over problems)."""
    steps = [k / 50 for k in range(1, 51)]
    return [(s, median(within(c, max(1, math.ceil(s * n - 1e-9))) for n, c in some)) for s in steps]


def _by_count(some: Some) -> list[tuple[int, float]]:
    """Points (candidates run, mean over problems)."""
    return [(k, fmean(within(c, k) for _, c in some)) for k in range(1, 13)]


def _say(run: Run, name: str) -> None:
    row = next(r for r in run.sheet.rows if r["name"] == name)
    for strategy, made in row["strategies"].items():
        at, five = made["share"]["15%"], made["count"]["5"]
        print(f"{strategy:18} 15 % of the space: median {at['median']:.1%}, least "
              f"{at['least']:.1%}; 5 runs: median {five['median']:.1%}, least "
              f"{five['least']:.1%}")  # fmt: skip


def jittered(run: Run) -> None:
    """Choices under injected jitter."""
    rows = [jitter(run.recordings, most, TUNINGS) for most in (0.01, 0.03, 0.1)]
    run.put("jitter", {"rows": rows})
    for r in rows:
        print(f"jitter {r['jitter']:.0%}: {r['wrong']:.1%} of winners slower than the fastest by "
              f"more than the margin ({r['excess']:.1%} at most), {r['slower']:.1%} than the "
              f"default; {r['agree']:.0%} of {r['problems']} agree")  # fmt: skip


# --------------------------------------------------------------------------- measured anew


def searched(
    task: Task, runner: Runner, end: float, known: Sequence[tuple[int, Outcome]] = (),
    first: Sequence[int] = (), heard: Callable[[int, Outcome], object] = lambda *_: None,
    strategy: Strategy = PLAIN,
) -> tuple[dict[int, Outcome], bool]:  # fmt: skip
    """Outcomes of a search, and whether it came to its end."""
    search = strategy.search(task, known, first)
    outcomes = dict(known)
    while (request := search.ask()) is not None:
        told = []
        for place, outcome in runner.run(task, request, end):
            outcomes[place] = outcome
            told.append((place, outcome))
            heard(place, outcome)
        if time.monotonic() >= end:
            return outcomes, False
        search.tell(told)
    return outcomes, True


def retune(run: Run) -> None:
    """Tune some problems several times, each time with new processes and no records."""
    end = time.monotonic() + RETUNE_SHARE * run.left
    rows = []
    for task in mixed([t for t, _ in run.tasks], AGAIN):
        tunings = []
        for _ in range(TUNINGS):
            with local_runner() as runner:
                outcomes, whole = searched(task, runner, end)
            if whole:
                tunings.append({task.space[k]: o for k, o in outcomes.items()})
        if len(tunings) == TUNINGS:
            rows.append({"problem": task.label, **agreement(task, tunings)})
            word = "agree" if rows[-1]["agree"] else f"apart by {rows[-1]['apart']:.1%}"
            print(f"{task.label}: {word}: {'; '.join(rows[-1]['winners'])}", flush=True)
    run.put("retune", {"rows": rows, "tunings": TUNINGS})


def agreement(task: Task, tunings: Sequence[Mapping[Candidate, Outcome]]) -> dict[str, Any]:
    """Who won; and how far the winners' times are apart in one tuning, at most."""
    won = list(dict.fromkeys(winner(task.default, found) for found in tunings))
    apart = 0.0
    for found in tunings:
        times = [o.seconds for c in won if isinstance(o := found.get(c), Measurement)]
        apart = max(apart, max(times, default=1.0) / min(times, default=1.0) - 1)
    return {"candidates": len(task.space), "winners": [str(c) for c in won],
            "agree": len(won) == 1, "apart": apart}  # fmt: skip


def defaults(run: Run) -> None:
    """Search all problems, as many as there is time for."""
    found = sorted(run.tasks, key=lambda t: (t[0].features["flops"] > FLOPS, t[0].key.digest))
    rows = []
    run.args.records.parent.mkdir(parents=True, exist_ok=True)
    with Records(run.args.records) as records, local_runner() as runner, local_runner() as judge:
        for task, model in found:
            if not run.left:
                break
            row = _default(task, model, records, runner, run.end)
            if row is not None:
                rows.append(_confirmed(task, row, judge, run.end))
    ratios = [r["ratio"] for r in rows]
    run.put("defaults", {"problems": len(found), "rows": rows, "median": median(ratios or [1.0]),
                         "worst": max(ratios, default=1.0)})  # fmt: skip
    print(f"{len(rows)} of {len(found)} problems: default / best {median(ratios or [1.0]):.3f} in "
          f"the median, {max(ratios, default=1.0):.3f} at worst")  # fmt: skip
    for r in sorted(rows, key=lambda r: -r["ratio"])[:10]:
        print(f"  {r['ratio']:.3f} {r['model']:13} {r['default']} -> {r['best']}  {r['problem']}")


def _confirmed(task: Task, row: dict[str, Any], judge: Runner, end: float) -> dict[str, Any]:
    """The row, with both times taken anew and side by side where the default looks bad: the fastest
    of many looks faster than it is, and one disturbed default is enough for a bad ratio."""
    if row["ratio"] <= DOUBTED:
        return row
    best = next(k for k, c in enumerate(task.space) if str(c) == row["best"])
    again = dict(judge.run(task, Request((0, best), CONFIRMING), end))
    ratio = _ratio(task, again)
    return row if ratio is None else row | {"ratio": ratio, "seconds": again[0].seconds}


def _default(
    task: Task, model: str, records: Records, runner: Runner, end: float
) -> dict[str, Any] | None:
    """What a search finds, from what is recorded on; None where it came to no end."""
    features = dict(task.features)
    known = [(task.places[r.candidate], r.outcome) for r in records.of(task.key)
             if r.candidate in task.places]  # fmt: skip
    near = [r.candidate for r in records.near(task.key, features, NEAR)]

    def keep(place: int, outcome: Outcome) -> None:
        records.add(task.key, task.space[place], outcome, is_default=place == 0, features=features)

    outcomes, whole = searched(task, runner, end, known, starts(task, near), keep, QUICK)
    ratio = _ratio(task, outcomes)
    if not whole or ratio is None:
        return None
    times = {k: o for k, o in outcomes.items() if isinstance(o, Measurement)}
    best = min(times, key=lambda k: times[k].seconds)
    off = math.hypot(*((times[k].high - times[k].low) / 2 / times[k].seconds for k in (0, best)))
    return {"problem": task.label, "model": model, "template": task.default.template,
            "candidates": len(task.space), "tried": len(outcomes), "seconds": times[0].seconds,
            "ratio": ratio, "off": off, "default": str(task.default),
            "best": str(task.space[best])}  # fmt: skip


def _ratio(task: Task, outcomes: dict[int, Outcome]) -> float | None:
    """The default's time over the least."""
    times = {k: o.seconds for k, o in outcomes.items() if isinstance(o, Measurement)}
    return times[0] / min(times.values()) if 0 in times else None


# --------------------------------------------------------------------------- all of it


PARTS: Final[dict[str, Callable[[Run], None]]] = {
    "spaces": spaces, "regret": regret, "transfer": transfer, "jitter": jittered,
    "retune": retune, "defaults": defaults,
}  # fmt: skip


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """Diagrams of what there is."""
    by_name = {r["name"]: r for r in rows}
    out = []
    if "regret" in by_name:
        some = by_name["regret"]["strategies"]
        out.append(Panel("Best of a part of the space, median", "candidates run, of all",
                         (0, 0.5), (0.9, 1.0), {n: x["curve"] for n, x in some.items()},
                         (0.1, 0.02), (True, True), (0.97,)))  # fmt: skip
    if "transfer" in by_name:
        some = by_name["transfer"]["strategies"]
        out.append(Panel("Best of the first candidates, mean", "candidates run", (1, 12),
                         (0.9, 1.0), {n: x["runs"] for n, x in some.items()}, (1, 0.02),
                         (False, True), (0.95,)))  # fmt: skip
    if by_name.get("defaults", {}).get("rows"):
        ratios = sorted(r["ratio"] for r in by_name["defaults"]["rows"])
        points = [((k + 1) / len(ratios), r) for k, r in enumerate(ratios)]
        out.append(Panel("The default's time over the best", "problems", (0, 1),
                         (1.0, max(1.4, ratios[-1])), {"default / best": points}, (0.25, 0.1),
                         (True, False), (1.08, 1.35)))  # fmt: skip
    return out


if __name__ == "__main__":
    main()
