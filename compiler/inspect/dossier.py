"""All that is known of one node of the model, or of one kernel, on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..codegen.cpu.target import CpuTarget
from ..graph.ir import Op
from ..passes.why import Seam, named
from ..text import format_type, quote, table
from .listing import listing, parameters_of, shown
from .trace import (
    Place,
    fate,
    fusion_of,
    launch_of_op,
    launches_of,
    node_named,
    nodes_in,
    ops_in,
    ops_of,
    places,
    without_code,
)
from .views import Compilation, kernel_name


@dataclass(frozen=True, slots=True)
class NodePage:
    """What became of a model node; printed, it is a page. Raises OptionError, when it is made, with
    the nearest names where the model has none of that name."""

    compilation: Compilation[Any]
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", node_named(self.compilation, self.name))

    def __str__(self) -> str:
        return node_page(self.compilation, self.name)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return node_facts(self.compilation, self.name)


@dataclass(frozen=True, slots=True)
class KernelPage:
    """One launch, by number; printed, it is a page."""

    compilation: Compilation[Any]
    number: int

    def __str__(self) -> str:
        return kernel_page(self.compilation, self.number)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return kernel_facts(self.compilation, self.number)


def node_page(c: Compilation[Any], node: str) -> str:
    """What became of a model node pass by pass, and the kernels that compute it."""
    lines = [f"model node {quote(node)}", "", "what the passes made of it"]
    steps = fate(c, node)
    wide = max(len(s.stage) for s in steps)
    for s in steps:
        for k, op in enumerate(s.ops or ("gone: constant, unused, or a part of other nodes",)):
            lines.append(f"  {'' if k else s.stage:<{wide}}  {op}")
    launches = launches_of(c, node)
    views = without_code(c, node)
    if views:
        lines += ["", "of that takes no code: a view, or parts that lie where they belong"]
        lines += [f"  {v}" for v in views]
    if not launches:
        lines += ["", "no kernel computes it"]
    mine = [c.graph.ops[k] for k in ops_of(c.graph, node)]
    for k in launches:
        lines += ["", kernel_page(c, k, [op for op in mine if op in ops_in(c, k)])]
    return "\n".join(lines)


def kernel_page(c: Compilation[Any], number: int, about: Sequence[Op] = ()) -> str:
    """One launch: its ops and why they share a kernel, its neighbours and why they do not, where
    its data lie, its loops. about: the ops whose lines are marked."""
    launch = c.launches[number]
    config = " ".join(f"{k}={v}" for k, v in launch.kernel.config)
    nodes = " + ".join(map(quote, nodes_in(c, number))) or "no node of the model"
    lines = [f"kernel k{number} {kernel_name(launch)}  {config}".rstrip(), f"  model: {nodes}"]
    lines += [f"  {said}" for said in (launch.origin, launch.note) if said]
    lines += ["", *fusion_lines(c, number)]
    lines += ["", "where its data lie", *map("  {}".format, place_rows(places(c, number)))]
    target = c.target if isinstance(c.target, CpuTarget) else None
    code = listing(launch.kernel, target)
    made = " and how many instructions each line takes" if target else ""
    lines += ["", f"its loops{made}"]
    marked: frozenset[str] = frozenset()
    if about:
        marked = parameters_of(c, number, about)
        lines[-1] += f"; > reads or writes what is of {_listed(about)}"
    return "\n".join([*lines, *shown(code, marked)])


def fusion_lines(c: Compilation[Any], number: int) -> list[str]:
    """Why the ops of a launch share it, and why their neighbours are elsewhere."""
    found = fusion_of(c)
    if found is None:
        return ["the program was loaded: why ops share kernels is known where it was compiled"]
    ops = ops_in(c, number)
    rows = [(f"  {named(op)}", op.operator, found.together.get(op.outputs[0], "")) for op in ops]
    lines = ["its ops, and why they share a kernel", table(rows)]
    before, behind = found.around(ops)
    where = launch_of_op(c)
    for title, seams, inner in (("before it", before, False), ("behind it", behind, True)):
        if seams:
            lines.append(f"{title}, and why that is another kernel")
            lines += [f"  {line}" for s in seams for line in _seam(s, inner, where)]
    return lines


def _seam(s: Seam, behind: bool, where: Any) -> Iterator[str]:
    other = s.after if behind else s.before
    at = where.get(other.outputs[0])
    who = f"{named(other)} ({other.operator}, {'no kernel' if at is None else f'k{at}'})"
    yield f"%{quote(s.blob)} {'to' if behind else 'from'} {who}"
    yield f"    {s.why}"


def place_rows(found: Sequence[Place]) -> list[str]:
    """A line for each place, in columns."""
    rows = []
    for p in found:
        blobs = ", ".join(f"%{quote(b)}" for b in p.blobs)
        kind = "" if p.type is None else format_type(p.type)
        rows.append((p.role, p.parameter, blobs or "-", kind, str(p)))
    return table(rows).splitlines()


# --------------------------------------------------------------------------- as data


def node_facts(c: Compilation[Any], node: str) -> dict[str, Any]:
    """What `node_page` says, as JSON values."""
    return {
        "node": node,
        "steps": [asdict(s) for s in fate(c, node)],
        "without_code": list(without_code(c, node)),
        "kernels": [kernel_facts(c, k) for k in launches_of(c, node)],
    }


def kernel_facts(c: Compilation[Any], number: int) -> dict[str, Any]:
    """What `kernel_page` says, as JSON values."""
    launch, ops, found = c.launches[number], ops_in(c, number), fusion_of(c)
    where = launch_of_op(c)
    why = {} if found is None else found.together
    before, behind = ((), ()) if found is None else found.around(ops)

    def seam(s: Seam, op: Op) -> dict[str, Any]:
        return {"blob": s.blob, "op": op.name, "operator": op.operator,
                "kernel": where.get(op.outputs[0]), "why": s.why}  # fmt: skip

    target = c.target if isinstance(c.target, CpuTarget) else None
    return {
        "number": number,
        "name": kernel_name(launch),
        "template": launch.kernel.template,
        "config": dict(launch.kernel.config),
        "nodes": list(nodes_in(c, number)),
        "ops": [{"name": op.name, "operator": op.operator, "why": why.get(op.outputs[0], "")}
                for op in ops],
        "before": [seam(s, s.before) for s in before],
        "behind": [seam(s, s.after) for s in behind],
        "places": [asdict(p) | {"type": None if p.type is None else format_type(p.type)}
                   for p in places(c, number)],
        "lines": [asdict(line) for line in listing(launch.kernel, target)],
    }  # fmt: skip


def _listed(ops: Sequence[Op]) -> str:
    return " and ".join(dict.fromkeys(map(named, ops)))
