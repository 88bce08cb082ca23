"""One level of IR, cut down to a few kernels or to one node of the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from ..codegen.cpu.target import CpuTarget
from ..graph.text import format_op
from ..text import quote
from .dossier import place_rows
from .listing import interleaved, listing, shown
from .stages import stage_named
from .trace import nodes_in, places
from .views import Compilation, kernel_name

_CODE: Final = ("source", "llvm", "asm", "ptx", "sass")
"""Levels that consist of kernels and of nothing else."""


def part_of(
    c: Compilation[Any], numbers: Sequence[int], level: str,
    whole: Callable[[Compilation[Any], str], str], nodes: Collection[str] = (),
) -> str:  # fmt: skip
    """What a level, or the graph after a pass, has of some launches. Kernels come line by line:
    with the number of instructions, and in "asm" with the instructions themselves.

    whole: a level of a whole compilation as text. nodes: the ops of which graphs show, by default
    all that the launches compute. Raises OptionError for a level that there is not.
    """
    native = isinstance(c.target, CpuTarget)
    if level in ("kernels", "memory") or (native and level in ("source", "asm")):
        return "\n".join(line for k in numbers for line in _kernel(c, k, level))
    if level in _CODE:
        return whole(replace(c, launches=[c.launches[k] for k in numbers]), level)
    wanted = set(nodes or (n for k in numbers for n in nodes_in(c, k)))
    stages = [replace(c.stages[0], name="graph"), *c.stages, replace(c.stages[-1], name="fused")]
    graph = stage_named(stages if level in ("graph", "fused") else c.stages, level).graph
    lines = [
        format_op(graph, op, "" if op.group is None else f" group={op.group}")
        for op in graph.ops if wanted.intersection(op.source)
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _kernel(c: Compilation[Any], number: int, level: str) -> list[str]:
    nodes = " + ".join(map(quote, nodes_in(c, number)))
    head = f"k{number} {kernel_name(c.launches[number])}  # model: {nodes}"
    if level == "memory":
        return [head, *(f"  {row}" for row in place_rows(places(c, number))), ""]
    target = c.target if isinstance(c.target, CpuTarget) else None
    lines = listing(c.launches[number].kernel, target)
    return [head, *(interleaved(lines) if level == "asm" else shown(lines)), ""]
