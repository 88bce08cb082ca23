"""Configs that take the place of defaults: made into launches, told apart, kept in files.

A choice names a template and a config for all groups of one shape. It is only as good as its
source: measurements of an older version, a file from elsewhere. So a choice is followed where a
template lists the very config in its space, for these numerics; else the default runs, and the log
says why.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from ...autotune.task import Candidate, canonical
from ..errors import LoweringError
from ..graph.ir import Graph
from ..kernels.device import Device
from ..kernels.ir import Launch
from ..kernels.select import Group, Special, digests_of, group_of, rebound
from ..options import Numerics
from ..text import printable
from .problem import problem_of

_log: Final = logging.getLogger("tilewright")


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate to use instead of the default. origin: where it comes from, for people."""

    candidate: Candidate
    origin: str


Choices = Mapping[str, Choice]
"""By the digest of a group's shape (`select.digests_of`)."""


NO_CHOICES: Final[Choices] = MappingProxyType({})


def choices_digest(choices: Choices, numerics: Numerics) -> str:
    """A name for what kernels come out because of choices; "" where there are none."""
    if not choices:
        return ""
    listed = [[d, c.candidate.template, c.candidate.version, c.candidate.text]
              for d, c in sorted(choices.items())]  # fmt: skip
    return hashlib.sha256(canonical([numerics, listed]).encode()).hexdigest()


def special(graph: Graph, device: Device, numerics: Numerics, choices: Choices) -> Special | None:
    """What `select` should ask for launches other than the default ones."""
    if not choices:
        return None

    def make(digest: str, group: Group) -> Launch | None:
        choice = choices.get(digest)
        if choice is None:
            return None
        problem = problem_of(graph, group.ops, group.outputs, device, numerics)
        try:
            if choice.candidate not in problem.space():
                raise LoweringError("no template has this config in its space")
            launch = problem.instantiate(choice.candidate)
        except LoweringError as e:
            _log.warning("%s: %s is not used (%s): %s", printable(problem.label),
                         printable(str(choice.candidate)), printable(choice.origin), e)  # fmt: skip
            return None
        return rebound(launch, problem.names, group.names)

    return make


def with_origins(graph: Graph, launches: Sequence[Launch], choices: Choices) -> tuple[Launch, ...]:
    """The launches, of which those that choices are of say so."""
    if not choices:
        return tuple(launches)
    digests = digests_of(graph)
    out = []
    for launch in launches:
        choice = choices.get(digests.get(group_of(graph, launch).shape, ""))
        if choice is not None and is_of(launch, choice.candidate):
            launch = replace(launch, origin=choice.origin)
        out.append(launch)
    return tuple(out)


def is_of(launch: Launch, candidate: Candidate) -> bool:
    """Whether a launch's kernel was made of a candidate."""
    kernel = launch.kernel
    return (kernel.template, kernel.version, dict(kernel.config)) == (
        candidate.template, candidate.version, dict(candidate.config)
    )  # fmt: skip


# --------------------------------------------------------------------------- as data


def to_data(choices: Choices, device: Device) -> dict[str, Any]:
    """Choices for a device as JSON values."""
    groups = [
        {"group": digest, "template": c.candidate.template, "version": c.candidate.version,
         "config": dict(c.candidate.config), "origin": c.origin}
        for digest, c in sorted(choices.items())
    ]  # fmt: skip
    return {"device": asdict(device), "groups": groups} if groups else {}


def from_data(data: Mapping[str, Any], device: Device) -> Choices:
    """The choices that `to_data` made values of; none if they are for another device, another
    number of threads among that. Raises ValueError, TypeError, AttributeError or LookupError for
    what is none."""
    if not data:
        return NO_CHOICES
    if data["device"] != asdict(device):
        _log.info("kernels were tuned for %s, and run on %s: defaults are used",
                  data["device"], asdict(device))  # fmt: skip
        return NO_CHOICES
    found = {}
    for item in data["groups"]:
        config = item["config"]
        if not all(v is None or isinstance(v, (str, int, float)) for v in config.values()):
            raise TypeError("a config holds text, numbers, true, false and null")
        candidate = Candidate(str(item["template"]), int(item["version"]), dict(config))
        found[str(item["group"])] = Choice(candidate, str(item["origin"]))
    return found
