"""Two runs of a model: what became faster, what slower, and where no difference can be shown.

The times of a run are kept with every sample, launch by launch. Launches are compared by the model
nodes that they compute: where fusion or templates differ, as the smallest sets of nodes that share
no launch with others in either run (`rollup.py`).

A median is known to within an interval of order statistics, so wide that all of a comparison's
intervals hold with 95 % confidence together. Order statistics take samples for independent, which
those of one process are not: the clock rate and the neighbours change more slowly than runs follow
each other. So an interval also holds the medians of each third of the run. Runs that took turns in
one process are compared round by round, by the ratio of two neighbours, and nothing else tells them
apart; runs of two processes differ without any cause by as much as `APART`, which must be exceeded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ...autotune.statistics import interval, median
from ..errors import OptionError
from ..text import human_time, printable, table
from .profile import Profile
from .rollup import parts

Verdict = Literal["faster", "slower", "no difference can be shown", "only before", "only now"]

FORMAT: Final = 1
APART: Final = 0.03
"""How far medians of two processes may differ that ran the same code."""
TOGETHER: Final = 0.01
"""The same of two programs that took turns in one process: they lie elsewhere in memory."""
ERRORS: Final = 0.05
"""The probability that any of a comparison's intervals does not hold."""
MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """One launch. nodes: the model nodes that it computes; seconds: of each run, in order."""

    kernel: str
    nodes: tuple[str, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What is kept of a profile. device: the machine, in words. flops: its multiply-add peak then."""

    model: str
    device: str
    threads: int
    numerics: str
    flops: float
    launches: tuple[LaunchTimes, ...]

    @property
    def rounds(self) -> int:
        return len(self.launches[0].seconds) if self.launches else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "tilewright profile": FORMAT, "model": self.model, "device": self.device,
            "threads": self.threads, "numerics": self.numerics, "flops": self.flops,
            "launches": [{"kernel": x.kernel, "nodes": list(x.nodes),
                          "nanoseconds": [round(s * 1e9, 1) for s in x.seconds]}
                         for x in self.launches],
        }  # fmt: skip


def run_of(
    profile: Profile, samples: Sequence[Sequence[float]], model: str, device: str, numerics: str
) -> Run:  # fmt: skip
    """A profile with the seconds of every launch in each run."""
    launches = tuple(
        LaunchTimes(row.kernel, row.nodes, tuple(run[k] for run in samples))
        for k, row in enumerate(profile.rows)
    )
    return Run(model, device, profile.limits.threads, numerics, profile.limits.flops, launches)


def read_run(text: str, where: str) -> Run:
    """A run that `Run.as_json` wrote. where: for errors. Raises OptionError for what is none."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or "tilewright profile" not in data:
            raise OptionError(f"{where}: is no profile; `tilewright profile --json FILE` writes one")
        if data["tilewright profile"] != FORMAT:
            raise OptionError(f"{where}: is a profile of format {data['tilewright profile']!r}, and "
                              f"this version reads {FORMAT}: profile that model again")  # fmt: skip
        launches = tuple(
            LaunchTimes(str(x["kernel"]), tuple(map(str, x["nodes"])),
                        tuple(float(ns) / 1e9 for ns in x["nanoseconds"]))
            for x in data["launches"]
        )  # fmt: skip
        run = Run(str(data["model"]), str(data["device"]), int(data["threads"]),
                  str(data["numerics"]), float(data["flops"]), launches)  # fmt: skip
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise OptionError(f"{where}: is no profile ({type(e).__name__}: {e}); "
                          "`tilewright profile --json FILE` writes one") from e  # fmt: skip
    counts = {len(x.seconds) for x in launches}
    if counts and (len(counts) > 1 or not min(counts)):
        raise OptionError(f"{where}: its launches have {sorted(counts)} samples; "
                          "expected the same number of each, one at least")  # fmt: skip
    if not all(0 < s < 1e6 for x in launches for s in x.seconds):
        raise OptionError(f"{where}: holds times that are none")
    return run


# --------------------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True)
class Change:
    """What became of some nodes. before, now: median seconds, None where only the other run has
    them. low, high: where the true ratio of now to before lies."""

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
    """What changed. in_turns: sample k of both was taken in the same round of one process."""
    first = len(before.launches)
    together = parts([_names(x) for x in (*before.launches, *now.launches)])
    confidence = 1 - ERRORS / (len(together) + 1)
    changes = []
    for part in together:
        old = [before.launches[k] for k in part.launches if k < first]
        new = [now.launches[k - first] for k in part.launches if k >= first]
        names = tuple(n for n in part.nodes if not n.startswith("\0"))
        changes.append(_change(names or tuple(x.kernel for x in (*old, *new))[:1], _sums(old),
                               _sums(new), in_turns, confidence))  # fmt: skip
    changes.sort(key=lambda c: -abs((c.now or 0.0) - (c.before or 0.0)))
    whole = _change((), _sums(before.launches), _sums(now.launches), in_turns, confidence)
    return Comparison(whole, tuple(changes), _remarks(before, now), in_turns)


def _names(x: LaunchTimes) -> tuple[str, ...]:
    """What a launch is known by in the other run; one that computes no node, by its kernel."""
    return x.nodes or (f"\0{x.kernel}",)


def _sums(launches: Sequence[LaunchTimes]) -> list[float]:
    return [sum(each) for each in zip(*(x.seconds for x in launches), strict=True)]


def _change(
    nodes: tuple[str, ...], before: Sequence[float], now: Sequence[float], in_turns: bool,
    confidence: float,
) -> Change:  # fmt: skip
    if not before or not now:
        return Change(nodes, median(before) if before else None, median(now) if now else None, 1.0,
                      1.0, "only now" if now else "only before")  # fmt: skip
    if in_turns:
        low, high = _known([b / a for a, b in zip(before, now, strict=True)], confidence)
        margin = TOGETHER
    else:
        (a, b), (c, d) = _known(before, confidence), _known(now, confidence)
        low, high, margin = c / b, d / a, APART
    verdict: Verdict = "no difference can be shown"
    if high < 1 - margin:
        verdict = "faster"
    elif low > 1 + margin:
        verdict = "slower"
    return Change(nodes, median(before), median(now), low, high, verdict)


def _known(samples: Sequence[float], confidence: float) -> tuple[float, float]:
    """Where the median is: the interval of order statistics, and the medians of each third."""
    third = max(1, len(samples) // 3)
    thirds = [median(samples[k : k + third]) for k in range(0, third * 3, third) if samples[k:]]
    low, high = interval(samples, confidence)
    return min(low, *thirds), max(high, *thirds)


def _remarks(before: Run, now: Run) -> tuple[str, ...]:
    found = []
    pairs: Mapping[str, tuple[object, object]] = {
        "model": (before.model, now.model), "device": (before.device, now.device),
        "threads": (before.threads, now.threads), "numerics": (before.numerics, now.numerics),
    }  # fmt: skip
    for what, (a, b) in pairs.items():
        if a != b:
            found.append(f"{what}: {a} before, {b} now")
    if before.flops and abs(now.flops / before.flops - 1) > APART:
        found.append(f"the machine: its multiply-add peak was {before.flops / 1e9:.0f} GFLOP/s "
                     f"before and is {now.flops / 1e9:.0f} now")  # fmt: skip
    fewest = min(before.rounds, now.rounds)
    if fewest < 12:
        found.append(f"{fewest} rounds are few: more of them (--rounds) show smaller differences")
    return tuple(found)
