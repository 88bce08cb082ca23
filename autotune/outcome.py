"""What comes out of running a candidate: a time with its interval, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

FailureKind = Literal[
    "refused",  # the template cannot make this candidate
    "build",  # its code did not build
    "crash",  # the process died: a signal, or exit in the middle
    "timeout",  # it took longer than a candidate may
    "memory",  # it wanted more memory than a candidate may
    "wrong",  # its results differ from the reference by more than the bound
    "protocol",  # it answered something that makes no sense
]
FAILURE_KINDS: Final[tuple[str, ...]] = get_args(FailureKind)


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long one run of a candidate takes.

    seconds: the lower quartile. low, high: the interval that holds the true one with 95 %
    confidence. rounds: samples in it. contaminated: other work disturbed the samples and went on
    doing so when they were taken again; good for a ranking, and on record until a later session,
    which measures it again, does better.
    """

    seconds: float
    low: float
    high: float
    rounds: int
    contaminated: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a candidate has no time. detail: one line for people."""

    kind: FailureKind
    detail: str = ""


Outcome = Measurement | Failure
