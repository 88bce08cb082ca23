"""Made-up tasks and recordings."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.recording import Recording
from tilewright.autotune.task import Candidate, Config, Key, Task


def candidate(template: str = "t", **config: str | int | float | bool | None) -> Candidate:
    return Candidate(template, 1, config)


def timed(seconds: float, off: float = 0.0, rounds: int = 16) -> Measurement:
    """off: how far the interval reaches to either side, as a share."""
    return Measurement(seconds, seconds * (1 - off), seconds * (1 + off), rounds)


def made(
    times: Sequence[float | None], estimates: Sequence[float] = (),
    configs: Sequence[Config] = (), name: str = "made",
) -> Recording:  # fmt: skip
    """A recording of candidates x=0, x=1, ..., or of these configs; None fails."""
    space = [Candidate("t", 1, c) for c in configs or [{"x": k} for k in range(len(times))]]
    outcomes: list[Outcome] = [
        Failure("wrong", "off by 3") if t is None else timed(t) for t in times
    ]
    task = Task(Key(name, "device", "standard"), tuple(space), tuple(estimates), label=name)
    return Recording(task, tuple(outcomes))
