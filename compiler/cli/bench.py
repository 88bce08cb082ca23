"""`tilewright bench`: latency of a model, alone or against other runtimes.

Contestants take turns, round by round and in changing order, so that what disturbs the machine
disturbs all of them. A turn is a rest, calls that do not count, and timed calls. A call that takes
long warms up by itself: for those, all calls count.

The rest matters: worker threads of a runtime spin after a call in hope of the next, and take the
processors from whoever has the next turn: onnxruntime's for 30 ms, OpenMP's (ncnn, torch) for 10,
OpenVINO's and ours for less than 1. After the rest, all begin on an idle machine. With 1 ms of
rest, SqueezeNet on two threads took 11.8 ms after onnxruntime's turn, 6.0 ms when that was told not
to spin, and 6.9 ms after 50 ms of rest; onnxruntime itself took 7 ms each time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..api.gpu import GpuExecutable
from ..errors import OptionError
from ..inspect.roofline import draw
from ..store import Store
from ..text import human_bytes, human_time
from .arrays import add_input_arguments, inputs_of
from .console import emit_json, progress, show
from .models import Shown, add_json_argument, add_model_arguments, open_executable, split
from .peers import PEERS, Setting, Unavailable, prepare


@dataclass(frozen=True, slots=True)
class Pace:
    """A turn, in seconds: rest, then untimed calls (one at least) for `warm`, then timed calls (one
    at least) for `timed`. Calls longer than LONG_SECONDS are all timed."""

    rest: float
    warm: float
    timed: float


ALONE: Final = Pace(0.0, 0.0, 1e-3)
CONTEST: Final = Pace(60e-3, 20e-3, 10e-3)
LONG_SECONDS: Final = 0.4
FIRST_SECONDS: Final = 0.5
"""Calls before the first turn end after that time."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds per call, one sample a round. spread: half the interquartile range, relative."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def spread(self) -> float:
        if len(self.samples) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (third - first) / 2 / self.median

    def as_json(self) -> dict[str, Any]:
        return {"median_seconds": self.median, "min_seconds": self.minimum, "spread": self.spread,
                "rounds": len(self.samples)}  # fmt: skip


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure latency",
        description="Measure the latency of a model, from arrays of "
        "the host to arrays of the host.",
    )
    add_model_arguments(p)
    p.add_argument("--peers", metavar="a,b", help=f"run against {', '.join(PEERS)}")
    p.add_argument(
        "--peer-model",
        action="append",
        default=[],
        metavar="name=FILE",
        help="the same model as that peer reads it: for torch an exported program (.pt2) or "
        "TorchScript (.pt), for ncnn a .param file",
    )
    add_input_arguments(p)
    p.add_argument("--rounds", type=int, metavar="N", help="turns each (default: for --seconds)")
    p.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="about how long to measure, unless --rounds is given (default: 5)",
    )
    p.add_argument(
        "--warmup",
        type=int,
        default=5,
        metavar="N",
        help="calls before the first turn, for half a second at most (default: 5)",
    )
    p.add_argument("--profile", action="store_true", help="print the time of every kernel as well")
    p.add_argument(
        "--roofline",
        type=Path,
        metavar="OUT.svg",
        help="draw every kernel beside the machine's limits",
    )
    add_json_argument(p)
    p.set_defaults(handler=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    names = split(args.peers) or []
    _check(args, names)
    forms = _forms(args.peer_model)
    exe = open_executable(args)
    if names and isinstance(exe, GpuExecutable):
        raise OptionError("--peers run on this CPU, and so must the program: leave --target out. "
                          "benchmarks/gpu/check.py compares with PyTorch on a GPU")  # fmt: skip
    cold = exe.stats.total
    if exe.stats.built and Store().directory is not None:
        warm: float | None = open_executable(args).stats.total
    else:
        warm = None
    arrays = inputs_of(args, exe.inputs)
    threads = exe.threads
    feeds = {s.name: a for s, a in zip(exe.inputs, arrays, strict=True)}
    setting = Setting(Path(args.model), feeds, threads, forms)
    wanted = _as_list(exe(*arrays))
    contestants: dict[str, Callable[[], Any]] = {"tilewright": lambda: exe(*arrays)}
    missing, versions, errors, apart = {}, {}, {}, {}
    for name in names:
        try:
            peer = prepare(name, setting)
            theirs = peer.run()
        except Unavailable as e:
            missing[name] = str(e)
            continue
        errors[name] = difference(wanted, theirs)
        apart[name] = {"differing": differing(wanted, theirs), "typical": typical(wanted, theirs)}
        contestants[name], versions[name] = peer.run, peer.version
    with progress("measuring", args.json) as report:
        latencies = measure(contestants, args.rounds, args.seconds, report, warmup=args.warmup)
    profile = exe.profile(*arrays) if args.profile or args.roofline else None
    if args.roofline and profile is not None:
        args.roofline.write_text(draw(profile, Path(args.model).stem), encoding="utf-8")
    if args.json:
        emit_json(_facts(args, exe, latencies, threads, cold, warm)
                  | {"peers": {n: latencies[n].as_json() | {
                      "version": versions[n], "difference": errors[n], **apart[n],
                      "speedup": speedup(latencies["tilewright"], latencies[n]),
                  } for n in versions}, "unavailable": missing}
                  | ({"profile": profile.as_json()} if profile else {}))  # fmt: skip
        return 0
    for line in report_lines(Path(args.model).stem, exe, latencies, errors, threads, cold, warm):
        show(line)
    for name, why in missing.items():
        show(f"{name} {why}")
    if profile is not None and args.profile:
        show()
        for line in str(profile).splitlines():
            show(line)
    return 0


def _forms(given: Sequence[str]) -> dict[str, Path]:
    """`["torch=net.pt2"]` by name. Raises OptionError."""
    forms: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if name not in PEERS or not equals or not Path(file).is_file():
            raise OptionError(f"--peer-model {text!r}: expected a peer ({', '.join(PEERS)}), "
                              "= and a file that exists")  # fmt: skip
        forms[name] = Path(file)
    return forms


def _check(args: argparse.Namespace, names: Sequence[str]) -> None:
    unknown = [n for n in names if n not in PEERS]
    if unknown:
        raise OptionError(f"--peers {unknown[0]!r}: expected some of {', '.join(PEERS)}")
    if names and args.outputs:
        raise OptionError("--peers with --outputs: peers compute the model's own outputs")
    for option, value in (("--rounds", args.rounds), ("--seconds", args.seconds)):
        if value is not None and value <= 0:
            raise OptionError(f"{option} {value}: expected a positive number")
    if args.warmup < 1:
        raise OptionError(f"--warmup {args.warmup}: expected a number of calls, one at least")


def measure(
    contestants: dict[str, Callable[[], Any]],
    rounds: int | None,
    seconds: float,
    report: Callable[[str, int, int], None] | None = None,
    pace: Pace | None = None,
    warmup: int = 1,
) -> dict[str, Latency]:
    """Latency of each, in alternating rounds; `rounds` of them, or 3 to 1000 in about `seconds`.
    warmup: calls of each before the first round."""
    if pace is None:
        pace = CONTEST if len(contestants) > 1 else ALONE
    repeats, long, once = {}, set(), 0.0
    for name, call in contestants.items():
        spent = _first_calls(call, warmup)
        repeats[name] = max(1, min(10_000, int(pace.timed / max(spent, 1e-7))))
        if spent > LONG_SECONDS:
            long.add(name)
        else:
            once += max(pace.warm, spent)
        once += pace.rest + spent * repeats[name]
    total = rounds or max(3, min(1000, int(seconds / once)))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants.items())
    for k in range(total):
        for name, call in order if k % 2 == 0 else reversed(order):
            time.sleep(pace.rest)
            if name not in long:
                warm = time.perf_counter() + pace.warm
                call()
                while time.perf_counter() < warm:
                    call()
            count = range(repeats[name])
            start = time.perf_counter()
            for _ in count:
                call()
            samples[name].append((time.perf_counter() - start) / len(count))
        if report is not None:
            report("rounds", k + 1, total)
    return {name: Latency(tuple(s)) for name, s in samples.items()}


def _first_calls(call: Callable[[], Any], most: int) -> float:
    """Up to `most` calls, one at least, in FIRST_SECONDS or so; seconds of the last."""
    enough = time.perf_counter() + FIRST_SECONDS
    for _ in range(max(1, most)):
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        if end > enough:
            break
    return end - start


def speedup(ours: Latency, theirs: Latency) -> float:
    """How many times as long the peer takes: the median over rounds of the ratio in one round."""
    ratios = [b / a for a, b in zip(ours.samples, theirs.samples, strict=True)]
    return statistics.median(ratios)


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Largest difference over largest finite magnitude, of all outputs. Infinite where shapes
    differ, or where one side alone is NaN or infinite."""
    if len(ours) != len(theirs):
        return math.inf
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return math.inf
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        if not np.isfinite(x[~same]).all() or not np.isfinite(y[~same]).all():
            return math.inf
        if not same.all():
            largest = float(np.abs(y[np.isfinite(y)]).max())
            worst = max(worst, float(np.abs(x - y)[~same].max()) / max(largest, 1e-30))
    return worst


def differing(ours: Sequence[Any], theirs: Sequence[Any], by: float = 1e-3) -> float:
    """Fraction of the elements that differ by more than `by` times the largest finite magnitude of
    their output. Where a network picks the larger of two almost equal values, a few elements may
    differ much and all others little."""
    apart, total = 0, 0
    for a, b in zip(ours, theirs, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return 1.0
        largest = float(np.abs(y[np.isfinite(y)]).max(initial=0.0))
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        same[~same] = np.abs(x[~same] - y[~same]) <= by * largest
        apart += int(same.size - np.count_nonzero(same))
        total += same.size
    return apart / max(total, 1)


def typical(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Median difference over largest finite magnitude, the worst of all outputs. Unlike the largest
    difference, it says whether both compute the same where a network chooses: there a rounding
    decides between almost equal values, and few elements differ much. Infinite where shapes differ.
    An element that is NaN or infinite on one side alone counts as infinitely far."""
    if len(ours) != len(theirs):
        return math.inf
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if x.shape != y.shape:
            return math.inf
        if x.size:
            with np.errstate(invalid="ignore"):
                apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
            apart[np.isnan(apart)] = math.inf
            largest = float(np.abs(y[np.isfinite(y)]).max(initial=0.0))
            worst = max(worst, float(np.median(apart)) / max(largest, 1e-30))
    return worst


def report_lines(
    name: str, exe: Shown, latencies: dict[str, Latency], errors: dict[str, float],
    threads: int, cold: float, warm: float | None,
) -> list[str]:  # fmt: skip
    """What was measured, in lines that a person can quote."""
    plan, ours = exe.plan, latencies["tilewright"]
    again = f", warm {human_time(warm)}" if warm is not None else ""
    indent = " " * (len(name) + 2)
    rounds = len(ours.samples)
    turns = "alternating, " if len(latencies) > 1 else ""
    lines = [
        f"{name}  {len(exe.stages[0].graph.ops)} ops -> {len(exe.kernels)} kernels  "
        f"arena {human_bytes(plan.arena_bytes)} (bound {human_bytes(plan.lower_bound_bytes)}, "
        f"unshared {human_bytes(plan.unshared_bytes)})  compiled {human_time(cold)}{again}",
    ]
    if len(latencies) == 1:
        lines.append(
            f"{indent}tilewright {human_time(ours.median)} (min {human_time(ours.minimum)})   "
            f"{where(exe)}, {rounds} rounds, +-{ours.spread:.0%}"
        )
    for peer, theirs in latencies.items():
        if peer == "tilewright":
            continue
        ratio = speedup(ours, theirs)
        verdict = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
        lines.append(
            f"{indent}tilewright {human_time(ours.median)}   {peer} {human_time(theirs.median)}   "
            f"{verdict}   {threads} threads, {rounds} rounds {turns}"
            f"+-{max(ours.spread, theirs.spread):.0%}   outputs differ by {errors[peer]:.1e}"
        )
    return lines


def where(exe: Shown) -> str:
    """What computes, in words."""
    if isinstance(exe, GpuExecutable):
        return f"{exe.program().device}, copies included"
    return f"{exe.threads} threads"


def _facts(
    args: argparse.Namespace, exe: Shown, latencies: dict[str, Latency], threads: int,
    cold: float, warm: float | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model": args.model,
        "threads": threads,
        "ops": len(exe.stages[0].graph.ops),
        "kernels": len(exe.kernels),
        "memory": {"arena_bytes": exe.plan.arena_bytes,
                   "lower_bound_bytes": exe.plan.lower_bound_bytes,
                   "unshared_bytes": exe.plan.unshared_bytes},
        "compile_seconds": cold,
        "warm_compile_seconds": warm,
        "built": exe.stats.built,
        "latency": latencies["tilewright"].as_json(),
    }  # fmt: skip


def _as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [result]
