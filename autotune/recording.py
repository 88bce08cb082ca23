"""Outcomes of whole spaces as data in a file: what strategies are compared on, with no timing.

A recording is one task with an outcome of every candidate. In JSON, candidates of one template are
rows of a table, as their configs have the same fields:

    {"label": "...", "key": ["problem", "device", "numerics"], "features": {"flops": 1e8},
     "spaces": [{"template": "gemm", "version": 3, "fields": ["nb", "m"], "rows": [
        [4, 14, 2100.0, 0.00031, 0.00030, 0.00033, 16], [2, 14, 2500.0, "wrong: ..."]]}]}

A row is a config's values, the cost model's estimate (null without a model), then seconds, low,
high and rounds, or what failed. The first row of all is the default's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import TunerError
from .outcome import FAILURE_KINDS, Failure, Measurement, Outcome
from .task import Candidate, Key, Task

_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Recording:
    """A task, and an outcome for every candidate of its space."""

    task: Task
    outcomes: tuple[Outcome, ...]

    @property
    def seconds(self) -> dict[int, float]:
        """Times by place, of those that have one."""
        found = enumerate(self.outcomes)
        return {k: o.seconds for k, o in found if isinstance(o, Measurement)}

    @property
    def best(self) -> float:
        """The least time of the space. Raises TunerError where nothing has one."""
        if not self.seconds:
            raise TunerError(f"the recording of {self.task.label!r} has no times")
        return min(self.seconds.values())


def read(file: Path) -> list[Recording]:
    """The recordings of a file. Raises TunerError where it holds something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return [from_json(each) for each in data]
    except (ValueError, TypeError, LookupError) as e:
        raise TunerError(f"{file}: no recordings: {e}") from e


def write(file: Path, recordings: Iterable[Recording]) -> None:
    """One recording per line."""
    lines = ",\n".join(json.dumps(to_json(r)) for r in recordings)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def to_json(recording: Recording) -> dict[str, Any]:
    """Times and estimates are rounded to five digits."""
    task = recording.task
    spaces: list[dict[str, Any]] = []
    for k, (candidate, outcome) in enumerate(zip(task.space, recording.outcomes, strict=True)):
        head = {"template": candidate.template, "version": candidate.version,
                "fields": list(candidate.config)}  # fmt: skip
        if not spaces or {n: spaces[-1][n] for n in head} != head:
            spaces.append({**head, "rows": []})
        estimate = _short(task.estimates[k]) if task.estimates else None
        spaces[-1]["rows"].append([*candidate.config.values(), estimate, *_as_row(outcome)])
    return {"label": task.label, "key": [task.key.problem, task.key.device, task.key.numerics],
            "features": dict(task.features), "spaces": spaces}  # fmt: skip


def from_json(data: Mapping[str, Any]) -> Recording:
    """Raises TunerError, LookupError, TypeError or ValueError for anything but a recording."""
    space: list[Candidate] = []
    estimates: list[float] = []
    outcomes: list[Outcome] = []
    for part in data["spaces"]:
        names = part["fields"]
        for row in part["rows"]:
            values, rest = row[: len(names)], row[len(names) + 1 :]
            config = dict(zip(names, values, strict=True))
            space.append(Candidate(part["template"], part["version"], config))
            if row[len(names)] is not None:
                estimates.append(float(row[len(names)]))
            outcomes.append(_from_row(rest))
    task = Task(Key(*data["key"]), tuple(space), tuple(estimates), data["features"],
                label=data["label"])  # fmt: skip
    return Recording(task, tuple(outcomes))


def _as_row(outcome: Outcome) -> list[Any]:
    if isinstance(outcome, Failure):
        return [f"{outcome.kind}: {outcome.detail}"]
    return [*map(_short, (outcome.seconds, outcome.low, outcome.high)), outcome.rounds]


def _from_row(row: Sequence[Any]) -> Outcome:
    if len(row) == 1:
        kind, _, detail = row[0].partition(": ")
        if kind not in FAILURE_KINDS:
            raise TunerError(f"nothing fails by {kind!r}")
        return Failure(kind, detail)
    seconds, low, high, rounds = row
    return Measurement(float(seconds), float(low), float(high), int(rounds))


def _short(x: float) -> float:
    return float(f"{x:.{_DIGITS}g}")
