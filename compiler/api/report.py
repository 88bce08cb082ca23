"""What a tuning came to: per task, and for the model as a whole."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from ..text import human_time, printable, table

Verdict = Literal["tuned", "tie", "default", "failed", "untried"]

_MEANING: Final[dict[str, str]] = {
    "searched": "nothing was left to gain",
    "budget": "the budget was spent",
    "interrupted": "interrupted: the best so far",
    "runners": "nobody was left to run candidates",
}
_MOST_ROUNDS: Final = 200
LEAST_ROUNDS: Final = 3
_SAMPLE_SECONDS: Final = 1e-3


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One distinct problem of the model.

    launches: how many of the model's kernels it is. weight: their share of its run time with
    defaults. candidates: size of the space; tried, failed: run now; recorded: known before; seen:
    either.
    default, chosen: template and config. default_seconds, chosen_seconds: measured alone, with the
    caches as a model leaves them; None where there is no measurement. in_model: times as fast as
    the default inside the model, of all launches, measured in turn; None where the default serves.

    verdict: "tuned" (another candidate is faster by more than the margin), "tie" (another one may
    be faster, but within the margin), "default" (nothing is faster), "failed" (every candidate that
    was run failed, and the default serves), "untried" (too light, or no time was left).
    """

    label: str
    launches: int
    weight: float
    candidates: int
    tried: int
    failed: int
    recorded: int
    seen: int
    default: str
    chosen: str
    default_seconds: float | None
    chosen_seconds: float | None
    verdict: Verdict
    in_model: float | None = None

    @property
    def speedup(self) -> float:
        """Of this kernel alone; 1 where the default serves."""
        if self.verdict != "tuned" or not self.default_seconds or not self.chosen_seconds:
            return 1.0
        return self.default_seconds / self.chosen_seconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model with default kernels and with those chosen, called in turn: median seconds of each,
    the median of their ratio in one round, and half its interquartile range."""

    default_seconds: float
    tuned_seconds: float
    speedup: float
    spread: float
    rounds: int

    @property
    def is_slower(self) -> bool:
        """Whether the model is slower with the kernels that were chosen, by more than the noise."""
        return self.speedup * (1 + self.spread) < 1


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What `tw.tune` returns; prints as a table.

    budget, seconds: given and taken, of the wall clock. ended: "searched" (nothing was left to
    gain), "budget", "interrupted", or "runners" (nobody was left to run candidates). comparison:
    the whole model before and after; None where no other kernel was chosen, and then the program is
    the one it was, or where it could not be made. warnings: in words.
    """

    device: str
    numerics: str
    threads: int
    budget: float
    seconds: float
    ended: str
    tasks: tuple[TaskReport, ...]
    comparison: Comparison | None
    warnings: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        return self.ended == "interrupted"

    @property
    def speedup(self) -> float:
        """Of the whole model, measured; 1 where no other kernel was chosen."""
        return self.comparison.speedup if self.comparison else 1.0

    @property
    def tried(self) -> int:
        """Candidates that were run."""
        return sum(t.tried for t in self.tasks)

    @property
    def failed(self) -> int:
        """Those of them that failed."""
        return sum(t.failed for t in self.tasks)

    @property
    def recorded(self) -> int:
        """Candidates whose outcomes were on record before."""
        return sum(t.recorded for t in self.tasks)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"speedup": self.speedup, "tried": self.tried, "failed": self.failed,
                               "recorded": self.recorded}  # fmt: skip

    def __str__(self) -> str:
        rows = [
            (f"{t.weight:.1%}", t.launches, _time(t.default_seconds), _time(t.chosen_seconds),
             f"{t.speedup:.2f}x", "" if t.in_model is None else f"{t.in_model:.2f}x",
             f"{t.seen}/{t.candidates}", t.failed, t.verdict, printable(t.label),
             t.chosen if t.verdict == "tuned" else "")
            for t in sorted(self.tasks, key=lambda t: -t.weight)
        ]  # fmt: skip
        head = ("share", "launches", "default", "chosen", "alone", "in model", "seen", "failed",
                "verdict", "task", "kernel")  # fmt: skip
        return "\n".join([table(rows, head, "rrrrrrrr"), "", *self.summary()])

    def summary(self) -> list[str]:
        """The last lines of the table."""
        tuned = sum(t.verdict == "tuned" for t in self.tasks)
        lines = [
            f"{tuned} of {len(self.tasks)} tasks tuned, {self.tried} candidates run "
            f"({self.failed} failed), {self.recorded} known before, in "
            f"{human_time(self.seconds)} of {human_time(self.budget)}: {_MEANING[self.ended]}",
            f"{self.device}, {self.threads} thread{'s' if self.threads > 1 else ''}, "
            f"numerics {self.numerics}",
        ]
        c = self.comparison
        if c is not None:
            before, after = human_time(c.default_seconds), human_time(c.tuned_seconds)
            lines.append(f"model {before} -> {after}: {c.speedup:.3f}x +-{c.spread:.1%}, "
                         f"{c.rounds} rounds alternating")  # fmt: skip
        elif tuned:
            lines.append("model: not compared, as what was found is for other machines")
        else:
            lines.append("model: the kernels are the default ones")
        return [*lines, *(f"warning: {printable(w)}" for w in self.warnings)]


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else human_time(seconds)


def compare(
    default: Callable[[], object], tuned: Callable[[], object], seconds: float,
    clock: Callable[[], float] = time.perf_counter, least: int = LEAST_ROUNDS,
) -> Comparison:  # fmt: skip
    """Call both once, and then in turn, in changing order, for about so many seconds: `least`
    rounds, two at least. A sample is a call, or as many as take a millisecond."""
    both = (default, tuned)
    default()
    start = clock()
    tuned()
    calls = max(1, int(_SAMPLE_SECONDS / max(clock() - start, 1e-7)))
    samples: tuple[list[float], list[float]] = ([], [])
    end = clock() + seconds
    while len(samples[0]) < least or (clock() < end and len(samples[0]) < _MOST_ROUNDS):
        first = len(samples[0]) % 2
        for which in (first, 1 - first):
            call = both[which]
            start = clock()
            for _ in range(calls):
                call()
            samples[which].append((clock() - start) / calls)
    ratios = [a / max(b, 1e-12) for a, b in zip(*samples, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    before, after = map(statistics.median, samples)
    return Comparison(before, after, statistics.median(ratios), (high - low) / 2, len(ratios))


def verdict_of(
    *, chosen_is_default: bool, best_is_default: bool, measured: int, failed: int
) -> Verdict:  # fmt: skip
    """measured, failed: outcomes of either kind, those on record among them."""
    if not chosen_is_default:
        return "tuned"
    if not measured:
        return "failed" if failed else "untried"
    return "default" if best_is_default else "tie"


def warnings_of(tasks: Sequence[TaskReport], whole: Comparison | None) -> list[str]:
    """What a user should know of the tasks, and of the model as a whole."""
    found = [
        f"{t.label}: every candidate that was run failed; the default kernel serves"
        for t in tasks if t.verdict == "failed"
    ]  # fmt: skip
    if whole is not None and whole.is_slower:
        found.append(
            f"the model is {1 / whole.speedup:.3f}x slower with kernels that were faster alone: "
            "tune longer, on a quieter machine, or compile with tune=False"
        )
    return found
