"""What is on record of each launch of a program."""

from __future__ import annotations

from ...autotune.records import Records
from ...autotune.row import Row
from ...autotune.task import Key
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.select import group_of, is_built_in
from .fingerprint import fingerprint
from .problem import problem_of
from .tuned import VERSIONS


def measured(c: Compilation, device: Device, records: Records) -> dict[int, list[Row]]:
    """The rows of the problem of each launch on this device, by the launch's number; launches of
    which nothing is on record are left out.

    device: what the compilation was for, as templates see it. Costs next to nothing where no
    records are kept.
    """
    if records.path is None or not records.path.exists():
        return {}
    place, numerics = fingerprint(c.target), c.options.numerics
    keys: dict[object, Key] = {}
    of: dict[int, Key] = {}
    for number, launch in enumerate(c.launches):
        group = group_of(c.graph, launch)
        if is_built_in(group.ops):
            if group.shape not in keys:
                problem = problem_of(c.graph, group.ops, group.outputs, device, numerics)
                keys[group.shape] = Key(problem.text, place, numerics)
            of[number] = keys[group.shape]
    rows = records.of_many(list(keys.values()), VERSIONS)
    return {number: rows[key.digest] for number, key in of.items() if rows[key.digest]}
