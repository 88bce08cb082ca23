"""What a tuning session tells while it runs, as data: a display draws it, a log writes it down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from .outcome import Measurement, Outcome


@dataclass(frozen=True, slots=True)
class State:
    """How far a session is.

    elapsed, left: seconds since its start, and to the end of its budget. tried, failed: candidates
    run, and those of them that failed. recorded: outcomes that were known before. speedup: of the
    whole model so far, estimated from its tasks. remaining_gain: the share of the model's present
    time that more searching is expected to save.
    """

    elapsed: float
    left: float
    tried: int
    failed: int
    recorded: int
    speedup: float
    remaining_gain: float


@dataclass(frozen=True, slots=True)
class Listed:
    """A task as it stands when searching begins. weight: its share of the model's run time.
    default, best: seconds, where they are on record."""

    label: str
    weight: float
    candidates: int
    recorded: int
    default: float | None
    best: float | None


@dataclass(frozen=True, slots=True)
class Reached:
    """A new station of the way: "compile", "profile", "search", "build", "compare"."""

    kind: ClassVar[str] = "station"
    station: str
    elapsed: float


@dataclass(frozen=True, slots=True)
class Began:
    """Searching begins."""

    kind: ClassVar[str] = "tasks"
    tasks: tuple[Listed, ...]
    state: State


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate has come to an end. task: its place in `Began.tasks`. best: the least seconds so
    far, and by what; None where nothing was measured yet."""

    kind: ClassVar[str] = "tried"
    task: int
    label: str
    candidate: str
    outcome: Outcome
    default: float | None
    best: float | None
    best_candidate: str
    remaining_gain: float
    state: State


@dataclass(frozen=True, slots=True)
class Warned:
    """Something is not as it should be, and the session goes on."""

    kind: ClassVar[str] = "warning"
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Searching ends. why: "searched" (nothing is left to gain), "budget", "interrupted" or
    "runners" (nobody is left to run candidates)."""

    kind: ClassVar[str] = "ended"
    why: str
    state: State


Event = Reached | Began | Tried | Warned | Ended


def as_json(event: Event) -> dict[str, Any]:
    """An event as a JSON object; "event" says which it is."""
    data = {"event": event.kind} | asdict(event)
    if isinstance(event, Tried):
        data["ok"] = isinstance(event.outcome, Measurement)
    return data
