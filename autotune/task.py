"""What can be tuned: a task, which is a key and a space of candidates.

The tuner knows nothing of what a candidate is. It can tell candidates apart, put them in order,
see in which fields they differ, and hand one to a runner (`runner.py`), which says how long it
takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from .errors import TunerError

Value = str | int | float | bool | None
Config = Mapping[str, Value]
_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


def canonical(value: Any) -> str:
    """JSON values as text, one way to write each."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Key:
    """What a measurement is good for: a problem on a device, and which answers are allowed.

    problem: canonical text of what is computed. device: canonical text of what it runs on.
    numerics: the class of results that candidates may give.
    """

    problem: str
    device: str
    numerics: str

    @property
    def digest(self) -> str:
        """A short name for the key."""
        text = "\0".join((self.problem, self.device, self.numerics))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Candidate:
    """One way to compute a problem: a template, its version, and one config of it.

    Two candidates are equal where their templates, versions and configs are. Ties go to a task's
    default, then to the first by (template, text): an order that no other candidate changes.
    """

    template: str
    version: int
    config: Config = field(hash=False)

    @cached_property
    def text(self) -> str:
        """The config as canonical JSON."""
        return canonical(dict(self.config))

    def __hash__(self) -> int:
        return hash((self.template, self.version, self.text))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Candidate):
            return NotImplemented
        mine, theirs = (self.template, self.version), (other.template, other.version)
        return mine == theirs and self.text == other.text

    def __str__(self) -> str:
        fields = " ".join(f"{k}={v}" for k, v in self.config.items())
        return f"{self.template}({fields})"


@dataclass(frozen=True)
class Task:
    """A problem and every candidate for it.

    space: the candidates; the first is the one that is used without tuning. estimates: what the
    cost model says of each, in units that compare within the task; empty where there is no model.
    features: numbers that describe the problem, by which near problems are found (extents, amounts
    of work). payload: what a runner needs to make candidates, as data. label: for people.

    Raises TunerError for an empty space, equal candidates, or estimates that do not fit.
    """

    key: Key
    space: tuple[Candidate, ...]
    estimates: tuple[float, ...] = ()
    features: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    payload: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not self.space:
            raise TunerError(f"the task {self.label!r} has no candidates")
        if len(set(self.space)) != len(self.space):
            raise TunerError(f"the task {self.label!r} has a candidate twice")
        if self.estimates and len(self.estimates) != len(self.space):
            raise TunerError(f"the task {self.label!r} has {len(self.space)} candidates "
                             f"but {len(self.estimates)} estimates")  # fmt: skip

    @cached_property
    def places(self) -> Mapping[Candidate, int]:
        """Where each candidate stands in the space."""
        return {c: k for k, c in enumerate(self.space)}

    @property
    def default(self) -> Candidate:
        """The candidate that is used without tuning."""
        return self.space[0]

    def ranked(self) -> Sequence[int]:
        """Places in the space, the default first, then by estimate where there are estimates."""
        rest = range(1, len(self.space))
        return [0, *(sorted(rest, key=self.estimates.__getitem__) if self.estimates else rest)]
