"""TILEWRIGHT_FAULT: candidates that crash, hang or compute nonsense on purpose, to see that tuning
survives them.

    TILEWRIGHT_FAULT="segv@1,wrong50@3,hang@25%,nan@#9f"

While it is set nothing is recorded: a fault that is on record stays there for good.

A fault stands before an @, behind it the candidates that have it: a place in the task's space, the
share of all candidates in percent, or how the SHA-256 of a candidate's text begins. Faults that end
or stop the process are native code that runs ahead of the kernel's (on GPUs: `gpu_faults.py`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...autotune.task import Candidate
from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import host
from ..errors import OptionError

Array = npt.NDArray[Any]

VARIABLE: Final = "TILEWRIGHT_FAULT"

FAULTS: Final = {
    "hang": "an endless loop when it runs",
    "segv": "a store to address 0; on a GPU, by a kernel",
    "abort": "a call of abort()",
    "exit": "a call of exit(0)",
    "memory": "allocates memory until it is refused; on a CPU it fills it, and aborts then",
    "wrong": "one wrong element in every run",
    "wrong50": "one wrong element in every 50th run",
    "nan": "a result of NaNs",
    "garbage": "prints a megabyte of random bytes to both streams",
    "hang-build": "its build never ends",
    "segv-build": "its build crashes",
}
SELDOM: Final = 50
"""Runs of which one is wrong with wrong50."""

_ONE: Final = re.compile(r"([a-z0-9-]+)@(?:(\d+)|(\d+(?:\.\d+)?)%|#([0-9a-f]+))\Z")

_NATIVE: Final = """\
declare void @abort()
declare void @exit(i32)
declare ptr @malloc(i64)
declare ptr @memset(ptr, i32, i64)

define void @fault_hang(ptr %table, i64 %item) nounwind {
entry:
  br label %again
again:
  %x = load volatile i64, ptr %table
  br label %again
}

define void @fault_segv(ptr %table, i64 %item) nounwind {
  store volatile i64 1, ptr null
  ret void
}

define void @fault_abort(ptr %table, i64 %item) nounwind {
  call void @abort()
  ret void
}

define void @fault_exit(ptr %table, i64 %item) nounwind {
  call void @exit(i32 0)
  ret void
}

define void @fault_memory(ptr %table, i64 %item) nounwind {
entry:
  br label %more
more:
  %p = call ptr @malloc(i64 33554432)
  %none = icmp eq ptr %p, null
  br i1 %none, label %refused, label %fill
fill:
  %q = call ptr @memset(ptr %p, i32 1, i64 33554432)
  br label %more
refused:
  call void @abort()
  ret void
}
"""
_IN_CODE: Final = ("hang", "segv", "abort", "exit", "memory")


@dataclass(frozen=True, slots=True)
class _Rule:
    fault: str
    place: int | None
    share: float
    begin: str

    def meets(self, place: int, text: str) -> bool:
        if self.place is not None:
            return place == self.place
        if self.begin:
            return _hash(text).startswith(self.begin)
        # Other candidates for every fault: shares of two faults are independent.
        return int(_hash(f"{self.fault} {text}")[:8], 16) < self.share * 2**32


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def faults_of(place: int, candidate: Candidate) -> tuple[str, ...]:
    """The faults that a candidate is to have. Raises OptionError for a bad TILEWRIGHT_FAULT."""
    rules = _rules(os.environ.get(VARIABLE, ""))
    if not rules:
        return ()
    text = f"{candidate.template} {candidate.version} {candidate.text}"
    return tuple(dict.fromkeys(r.fault for r in rules if r.meets(place, text)))


def are_asked_for() -> bool:
    """Whether any candidate is to fail. Raises OptionError as `check`."""
    return bool(_rules(os.environ.get(VARIABLE, "")))


def check() -> None:
    """Raise OptionError for a TILEWRIGHT_FAULT that makes no sense."""
    _rules(os.environ.get(VARIABLE, ""))


@cache
def _rules(text: str) -> tuple[_Rule, ...]:
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        m = _ONE.match(part)
        if m is None or m[1] not in FAULTS:
            known = ", ".join(FAULTS)
            raise OptionError(
                f"{VARIABLE}={text!r}: {part!r} is not a fault with an @ and a place (3), a share "
                f"(25%) or the begin of a hash (#9f); faults are {known}"
            )
        place = None if m[2] is None else int(m[2])
        found.append(_Rule(m[1], place, float(m[3] or 0) / 100, m[4] or ""))
    return tuple(found)


def in_build(faults: Sequence[str]) -> None:
    """Do what is to happen while a candidate is built."""
    if "hang-build" in faults:
        while True:
            time.sleep(3600)
    if "segv-build" in faults:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address("segv"))(0, 0)


def in_run(faults: Sequence[str]) -> tuple[int, ...]:
    """Addresses of code to run ahead of a kernel's: void f(ptr table, i64 item)."""
    return tuple(address(f) for f in faults if f in _IN_CODE)


def address(fault: str) -> int:
    """The code of one of the faults that end or stop the process."""
    return _native().address(f"fault_{fault}")


def in_results(faults: Sequence[str], run: int, results: Sequence[Array]) -> None:
    """Do what is to happen to the results of a run, given as they lie in memory. Runs count from
    1."""
    if "garbage" in faults and run == 1:
        noise = np.random.default_rng(run).bytes(1 << 19)
        for stream in (sys.stdout, sys.stderr):
            stream.buffer.write(noise)
            stream.buffer.flush()
    if "nan" in faults:
        for y in results:
            y.fill(np.nan if y.dtype.kind == "f" else 1)
    if "wrong" in faults or ("wrong50" in faults and run % SELDOM == 0):
        first = results[0][:1]
        first[...] = ~first if first.dtype.kind == "b" else first + np.abs(first) + 1


@cache
def _native() -> Linked:
    names = [f"fault_{f}" for f in _IN_CODE]
    return link([build_object(_NATIVE, host())], names)
