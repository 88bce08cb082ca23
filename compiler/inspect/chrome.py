"""A profile as a trace that chrome://tracing and Perfetto show.

The format is the JSON object form of Chrome's "Trace Event Format": complete events ("X") have a
beginning and a duration in microseconds, counters ("C") values, metadata ("M") the names of
processes and threads. Kernels are laid end to end with their median times: no single run is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..memory.plan import MemoryPlan
from ..passes.base import Stage
from ..text import printable
from .arena import alive
from .profile import Profile

RUN: Final = 1
"""The process of the run; its threads are kernels and the model's nodes."""
COMPILATION: Final = 2


def trace(
    profile: Profile, plan: MemoryPlan, stages: Sequence[Stage], stations: Mapping[str, float],
    name: str,
) -> dict[str, Any]:  # fmt: skip
    """The trace as JSON values. stages, stations: how the program was made, the latter in seconds,
    after the passes. name: of the model."""
    events = [*_names(profile, name), *_run(profile, plan), *_compilation(stages, stations)]
    return {"traceEvents": events, "displayTimeUnit": "ns",
            "otherData": {"model": printable(name), "threads": profile.limits.threads,
                          "rounds": profile.rounds}}  # fmt: skip


def _names(profile: Profile, name: str) -> Iterator[dict[str, Any]]:
    shown = f"{printable(name)}, median of {profile.rounds} runs"
    for pid, tid, kind, words in (
        (RUN, 0, "process_name", shown), (RUN, 1, "thread_name", "kernels"),
        (RUN, 2, "thread_name", "model nodes"), (COMPILATION, 0, "process_name", "compilation"),
        (COMPILATION, 1, "thread_name", "passes and code"),
    ):  # fmt: skip
        yield {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": words}}


def _run(profile: Profile, plan: MemoryPlan) -> Iterator[dict[str, Any]]:
    at = 0.0
    for k, (row, size) in enumerate(zip(profile.rows, alive(plan), strict=True)):
        nodes = [printable(n) for n in row.nodes]
        yield _event(row.kernel, row.template, RUN, 1, at, row.seconds, {
            "launch": k, "nodes": nodes, "share": row.share, "GFLOP/s": row.gflops,
            "GB/s": row.gbytes, "of limit": row.of_limit, "bound": row.bound, "memory": row.level,
        })  # fmt: skip
        shown = " + ".join(nodes) or printable(row.label) or row.kernel
        yield _event(shown, row.template, RUN, 2, at, row.seconds, {"launch": k})
        yield {"name": "arena", "ph": "C", "ts": at * 1e6, "pid": RUN, "tid": 1,
               "args": {"bytes alive": size}}  # fmt: skip
        at += row.seconds


def _compilation(
    stages: Sequence[Stage], stations: Mapping[str, float]
) -> Iterator[dict[str, Any]]:  # fmt: skip
    at = 0.0
    for stage in stages:
        seconds = stage.milliseconds / 1e3
        yield _event(stage.name, "pass", COMPILATION, 1, at, seconds,
                     {"ops": len(stage.graph.ops), "changed": stage.changed})  # fmt: skip
        at += seconds
    for name, seconds in stations.items():
        yield _event(name, "code", COMPILATION, 1, at, seconds, {})
        at += seconds


def _event(
    name: str, kind: str, pid: int, tid: int, at: float, seconds: float, args: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """at, seconds: in seconds."""
    return {"name": name, "cat": kind, "ph": "X", "ts": at * 1e6, "dur": seconds * 1e6, "pid": pid,
            "tid": tid, "args": args}  # fmt: skip
