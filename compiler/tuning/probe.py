"""How fast this processor is just now: a known piece of work, compared with its best time so far.

What else runs on the other half of a core, a lower clock rate and a hypervisor that gives part of
the time to others show in no clock of a process: its thread has the processor all the while. They
show in how long a few thousand multiply-adds take, which is what kernels mostly consist of. On a
virtual machine of two such processors, kernels took 1.0 to 1.6 times their best time, all of it CPU
time, depending on what the other one did.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Final

from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import host
from ..store import Store

ROUNDS: Final = 1000
REPEATS: Final = 3
"""An answer is the best of so many runs: what disturbs only one of them says nothing of the
processor."""

CHAINS: Final = 12
"""Multiply-adds that do not wait for each other: as many as fill the pipelines."""

TRIAL_SECONDS: Final = 50e-3
"""Time for runs before the first answer, longer than a neighbour has a processor in one go: one of
them meets the machine at its best."""


class _Probe:
    def __init__(self) -> None:
        target = host()
        text = probe_text(target.lanes(4))
        key = [("kind", "probe"), ("llvm text", text), *target.fingerprint.items()]
        image = Store().get_or_build(key, lambda: build_object(text, target))
        self._linked: Linked = link([image], ["tilewright_probe"])
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int64)
        self._call = kind(self._linked.address("tilewright_probe"))
        self._best = float("inf")
        end = time.perf_counter() + TRIAL_SECONDS
        while time.perf_counter() < end:
            self._best = min(self._best, self.seconds())

    def seconds(self) -> float:
        """Of one run, about five millionths."""
        start = time.perf_counter_ns()
        self._call(ROUNDS)
        return max(time.perf_counter_ns() - start, 1) / 1e9

    def strain(self) -> float:
        """How many times its best time it takes now."""
        took = min(self.seconds() for _ in range(REPEATS))
        self._best = min(self._best, took)
        return took / self._best


def probe_text(lanes: int) -> str:
    """LLVM IR of a loop of multiply-adds of so many float32."""
    kind = f"<{lanes} x float>"
    chains = range(CHAINS)
    half = f"<{', '.join(['float 0.5'] * lanes)}>"
    term = f"{kind} %one"
    lines = [
        f"declare {kind} @llvm.fmuladd.v{lanes}f32({kind}, {kind}, {kind})",
        "define void @tilewright_probe(i64 %rounds) nounwind {",
        "entry:",
        f"  %out = alloca {kind}, align 64",
        f"  store volatile {kind} {half}, ptr %out, align 64",
        f"  %one = load volatile {kind}, ptr %out, align 64",
        "  br label %next",
        "next:",
        "  %i = phi i64 [ 0, %entry ], [ %after, %next ]",
        *(f"  %a{k} = phi {kind} [ %one, %entry ], [ %b{k}, %next ]" for k in chains),
        *(
            f"  %b{k} = call {kind} @llvm.fmuladd.v{lanes}f32({kind} %a{k}, {term}, {term})"
            for k in chains
        ),
        "  %after = add i64 %i, 1",
        "  %more = icmp slt i64 %after, %rounds",
        "  br i1 %more, label %next, label %done",
        "done:",
        *(f"  store volatile {kind} %b{k}, ptr %out, align 64" for k in chains),
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


@cache
def _probe() -> _Probe:
    return _Probe()


def strain() -> float:
    """How many times as long as at best this processor takes for the same work now: 1 or more."""
    return _probe().strain()
