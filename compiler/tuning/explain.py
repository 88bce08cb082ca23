"""Why each kernel of a program has the config that it has: what records say of its problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ...autotune.choice import MARGIN
from ...autotune.outcome import Failure
from ...autotune.records import Records
from ...autotune.row import Row
from ...autotune.task import Candidate, Key
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..options import NUMERICS
from . import fingerprint
from .choices import is_of
from .tasks import Use, tasks_of
from .tuned import choice_of, default_of, from_elsewhere, versions_for

Verdict = Literal["record", "default", "refused", "failed", "none"]

_SHOWN: Final = 6  # numbers that differ


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of one distinct problem of a program.

    use: its task and launches. verdict: "record" (a recorded config runs), "default" (the default
    runs, and is the best on record), "refused" (what is recorded was not followed), "failed" (what
    was tried failed), "none" (no record is of this problem on such a device). kernel: what runs.
    row: the record that decided, or one that failed; nearest: where there is none, the most similar
    record with a time. differences: what of the nearest one is different, in words.
    """

    use: Use
    verdict: Verdict
    kernel: str
    row: Row | None = None
    nearest: Row | None = None
    differences: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The verdict in words."""
        return {
            "record": "config of a record", "default": "default config, the best on record",
            "refused": "default config: what is recorded was not followed",
            "failed": "default config: every candidate on record failed",
            "none": "default config: no record is for this problem",
        }[self.verdict]  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.use.task.label} (launches {len(self.use.launches)}): {self.said}",
                 f"  {self.kernel}"]  # fmt: skip
        if self.row is not None:
            found, place = self.row.outcome, fingerprint.label(self.row.device)
            came = f"{self.row.candidate}: {found.kind}" if isinstance(found, Failure) \
                else f"{found.seconds * 1e6:.1f} us"  # fmt: skip
            lines.append(f"  {self.row.date}, {came} on {place}")
        if self.nearest is not None:
            lines.append(f"  nearest record: {self.nearest.candidate}")
            lines += [f"    {d}" for d in self.differences]
        return "\n".join(lines)


def explain(
    c: Compilation[Any], device: Device, records: Records, place: str | None = None
) -> list[Explanation]:
    """An explanation for every problem of a compilation that has more than one candidate.

    device: what the compilation was for, as templates see it. place: its fingerprint, "" for one
    that is not here (default: this CPU's).
    """
    where = fingerprint.fingerprint(c.target) if place is None else place
    return [_explained(c, use, records) for use in tasks_of(c, device, where)]


def _explained(c: Compilation[Any], use: Use, records: Records) -> Explanation:
    task, place = use.task, use.task.key.device
    launch = c.launches[use.launches[0]]
    kernel = str(Candidate(launch.kernel.template, launch.kernel.version,
                           dict(launch.kernel.config)))  # fmt: skip
    versions = _versions(use)
    mine = records.of_many([task.key], versions, 1 + MARGIN)[task.key.digest]  # as `recorded` does
    rows = mine or from_elsewhere(task.key, records, versions)
    timed = {row.candidate: row for row in rows if row.seconds is not None}
    if timed:
        problem = use.problem
        choice = choice_of(rows, problem, place)
        wanted = default_of(rows, problem) if choice is None else choice.candidate
        row = timed.get(wanted)
        if choice is None:
            return Explanation(use, "default", kernel, row)
        verdict: Verdict = "record" if is_of(launch, wanted) else "refused"
        return Explanation(use, verdict, kernel, row)
    failed = records.of(task.key, versions) or rows
    if failed:
        return Explanation(use, "failed", kernel, max(failed, key=lambda row: row.date))
    nearest = next(_nearest(use, records), None)
    if nearest is None:
        return Explanation(use, "none", kernel)
    return Explanation(use, "none", kernel, None, nearest, differences(use, nearest))


def _nearest(use: Use, records: Records) -> Iterator[Row]:
    """Rows with a time, the nearest first: of the same problem, on other devices, then with other
    numerics, then of other versions of templates; then the most similar ones on this device."""
    mine = use.task.key
    texts = {n: replace(use.problem, numerics=n).text for n in NUMERICS}
    keys = [mine, *(Key(t, mine.device, n) for n, t in texts.items() if n != mine.numerics)]
    known = _versions(use)
    for templates in (known, None):
        for key in keys:
            rows = [*records.of(key, templates), *records.elsewhere(key, templates)]
            timed = [row for row in rows if row.seconds is not None]
            yield from sorted(timed, key=lambda row: row.seconds or 0.0)
    for templates in (known, None):
        for key in keys:
            yield from records.near(key, use.task.features, 1, templates)


def differences(use: Use, row: Row) -> tuple[str, ...]:
    """What of a record is different from a task, field by field, in words."""
    mine, other, made = use.task.key, row.key, row.candidate
    found = []
    version = _versions(use).get(made.template)
    if version != made.version:
        found.append(f"{made.template}: version {version or 'none'} here, {made.version} there")
    if mine.device != other.device:
        found.append(f"device: {fingerprint.label(mine.device)} here, "
                     f"{fingerprint.label(other.device)} there")  # fmt: skip
    if mine.numerics != other.numerics:
        found.append(f"numerics: {mine.numerics} here, {other.numerics} there")
    if mine.problem != other.problem:
        a, b = _device_words(mine), _device_words(other)
        found += [f"{n}: {a[n]} here, {b.get(n)} there" for n in a if a[n] != b.get(n)]
        found += _numbers(use.task.features, row.features)
        if _operators(mine) != _operators(other):
            found.append(f"operators: {' + '.join(_operators(mine))} here, "
                         f"{' + '.join(_operators(other))} there")  # fmt: skip
    return tuple(found)


def _versions(use: Use) -> Mapping[str, int]:
    return versions_for(use.problem.device, use.problem.numerics)


def _numbers(mine: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    names = [n for n in mine if n != "threads" and mine[n] != other.get(n)]
    shown = [f"{n}: {mine[n]:g} here, {_shown(other.get(n))} there" for n in names[:_SHOWN]]
    return shown if len(names) <= _SHOWN else [*shown, f"and {len(names) - _SHOWN} more numbers"]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _device_words(key: Key) -> dict[str, str]:
    """The fields of the line of a problem that says what templates see of the device."""
    line = next((x for x in key.problem.splitlines() if x.startswith("device ")), "")
    return dict(word.partition("=")[::2] for word in line.split()[1:])


def _operators(key: Key) -> tuple[str, ...]:
    """Operators of a problem, in order, read off its lines."""
    calls = (line.partition(" = ")[2] for line in key.problem.splitlines() if " = " in line)
    return tuple(call.partition("(")[0] for call in calls if "(" in call)
