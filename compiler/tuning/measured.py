"""What is on record of each launch of a program."""

from __future__ import annotations

from ...autotune.records import Records
from ...autotune.row import Row
from ...autotune.task import Key
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.select import group_of
from .fingerprint import fingerprint
from .problem import problems_of
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
    problems = problems_of(c.graph, device, numerics)
    keys = {shape: Key(p.text, place, numerics) for shape, p in problems.items()}
    shapes = (group_of(c.graph, launch).shape for launch in c.launches)
    of = {number: keys[shape] for number, shape in enumerate(shapes) if shape in keys}
    rows = records.of_many(list(keys.values()), VERSIONS)
    return {number: rows[key.digest] for number, key in of.items() if rows[key.digest]}
