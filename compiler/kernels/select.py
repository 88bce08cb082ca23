"""Choose a template and a config for every fusion group: graph in, launches out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ...ops.library import BUILT_IN
from ...ops.operator import Contraction
from ..errors import LoweringError
from ..graph.ir import Graph, Op
from ..graph.storage import needs_no_code
from ..options import Numerics
from ..passes.convolutions import is_depthwise
from .access import element_by_element
from .attention import Attend
from .compose import only_element
from .conv import DirectConv
from .depthwise import Depthwise
from .device import Device, GpuDevice
from .grouped import GroupedConv
from .ir import Launch, Prepared
from .known import Record, record_of, restored, shape_digest
from .matmul import Gemm
from .nest import Nest
from .recurrent import Recurrent
from .scan import CumulativeSum
from .scatter import Scatter
from .sorting import ArgReduce, TopK
from .template import KernelTemplate, Marked, Rival
from .unpool import Unpool
from .winograd import Winograd

TEMPLATES: Final[tuple[KernelTemplate, ...]] = (
    Winograd(), Depthwise(), DirectConv(), GroupedConv(), Attend(), Gemm(), Recurrent(),
    ArgReduce(), TopK(), CumulativeSum(), Scatter(), Unpool(), Nest(),
)  # fmt: skip
"""For CPUs, in the order of preference; the last one takes any group with expressions."""
RIVAL_MARGIN: Final = 1.25
"""How many times as fast as the first of its family a template's estimate must be to go before it:
estimates of different templates are not that good."""
logger = logging.getLogger("tilewright")

Names = tuple[str, ...]
Recall = Callable[[Sequence[str]], Mapping[str, Record]]


def live_outputs(graph: Graph, ops: Sequence[Op]) -> tuple[str, ...]:
    """The blobs of a group that others read, or the caller. An unused group keeps its last."""
    inside = set(map(id, ops))
    found = [
        o for op in ops for o in op.outputs
        if o in graph.outputs or any(id(u) not in inside for u in graph.consumers[o])
    ]  # fmt: skip
    return tuple(found) or (ops[-1].outputs[0],)


@dataclass(frozen=True, slots=True)
class Group:
    """A fusion group that needs code. outputs: the live ones. shape, names: as in `shape_of`."""

    ops: tuple[Op, ...]
    outputs: Names
    shape: object
    names: Names


Special = Callable[[str, Group], Launch | None]
"""A launch for a group with the given digest that takes the place of the default one, if any."""


def select(
    graph: Graph, device: Device, recall: Recall | None = None, special: Special | None = None,
    templates: Sequence[KernelTemplate] | None = None, numerics: Numerics = "standard",
) -> tuple[Launch, ...]:  # fmt: skip
    """One launch for every group that needs code, by the template that `preferred` gives.

    recall: finds records of kernels that were made before by the digests of the groups' shapes;
    those are not written again. special: asked for what it does not know. templates: in the order
    of preference; those for CPUs where none are given. Raises LoweringError naming the ops where no
    template fits.
    """
    templates = TEMPLATES if templates is None else templates
    positions = {id(op): k for k, op in enumerate(graph.ops)}
    digests = digests_of(graph) if recall or special else {}
    known = recall(list(digests.values())) if recall else {}
    made: dict[object, tuple[Launch, Names]] = {}
    launches = []
    for group in coded_groups(graph):
        ops, outputs, shape, names = group.ops, group.outputs, group.shape, group.names
        if shape not in made:
            digest = digests.get(shape, "")
            record = known.get(digest)
            launch = None
            if record:
                launch = restored(record, templates, graph, ops, outputs, names, device)
            if launch is None and special is not None and digest:
                launch = special(digest, group)
            launch = launch or _make(graph, ops, outputs, device, templates, numerics)
            _report(graph, ops, launch, templates[-1], isinstance(device, GpuDevice))
            made[shape] = launch, names
        launch = rebound(*made[shape], names)
        launches.append(replace(launch, ops=tuple(positions[id(op)] for op in ops),
                                label=label(ops)))  # fmt: skip
    return tuple(launches)


def records(graph: Graph, launches: Sequence[Launch]) -> dict[str, Record]:
    """What `recall` has to know to get the same launches again, as JSON values."""
    digests, out = digests_of(graph), {}
    for launch in {x.kernel: x for x in launches}.values():
        group = group_of(graph, launch)
        record = record_of(launch, group.names)
        if record is not None and group.shape in digests:
            out[digests[group.shape]] = record
    return out


def coded_groups(graph: Graph) -> tuple[Group, ...]:
    """The groups that need code, in order."""
    if coded_groups not in graph.derived:
        found = []
        for ops in graph.groups:
            if not needs_no_code(graph, ops):
                outputs = live_outputs(graph, ops)
                found.append(Group(ops, outputs, *shape_of(graph, ops, outputs)))
        graph.derived[coded_groups] = tuple(found)
    groups: tuple[Group, ...] = graph.derived[coded_groups]
    return groups


def group_of(graph: Graph, launch: Launch) -> Group:
    """The group that a launch of the graph computes."""
    if group_of not in graph.derived:
        graph.derived[group_of] = {g.ops[0].outputs[0]: g for g in coded_groups(graph)}
    groups: Mapping[str, Group] = graph.derived[group_of]
    return groups[graph.ops[launch.ops[0]].outputs[0]]


def digests_of(graph: Graph) -> Mapping[object, str]:
    """Names for the distinct shapes of a graph's groups that mean the same in any process."""
    if digests_of not in graph.derived:
        ours = dict.fromkeys(g.shape for g in coded_groups(graph) if is_built_in(g.ops))
        graph.derived[digests_of] = {shape: shape_digest(shape) for shape in ours}
    digests: Mapping[object, str] = graph.derived[digests_of]
    return digests


def is_built_in(ops: Sequence[Op]) -> bool:
    """Whether a group's shape says what it computes: users may declare operators anew."""
    return all(BUILT_IN.get(op.operator) is op.definition for op in ops)


Templates = Callable[[Any, Numerics], Sequence[KernelTemplate]]
"""From a device and numerics to templates."""
_FAMILIES: Final[dict[type[Device], Templates]] = {Device: lambda device, numerics: TEMPLATES}


def register(kind: type[Device], templates: Templates) -> None:
    """Say what makes kernels for a kind of device. Templates for GPUs take long to load, so they do
    that themselves when somebody wants them."""
    _FAMILIES[kind] = templates


def templates_for(
    device: Device, numerics: Numerics = "standard"
) -> Sequence[KernelTemplate]:  # fmt: skip
    """Templates that make kernels for a device, in the order of preference. Raises LoweringError
    where nobody has said which."""
    try:
        return _FAMILIES[type(device)](device, numerics)
    except KeyError:
        raise LoweringError(f"no kernel templates are loaded for {device}") from None


def preferred(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device, numerics: Numerics,
    templates: Sequence[KernelTemplate],
) -> tuple[KernelTemplate | None, str]:  # fmt: skip
    """The first of the templates that fits a group, if any does; of a family, the one with the best
    estimate. And what decided between rivals, "" where it is the first.

    Templates add in orders of their own, and estimates depend on sizes: so under "reproducible" it
    is always the first. templates: as for `select`.
    """
    given = graph, ops, outputs
    first = next((t for t in templates if t.matches(*given)), None)
    if first is None or numerics == "reproducible":
        return first, ""
    others = _rivals(*given, first, templates)
    if not isinstance(first, Rival) or not others:
        return first, ""
    seconds = {t.name: t.estimate(*given, device, t.default(*given, device))
               for t in (first, *others)}  # fmt: skip
    best = min(others, key=lambda t: seconds[t.name])
    if seconds[best.name] * RIVAL_MARGIN >= seconds[first.name]:
        return first, ""
    said = ", ".join(f"{name} {s * 1e6:.3g} us" for name, s in seconds.items())
    return best, f"chosen by estimates: {said}"


def _rivals(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], first: KernelTemplate,
    templates: Sequence[KernelTemplate],
) -> tuple[Rival, ...]:  # fmt: skip
    """The others of a template's family that compute a group."""
    if not isinstance(first, Rival):
        return ()
    return tuple(t for t in templates if isinstance(t, Rival) and t is not first
                 and t.family == first.family and t.matches(graph, ops, outputs))  # fmt: skip


def able(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device, numerics: Numerics,
    templates: Sequence[KernelTemplate],
) -> tuple[KernelTemplate, ...]:  # fmt: skip
    """Templates that may compute a group, the one that is used without tuning first: it, those that
    passes mark groups for, and a family. Under "reproducible" there is that one only. templates: as
    for `select`."""
    given = graph, ops, outputs
    first, _ = preferred(*given, device, numerics, templates)
    if first is None or numerics == "reproducible":
        return () if first is None else (first,)
    other = next(t for t in templates if not isinstance(t, Marked) and t.matches(*given))
    more = (t for t in templates if isinstance(t, Marked) and t.serves(*given))
    return tuple(dict.fromkeys((first, *more, other, *_rivals(*given, other, templates))))


def _make(
    graph: Graph, ops: Sequence[Op], outputs: tuple[str, ...], device: Device,
    templates: Sequence[KernelTemplate], numerics: Numerics,
) -> Launch:  # fmt: skip
    template, why = preferred(graph, ops, outputs, device, numerics, templates)
    if template is None:
        what = ", ".join(f"{op.operator} (node {op.name!r})" for op in ops)
        raise LoweringError(f"no kernel of this target computes {what}")
    config = template.default(graph, ops, outputs, device)
    launch = template.instantiate(graph, ops, outputs, device, config)
    return replace(launch, note=why) if why else launch


# --------------------------------------------------------------------------- equal groups
#
# Networks repeat their blocks. Groups that differ in the names of blobs only get one kernel object,
# which saves building, printing and hashing it again.


def shape_of(graph: Graph, ops: Sequence[Op], outputs: Names) -> tuple[object, Names]:
    """All that templates may look at, with blobs numbered in order of appearance; and their names.

    Of constants that is whether they are there, and the value of those that kernels write out.
    """
    numbers: dict[str, int] = {}
    facts: list[object] = []

    def number(name: str | None) -> int | None:
        if name is None:
            return None
        if name not in numbers:
            numbers[name] = len(numbers)
            b = graph.blobs[name]
            one = only_element(b)
            facts.append((b.type, b.is_constant, None if one is None else one.tobytes()))
        return numbers[name]

    body = tuple(
        (op.operator, op.attrs, tuple(map(number, op.inputs)), tuple(map(number, op.outputs)))
        for op in ops
    )
    return (body, tuple(map(number, outputs)), tuple(facts)), tuple(numbers)


def rebound(launch: Launch, old: Names, new: Names) -> Launch:
    """The launch with other blobs in the same places."""
    if old == new:
        return launch
    to = dict(zip(old, new, strict=True))
    args = tuple(
        to[a] if isinstance(a, str)
        else replace(a, blobs=tuple(to[b] for b in a.blobs)) if isinstance(a, Prepared)
        else None
        for a in launch.args
    )  # fmt: skip
    return replace(launch, args=args)


def _report(
    graph: Graph, ops: Sequence[Op], launch: Launch, general: KernelTemplate, on_gpu: bool
) -> None:
    if logger.isEnabledFor(logging.INFO):
        if launch.kernel.template == general.name:
            _report_fallback(graph, ops)
        if not on_gpu:  # whose threads may read from anywhere
            _report_slow_access(ops, launch)


def _report_fallback(graph: Graph, ops: Sequence[Op]) -> None:
    """Say when a contraction runs in the general loop nest, which is correct but slow."""
    slow = [op for op in ops if is_slow_in_a_nest(graph, op)]
    if slow:
        op = slow[0]
        types = ", ".join(str(t) for t in graph.input_types(op))
        logger.info("%s (node %r) of (%s) runs as a general loop nest: no contraction kernel fits",
                    op.operator, op.name, types)  # fmt: skip


def _report_slow_access(ops: Sequence[Op], launch: Launch) -> None:
    """Say which buffers a kernel reads or writes one element at a time."""
    slow = element_by_element(launch.kernel)
    if slow:
        logger.info("%s: %s element by element; another layout would be faster",
                    label(ops), ", ".join(slow))  # fmt: skip


def is_slow_in_a_nest(graph: Graph, op: Op) -> bool:
    """Whether a general loop nest computes an op far slower than a template for it would."""
    trait = op.definition.trait(Contraction)
    return trait is not None and not (trait.kind == "conv" and is_depthwise(graph, op))


def label(ops: Sequence[Op]) -> str:
    """How reports call a kernel: the model nodes it stands for."""
    names = dict.fromkeys(s for op in ops for s in (op.source or (op.operator,)))
    shown = list(names)
    return " + ".join(shown if len(shown) <= 4 else [*shown[:3], f"{len(shown) - 3} more"])
