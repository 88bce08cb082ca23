"""Other kernels for a launch, for programs that must get by with less memory than the default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..graph.ir import Graph
from ..options import Numerics
from .device import Device
from .ir import Launch
from .select import group_of, templates_for
from .template import Frugal, KernelTemplate, Rival


def alternatives(
    graph: Graph, launch: Launch, device: Device, numerics: Numerics
) -> Iterator[Launch]:
    """Launches that compute the same ops, the fastest first, made as they are asked for.

    First come the default of the launch's own template, unless it is that, and its lean configs,
    then its rivals and the templates behind it in the order of preference, as long as none was free
    of scratch.
    Templates may differ in the order in which they add, so that numerics "reproducible" keeps to
    one.
    """
    group = group_of(graph, launch)
    ops, outputs = group.ops, group.outputs
    templates = templates_for(device, numerics)
    own = next(k for k, t in enumerate(templates) if t.name == launch.kernel.template)
    order = [templates[own]]
    if numerics != "reproducible":
        order += [t for t in templates[:own] if _are_rivals(t, order[0])] + [*templates[own + 1 :]]
    free = not _scratch(launch)
    for template in order:
        first = template is order[0]
        if not first and (free or not template.matches(graph, ops, outputs)):
            continue
        default = template.default(graph, ops, outputs, device)
        configs = [] if first and default == dict(launch.kernel.config) else [default]
        if isinstance(template, Frugal):
            configs += template.lean(graph, ops, outputs, device)
        for config in configs:
            made = template.instantiate(graph, ops, outputs, device, config)
            free = free or not _scratch(made)
            yield replace(made, ops=launch.ops, label=launch.label)


def _are_rivals(t: KernelTemplate, other: KernelTemplate) -> bool:
    return isinstance(t, Rival) and isinstance(other, Rival) and t.family == other.family


def _scratch(launch: Launch) -> int:
    return sum(b.nbytes for b in launch.kernel.params if b.role == "scratch")
