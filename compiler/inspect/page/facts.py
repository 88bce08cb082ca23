"""What the report shows of a program, as JSON values.

Lists stand for rows, in the order in which the page's scripts read them; times are seconds, sizes
bytes. Names are those of the model, but that nothing in them can steer what shows them.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final

from ....autotune.choice import MARGIN
from ....autotune.outcome import Measurement
from ....autotune.row import Row
from ....autotune.statistics import are_apart
from ....autotune.task import Candidate
from ...graph.ir import Graph, Op
from ...graph.text import to_text
from ...kernels.access import element_by_element
from ...kernels.ir import Kernel, Launch, Prepared
from ...kernels.printer import symbol
from ...memory.plan import MemoryPlan
from ...passes.why import named
from ...text import format_type, format_value, printable
from ..arena import alive, boxes, highest
from ..profile import Profile, ProfileRow
from ..trace import fusion_of, launch_of_op
from ..views import Compilation, distinct, kernel_name
from .layers import layout

Code = Callable[[Kernel], Mapping[str, str]]
"""The texts of a kernel by level."""

LONGEST: Final = 200
"""Characters of an attribute; a table of constants may have thousands."""
_NO_ROWS: Final[Mapping[int, Sequence[Row]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is made of. name: of the model. stations: seconds of what came after the passes,
    by name. profile: where there is one. measured: what is on record of the problem of a launch, by
    its number.
    """

    name: str
    target: str
    compilation: Compilation
    code: Code
    stations: Mapping[str, float] = field(default_factory=dict)
    profile: Profile | None = None
    measured: Mapping[int, Sequence[Row]] = field(default_factory=lambda: _NO_ROWS)


def facts(r: Report) -> dict[str, Any]:
    """Everything but the texts of kernels and stages."""
    c = r.compilation
    kernels = {symbol(k): n for n, (_, k) in enumerate(distinct(c))}
    seams = _seams(c)
    return {
        "name": printable(r.name),
        "target": printable(r.target),
        "numerics": c.options.numerics,
        "nodes": len(c.source.ops),
        "inputs": [_blob(c.graph, n) for n in c.graph.inputs],
        "outputs": [_blob(c.graph, n) for n in c.graph.outputs],
        "stations": [[name, seconds] for name, seconds in r.stations.items()],
        "stages": [[s.name, s.milliseconds / 1e3, s.changed, len(s.graph.ops)] for s in c.stages],
        "ops": [_op(c.graph, op) for op in c.graph.ops],
        "graph": _graph(c.graph, c.launches),
        "kernels": [
            _launch(c, launch, kernels[symbol(launch.kernel)]) | {"seams": seams.get(k, [])}
            for k, launch in enumerate(c.launches)
        ],
        "profile": None if r.profile is None else _profile(r.profile),
        "measured": _measured(c.launches, r.measured),
        "memory": _memory(c.plan),
    }  # fmt: skip


def texts(r: Report) -> dict[str, Any]:
    """The texts of every distinct kernel by level, and the graph after each pass that changed it;
    all packed."""
    c = r.compilation
    return {
        "kernels": [{level: packed(text) for level, text in r.code(kernel).items()}
                    for _, kernel in distinct(c)],
        "stages": [packed(to_text(s.graph)) if s.changed else None for s in c.stages],
    }  # fmt: skip


def packed(text: str) -> str:
    """A text, deflated (RFC 1950), in base64."""
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode("ascii")


# --------------------------------------------------------------------------- the graph


def _blob(graph: Graph, name: str) -> list[str]:
    blob = graph.blobs[name]
    return [printable(name), printable(format_type(blob.type)), blob.role.value]


def _op(graph: Graph, op: Op) -> list[Any]:
    """[operator, name, model nodes, attributes, inputs, outputs]"""
    attributes = [[k, _short(format_value(v))] for k, v in op.attrs]
    return [op.operator, printable(op.name), [printable(s) for s in op.source], attributes,
            [_blob(graph, n) for n in op.reads], [_blob(graph, n) for n in op.outputs]]  # fmt: skip


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _graph(graph: Graph, launches: Sequence[Launch]) -> dict[str, Any]:
    """blocks: [kind, launch or -1, its ops by number or the blob that it is, layer, x, x of its
    edges in the layers below]; edges: [from, to, blobs]."""
    number = {id(op): k for k, op in enumerate(graph.ops)}
    launched = {k: n for n, launch in enumerate(launches) for k in launch.ops}
    blocks: list[list[Any]] = []
    writer: dict[str, int] = {}
    for name in graph.inputs:
        writer[name] = len(blocks)
        blocks.append(["input", -1, _blob(graph, name)])
    for ops in graph.groups:
        members = [number[id(op)] for op in ops]
        kind = "kernel" if members[0] in launched else "view"
        for op in ops:
            writer |= dict.fromkeys(op.outputs, len(blocks))
        blocks.append([kind, launched.get(members[0], -1), members])
    edges: dict[tuple[int, int], dict[str, None]] = {}
    for at, block in enumerate(blocks):
        if block[0] in ("kernel", "view"):
            for name in (n for k in block[2] for n in graph.ops[k].reads):
                if name in writer and writer[name] != at:
                    edges.setdefault((writer[name], at), {})[printable(name)] = None
    for name in graph.outputs:
        if name in writer:
            edges[writer[name], len(blocks)] = {printable(name): None}
        blocks.append(["output", -1, _blob(graph, name)])
    drawn = layout(len(blocks), list(edges))
    for k, block in enumerate(blocks):
        way = [round(x, 2) for x in drawn.ways.get(k, ())]
        block += [drawn.layer[k], round(drawn.x[k], 2), way]
    return {"blocks": blocks, "edges": [[a, b, list(blobs)] for (a, b), blobs in edges.items()]}


# --------------------------------------------------------------------------- kernels


def _launch(c: Compilation, launch: Launch, code: int) -> dict[str, Any]:
    """code: the number of its texts."""
    kernel, ops = launch.kernel, c.graph.ops
    nodes = dict.fromkeys(printable(s) for k in launch.ops for s in ops[k].source)
    return {
        "name": kernel_name(launch), "template": kernel.template, "code": code,
        "config": [[k, str(v)] for k, v in kernel.config], "nodes": list(nodes),
        "operators": list(dict.fromkeys(ops[k].operator for k in launch.ops)),
        "ops": list(launch.ops), "flops": kernel.flops, "bytes": kernel.bytes,
        "origin": launch.origin or ("memory limit" if launch.note else "default"),
        "notes": list(_notes(launch)),
        "args": [[b.name, b.role, f"{b.dtype}[{b.elements}]", *_argument(a)]
                 for a, b in zip(launch.args, kernel.params, strict=True)],
    }  # fmt: skip


def _seams(c: Compilation) -> dict[int, list[list[str]]]:
    """By launch, the blobs at which it ends and others begin: [blob, the op that reads it, why they
    are not one launch]."""
    found, launched = fusion_of(c), launch_of_op(c)
    out: dict[int, list[list[str]]] = {}
    for seam in found.seams if found else ():
        number = launched.get(seam.before.outputs[0])
        if number is not None:
            told = [seam.blob, named(seam.after), seam.why]
            out.setdefault(number, []).append(list(map(printable, told)))
    return out


def _notes(launch: Launch) -> Iterator[str]:
    yield from element_by_element(launch.kernel)
    if launch.note:
        yield launch.note


def _argument(arg: str | Prepared | None) -> tuple[str, str]:
    """(blobs, how they are packed)"""
    if arg is None:
        return "", ""
    if isinstance(arg, str):
        return printable(arg), ""
    return ", ".join(map(printable, arg.blobs)), arg.recipe


def _profile(profile: Profile) -> dict[str, Any]:
    return {"seconds": profile.seconds, "of_limit": profile.of_limit, "rounds": profile.rounds,
            "limits": asdict(profile.limits), "rows": list(map(_timed, profile.rows))}  # fmt: skip


def _timed(row: ProfileRow) -> dict[str, Any]:
    return {"seconds": row.seconds, "share": row.share, "gflops": row.gflops, "gbytes": row.gbytes,
            "of_limit": row.of_limit, "bound": row.bound, "level": row.level}  # fmt: skip


def _measured(
    launches: Sequence[Launch], measured: Mapping[int, Sequence[Row]]
) -> dict[str, Any]:  # fmt: skip
    """problems: of each the candidates on record, the fastest first, and how many failed; launches:
    the problem of each."""
    problems: list[dict[str, Any]] = []
    number: dict[str, int] = {}
    of = []
    for k, launch in enumerate(launches):
        rows = measured.get(k, ())
        if not rows:
            of.append(-1)
            continue
        key = rows[0].key.digest
        if key not in number:
            number[key] = len(problems)
            problems.append(_problem(launch, rows))
        of.append(number[key])
    return {"problems": problems, "launches": of}


def _problem(launch: Launch, rows: Sequence[Row]) -> dict[str, Any]:
    timed = [(row, row.outcome) for row in rows if isinstance(row.outcome, Measurement)]
    timed.sort(key=lambda pair: (pair[1].seconds, pair[0].identity))
    kernel, found = launch.kernel, []
    running = Candidate(kernel.template, kernel.version, dict(kernel.config))
    for row, outcome in timed:
        best = timed[0][1]
        made = row.candidate
        marks = [word for word, is_so in (
            ("runs", made == running), ("default", row.is_default),
            ("disturbed", outcome.contaminated),
        ) if is_so]  # fmt: skip
        found.append([
            made.template, " ".join(f"{k}={v}" for k, v in made.config.items()), outcome.seconds,
            outcome.low, outcome.high, outcome.seconds / best.seconds - 1,
            outcome is best or not are_apart(outcome, best), marks,
        ])  # fmt: skip
    return {"rows": found, "failed": len(rows) - len(timed), "margin": MARGIN}


# --------------------------------------------------------------------------- memory


def _memory(plan: MemoryPlan) -> dict[str, Any]:
    """boxes: [kind, first step, last step, bytes, offset, address in the chart, names, holds]"""
    return {
        "arena": plan.arena_bytes, "bound": plan.lower_bound_bytes,
        "unshared": plan.unshared_bytes, "highest": highest(plan), "peak": plan.peak_step,
        "steps": [printable(step.name) for step in plan.steps], "alive": alive(plan),
        "boxes": [
            [x.kind, x.block.first, x.block.last, x.block.bytes, x.offset, x.address,
             [printable(n) for n in x.block.members or (x.block.name,)],
             [printable(n) for n in x.holds]]
            for x in boxes(plan)
        ],
    }  # fmt: skip
