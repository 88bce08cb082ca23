"""What a compilation made, as text: one function per level of IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from ..codegen.cpu import lower
from ..codegen.cpu.assemble import assembly
from ..codegen.cpu.target import CpuTarget
from ..graph.ir import Graph
from ..graph.text import to_text
from ..kernels.ir import Kernel, Launch, Prepared
from ..kernels.printer import kernel_digest, kernel_text, symbol
from ..memory.plan import MemoryPlan
from ..options import Options
from ..passes.base import Stage
from ..store import Key
from ..text import quote
from .memory import memory_use
from .stages import stage_text


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry of the store that finds the launches again (see `api.recall`). is_new: it is not
    stored yet."""

    key: Key
    records: bytes
    is_new: bool


TargetT = TypeVar("TargetT")


@dataclass(frozen=True, slots=True)
class Compilation(Generic[TargetT]):
    """Everything that the views read. stages: they may be made when somebody looks at them.
    choices: what was to take the place of default configs, as data (see `tuning.choices`)."""

    graph: Graph
    stages: Sequence[Stage]
    launches: Sequence[Launch]
    plan: MemoryPlan
    target: TargetT
    options: Options
    kept: Kept | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Graph:
        """The graph before all passes."""
        return self.stages[0].graph


def kernel_name(launch: Launch) -> str:
    """How a kernel is called in reports: template and content hash."""
    return f"{launch.kernel.template}_{kernel_digest(launch.kernel)[:8]}"


def _argument(arg: str | Prepared | None) -> str:
    if arg is None:
        return "scratch"
    if isinstance(arg, str):
        return f"%{quote(arg)}"
    return f"{arg.recipe}({', '.join('@' + quote(b) for b in arg.blobs)})"


def kernels_view(c: Compilation) -> str:
    """Every launch in order with its blobs; the code of each distinct kernel once."""
    out, seen = [], set()
    for k, launch in enumerate(c.launches):
        args = ", ".join(
            f"{b.name}={_argument(a)}"
            for a, b in zip(launch.args, launch.kernel.params, strict=True)
        )
        out.append(f"k{k} {kernel_name(launch)}({args})  # model: {quote(launch.label)}")
        out += [f"  # {said}" for said in (launch.origin, launch.note) if said]
        digest = kernel_digest(launch.kernel)
        if digest not in seen:
            seen.add(digest)
            out += ["  " + line for line in kernel_text(launch.kernel).splitlines()]
        out.append("")
    return "\n".join(out)


def distinct(c: Compilation) -> list[tuple[Launch, Kernel]]:
    """Every kernel once, with the first launch of it."""
    found: dict[str, tuple[Launch, Kernel]] = {}
    for launch in c.launches:
        found.setdefault(symbol(launch.kernel), (launch, launch.kernel))
    return list(found.values())


def _native(c: Compilation[CpuTarget], show: Callable[[str], str]) -> str:
    parts = []
    for launch, kernel in distinct(c):
        text = lower.module_text(kernel, c.target.arithmetic)
        parts.append(f"; {kernel_name(launch)}: {quote(launch.label)}\n{show(text)}")
    return "\n".join(parts)


def cpu_code(target: CpuTarget) -> Callable[[Kernel], dict[str, str]]:
    """What gives the texts of one kernel by level: "ir", "llvm" and "asm"."""

    def texts(kernel: Kernel) -> dict[str, str]:
        llvm = lower.module_text(kernel, target.arithmetic)
        return {"ir": kernel_text(kernel), "llvm": llvm, "asm": assembly(llvm, target)}

    return texts


def memory_view(c: Compilation) -> str:
    """The plan's certificate, memory by type of operator, and every block."""
    use = memory_use(c.graph, c.launches, c.plan)
    return f"{c.plan.certificate()}\n\n{use}\n\n{c.plan.blocks()}\n"


COMMON: Final[Mapping[str, Callable[[Compilation], str]]] = {
    "graph": lambda c: to_text(c.source),
    "fused": lambda c: to_text(c.graph),
    "memory": memory_view,
    "kernels": kernels_view,
}
"""Levels that every target has."""

VIEWS: Final[Mapping[str, Callable[[Compilation[CpuTarget]], str]]] = {
    **COMMON,
    "source": kernels_view,
    "llvm": lambda c: _native(c, str),
    "asm": lambda c: _native(c, lambda text: assembly(text, c.target)),
}


DUMPED: Final = ("memory", "kernels", "llvm", "asm")
"""Levels that TILEWRIGHT_DUMP writes behind the stages, which are the others."""


def view(c: Compilation[CpuTarget], level: str) -> str:
    """The text of one level, or of the graph after a pass. Raises OptionError for what there is
    not."""
    return VIEWS[level](c) if level in VIEWS else stage_text(c.stages, level, VIEWS)
