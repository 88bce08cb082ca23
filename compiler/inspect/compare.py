"""Two runs of a model: what became faster, what slower, and where no difference can be shown.

The times of a run are kept with every sample, launch by launch. Launches are compared by the model
nodes that they compute: where fusion or templates differ, as the smallest sets of nodes that share
no launch with others in either run (`rollup.py`).

What disturbs a run adds to its times, and never takes anything off. Clock rates and neighbours
change more slowly than runs follow each other; where a program lies in memory, which decides what
its caches hold, does not change at all while it lives. So a run is taken in blocks, each with a
program that was opened anew, and a block stands for its least time. Where the times of all blocks
of one run are above those of the other, that is no chance: 6 and 6 of them fall so once in 462
times. By how much they differ has to exceed what the same code may differ by, too, for a verdict,
and what taking the time of so many launches may be off by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, inf
from typing import Any, Final, Literal

from ...autotune.statistics import median
from ..errors import OptionError
from ..text import human_time, printable, table
from .profile import Profile
from .rollup import parts

Verdict = Literal["faster", "slower", "no difference can be shown", "only before", "only now"]

FORMAT: Final = 1
APART: Final = 0.05
"""How far intervals of two processes may be apart that ran the same code."""
TOGETHER: Final = 0.01
"""The same of two programs that took turns in one process."""
TIMING: Final = 5e-8
"""Seconds of each launch on a CPU that are not to be told from what taking its time costs: that is
taken off, as it was in the median, and clocks tell some tens of nanoseconds apart at best."""
DRIFT: Final = 0.03
"""A change of the machine's multiply-add peak that is worth a remark."""
BLOCKS: Final = 6
"""Of a run."""
LEAST_CHANCES: Final = 20
"""So many orders of all blocks there must be for one to be no chance: 4 and 4 blocks have 35."""
MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """One launch. nodes: the model nodes that it computes; seconds: of each run, in order."""

    kernel: str
    nodes: tuple[str, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What is kept of a profile. device: the machine, in words. flops: its multiply-add peak then.
    blocks: how many programs took the samples, one after another, about as many each. timing:
    seconds that the time of a launch may be off by.
    """

    model: str
    device: str
    threads: int
    numerics: str
    flops: float
    launches: tuple[LaunchTimes, ...]
    blocks: int = 1
    timing: float = TIMING

    @property
    def rounds(self) -> int:
        return len(self.launches[0].seconds) if self.launches else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "tilewright profile": FORMAT, "model": self.model, "device": self.device,
            "threads": self.threads, "numerics": self.numerics, "flops": self.flops,
            "blocks": self.blocks, "timing": self.timing,
            "launches": [{"kernel": x.kernel, "nodes": list(x.nodes),
                          "nanoseconds": [round(s * 1e9, 1) for s in x.seconds]}
                         for x in self.launches],
        }  # fmt: skip


def run_of(
    profile: Profile, samples: Sequence[Sequence[float]], model: str, device: str, numerics: str,
    blocks: int = 1, timing: float = TIMING,
) -> Run:  # fmt: skip
    """A profile with the seconds of every launch in each run, each off by `timing` at most."""
    launches = tuple(
        LaunchTimes(row.kernel, row.nodes, tuple(run[k] for run in samples))
        for k, row in enumerate(profile.rows)
    )
    return Run(model, device, profile.limits.threads, numerics, profile.limits.flops, launches,
               blocks, timing)  # fmt: skip


def read_run(text: str, where: str) -> Run:
    """A run that `Run.as_json` wrote. where: for errors. Raises OptionError for what is none."""
    try:
        data = json.loads(text)
        version = data["tilewright profile"]
        run = _run(data) if version == FORMAT else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise OptionError(f"{where}: is no profile ({type(e).__name__}: {e}); "
                          "`tilewright profile --json FILE` writes one") from e  # fmt: skip
    if run is None:
        raise OptionError(f"{where}: is a profile of format {version!r}, and this version of "
                          f"Tilewright reads {FORMAT}: profile that model again")  # fmt: skip
    counts = sorted({len(x.seconds) for x in run.launches})
    if len(counts) > 1 or not 1 <= run.blocks <= max(run.rounds, 1) or 0 in counts:
        raise OptionError(f"{where}: {run.blocks} blocks of {counts} samples make no sense: "
                          "all launches have the same number, one in a block at least")  # fmt: skip
    if not all(0 < s < 1e6 for x in run.launches for s in x.seconds):
        raise OptionError(f"{where}: holds times that are none")
    return run


def _run(data: Mapping[str, Any]) -> Run:
    launches = tuple(
        LaunchTimes(str(x["kernel"]), tuple(map(str, x["nodes"])),
                    tuple(float(ns) / 1e9 for ns in x["nanoseconds"]))
        for x in data["launches"]
    )  # fmt: skip
    return Run(
        str(data["model"]), str(data["device"]), int(data["threads"]), str(data["numerics"]),
        float(data["flops"]), launches, int(data["blocks"]), float(data.get("timing", TIMING)),
    )  # fmt: skip


# --------------------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True)
class Change:
    """What became of some nodes. before, now: seconds of an undisturbed run, None where only the
    other run has them. low, high: between which the ratio of now to before lies."""

    nodes: tuple[str, ...]
    before: float | None
    now: float | None
    low: float
    high: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        return (self.now or 0.0) / (self.before or 1.0) if self.before and self.now else 1.0

    def as_json(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes), "before": self.before, "now": self.now,
                "ratio": self.ratio, "low": self.low, "high": self.high,
                "verdict": self.verdict}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """whole: all launches. parts: those whose time changed by most first. remarks: why the runs may
    not compare. in_turns: whether they took turns in one process."""

    whole: Change
    parts: tuple[Change, ...]
    remarks: tuple[str, ...]
    in_turns: bool

    def count(self, verdict: Verdict) -> int:
        return sum(c.verdict == verdict for c in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {"whole": self.whole.as_json(), "parts": [c.as_json() for c in self.parts],
                "remarks": list(self.remarks), "in_turns": self.in_turns}  # fmt: skip

    def __str__(self) -> str:
        shown = [c for c in self.parts if c.verdict != "no difference can be shown"]
        rows = [(_time(c.before), _time(c.now), *_ratio(c), c.verdict,
                 printable(" + ".join(c.nodes))) for c in shown]  # fmt: skip
        lines = [table(rows, ("before", "now", "ratio", "interval", "verdict", "nodes"), "rrrl")] \
            if rows else []  # fmt: skip
        w = self.whole
        alike = self.count("no difference can be shown")
        lines += [f"{alike} of {len(self.parts)} parts: no difference can be shown",
                  f"all: {_time(w.before)} -> {_time(w.now)}, {' '.join(_ratio(w))}: {w.verdict}",
                  *(f"note: {r}" for r in self.remarks)]  # fmt: skip
        return "\n".join(lines)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else human_time(seconds)


def _ratio(c: Change) -> tuple[str, str]:
    if c.before is None or c.now is None:
        return "-", ""
    return f"{c.ratio:.3f}", f"({c.low:.3f} to {c.high:.3f})"


def compare(before: Run, now: Run, *, in_turns: bool = False) -> Comparison:
    """What changed. in_turns: the runs took turns in one process."""
    chances = comb(before.blocks + now.blocks, now.blocks) / 2
    margin = (TOGETHER if in_turns else APART) if chances >= LEAST_CHANCES else inf
    first = len(before.launches)
    together = parts([_names(x) for x in (*before.launches, *now.launches)])
    changes = []
    for part in together:
        old = [before.launches[k] for k in part.launches if k < first]
        new = [now.launches[k - first] for k in part.launches if k >= first]
        names = tuple(n for n in part.nodes if not n.startswith("\0"))
        changes.append(_change(names or (_kernel(old, new),), _known(old, before),
                               _known(new, now), margin))  # fmt: skip
    changes.sort(key=lambda c: -abs((c.now or 0.0) - (c.before or 0.0)))
    whole = _change((), _known(before.launches, before),
                    _known(now.launches, now), margin)  # fmt: skip
    return Comparison(whole, tuple(changes), _remarks(before, now), in_turns)


def _names(x: LaunchTimes) -> tuple[str, ...]:
    """What a launch is known by in the other run; one that computes no node, by its kernel."""
    return x.nodes or (f"\0{x.kernel}",)


def _kernel(*launches: Sequence[LaunchTimes]) -> str:
    """The first kernel of launches."""
    return next(x.kernel for some in launches for x in some)


@dataclass(frozen=True, slots=True)
class _Known:
    """The least times of the blocks of a run: their median, and the ends. hidden: what taking them
    may be off by."""

    middle: float
    low: float
    high: float
    hidden: float


def _known(launches: Sequence[LaunchTimes], run: Run) -> _Known | None:
    """Of some launches of a run together; None of none."""
    if not launches:
        return None
    samples = [sum(each) for each in zip(*(x.seconds for x in launches), strict=True)]
    edges = [len(samples) * k // run.blocks for k in range(run.blocks + 1)]
    least = sorted(min(samples[a:b]) for a, b in pairwise(edges))
    return _Known(median(least), least[0], least[-1], run.timing * len(launches))


def _change(
    nodes: tuple[str, ...], before: _Known | None, now: _Known | None, margin: float
) -> Change:  # fmt: skip
    if before is None:
        return Change(nodes, None, now.middle if now else None, 1.0, 1.0, "only now")
    if now is None:
        return Change(nodes, before.middle, None, 1.0, 1.0, "only before")
    low, high = now.low / before.high, now.high / before.low
    hidden = max(before.hidden, now.hidden)
    verdict: Verdict = "no difference can be shown"
    if high < 1 - margin and before.low - now.high > hidden:
        verdict = "faster"
    elif low > 1 + margin and now.low - before.high > hidden:
        verdict = "slower"
    return Change(nodes, before.middle, now.middle, low, high, verdict)


def _remarks(before: Run, now: Run) -> tuple[str, ...]:
    found = []
    pairs: Mapping[str, tuple[object, object]] = {
        "model": (before.model, now.model), "device": (before.device, now.device),
        "threads": (before.threads, now.threads), "numerics": (before.numerics, now.numerics),
    }  # fmt: skip
    for what, (a, b) in pairs.items():
        if a != b:
            found.append(f"{what}: {a} before, {b} now")
    if before.flops and abs(now.flops / before.flops - 1) > DRIFT:
        found.append(f"the machine: its multiply-add peak was {before.flops / 1e9:.0f} GFLOP/s "
                     f"before and is {now.flops / 1e9:.0f} now")  # fmt: skip
    fewest = min(before.blocks, now.blocks)
    if fewest < BLOCKS:
        found.append(f"{fewest} blocks are few, {BLOCKS} rounds make {BLOCKS}: less can be shown")
    return tuple(found)
