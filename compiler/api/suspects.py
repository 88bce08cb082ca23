"""Whose fault a wrong kernel is: code generation, a config, a template, fusion, an operator.

The kernel is alone here, with the data with which it was seen to fail. What its text says is
computed without code generation: if that is right, the code is wrong. If not, other kernels for the
same data are tried: the same template's other configs, other templates, and each op in a kernel of
its own. The first change that mends it names the culprit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ...autotune.task import Candidate
from ...ops.interpreter import run_compute
from ..errors import LoweringError
from ..graph.evaluate import evaluate
from ..graph.ir import Graph
from ..inspect.interpret import KernelError
from ..kernels.ir import For, If, Launch, Stmt
from ..kernels.select import templates_for
from ..kernels.template import KernelTemplate
from ..tuning.alone import Filled, difference, filled, interpreted
from ..tuning.problem import problem_of
from ..tuning.reference import Reference
from .making import Maker

Array = npt.NDArray[Any]
Kind = Literal["code generation", "config", "template", "fusion", "operator", "nobody"]

MOST_STEPS: Final = 3_000_000
"""Statements that interpreting a kernel may take: half a minute or so."""
MOST_CONFIGS: Final = 6
"""Other configs of a template that are tried."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """The part at fault, its name, and how that was found, a sentence each."""

    kind: Kind
    name: str
    grounds: tuple[str, ...]


def suspect(problem: Filled, launch: Launch, maker: Maker) -> Suspect:
    """Who is to blame for a launch that computes `problem` wrongly. launch: bound to its blobs."""
    return _Trial(problem, launch, maker).verdict()


class _Trial:
    def __init__(self, problem: Filled, launch: Launch, maker: Maker) -> None:
        self.problem, self.launch, self.maker = problem, launch, maker
        self.known = templates_for(problem.device, problem.numerics)
        self.reference = Reference(problem)
        kernel = launch.kernel
        self.made = Candidate(kernel.template, kernel.version, dict(kernel.config))

    def verdict(self) -> Suspect:
        if not self.wrong(self.launch):
            return Suspect("nobody", self.made.template,
                           ("built again and run in memory of its own, it is right",))  # fmt: skip
        grounds = []
        text = self.interpreted()
        if text == "":
            return Suspect("code generation", self.maker.codegen, (
                "the kernel's text, computed without code generation, is right",
                f"the code made of it is not: template {self.made}"))  # fmt: skip
        if text is not None:
            grounds.append(f"the kernel's text is wrong already ({text})")
        elif self.is_for_threads:
            grounds.append("the kernel is written thread by thread, so that its text and its code "
                           "are not told apart")  # fmt: skip
        else:
            grounds.append("the kernel is too large to tell its text and its code apart")
        config = next((c for c in self.configs() if self.right(c)), None)
        if config is not None:
            return Suspect("config", str(self.made),
                           (*grounds, f"the same template is right with {config}"))  # fmt: skip
        name = self.made.template
        other = next((t.name for t in self.templates() if self.right_by(t)), None)
        if other is not None:
            grounds.append(f"the template {other} computes the same ops rightly")
            return Suspect("template", name, tuple(grounds))
        alone = self.single_ops()
        bad = [(op, why) for op, why in alone.items() if why]
        if not bad and len(alone) > 1:
            grounds.append("each of the ops is right in a kernel of its own")
            return Suspect("fusion", " + ".join(alone), tuple(grounds))
        for op, why in bad:
            grounds.append(f"{op} is wrong in a kernel of its own as well ({why})")
            said = self.expression(op)
            if said:
                grounds.append(f"its expression is not what its reference computes ({said})")
                return Suspect("operator", op, tuple(grounds))
        if bad:
            grounds.append("the expressions of these ops are right")
        return Suspect("template", name if not bad else self.known[-1].name, tuple(grounds))

    # ---------------------------------------------------------------- trying

    def wrong(self, launch: Launch) -> str:
        """What is wrong with a launch's results, "" if nothing."""
        return difference(self.reference, launch, self.maker.alone(self.problem, launch))

    @property
    def is_for_threads(self) -> bool:
        """Whether the text says what threads do together, which is not interpreted."""
        return any(p.threads for p in self.launch.kernel.phases)

    def interpreted(self) -> str | None:
        """What is wrong with what the text says; None where that takes too long to find out, or
        cannot be."""
        if self.is_for_threads or steps(self.launch) > MOST_STEPS:
            return None
        try:
            return difference(self.reference, self.launch, interpreted(self.problem, self.launch))
        except (KernelError, AssertionError) as e:
            return f"it does what no kernel may do: {e}"

    def configs(self) -> Iterator[Candidate]:
        """Other configs of the template, far apart."""
        space = [c for c in self.problem.space() if c.template == self.made.template
                 and c.text != self.made.text]  # fmt: skip
        pace = max(1, len(space) // MOST_CONFIGS)
        return iter(space[::pace][:MOST_CONFIGS])

    def right(self, other: Candidate) -> bool:
        try:
            return not self.wrong(self.problem.instantiate(other))
        except LoweringError:
            return False

    def templates(self) -> Iterator[KernelTemplate]:
        given = self.problem.graph, self.problem.ops, self.problem.outputs
        for t in self.known:
            if t.name != self.made.template and t.matches(*given):
                yield t

    def right_by(self, t: KernelTemplate) -> bool:
        p = self.problem
        try:
            config = t.default(p.graph, p.ops, p.outputs, p.device)
            launch = t.instantiate(p.graph, p.ops, p.outputs, p.device, config)
            return not self.wrong(replace(launch, ops=self.launch.ops))
        except LoweringError:
            return False

    def single_ops(self) -> Mapping[str, str]:
        """Each op of the group by itself, on what the references make of the ops before it: its
        operator, and what is wrong with it."""
        g = self.problem.graph
        inner = tuple(o for op in g.ops for o in op.outputs)
        every = evaluate(replace_outputs(g, inner), self.problem.feeds(), wide=False)
        known = {**self.problem.arrays, **every}
        found: dict[str, str] = {}
        for op in g.ops:
            part = problem_of(g, (op,), op.outputs, self.problem.device, "standard")
            read = [n for n in dict.fromkeys((*op.inputs, *op.outputs)) if n is not None]
            named = dict(zip(part.names, read, strict=True))
            arrays = {n: known[named[n]] for n in part.described.inputs}
            why = self._single(filled(part, arrays))
            if why is not None:
                found[op.operator] = found.get(op.operator) or why
        return found

    def expression(self, operator: str) -> str:
        """What is wrong with an operator's expression, computed with numpy on the data that the op
        has here; "" if nothing, or if that is too much data."""
        g = self.problem.graph
        op = next(op for op in g.ops if op.operator == operator)
        every = evaluate(replace_outputs(g, [o for op in g.ops for o in op.outputs]),
                         self.problem.feeds())  # fmt: skip
        known = {**self.problem.arrays, **every}
        held = {n: b.value for n, b in g.blobs.items() if b.is_constant}
        ins = [None if n is None else np.asarray(known.get(n, held.get(n))) for n in op.inputs]
        if op.definition.compute is None:
            return ""
        try:
            made = run_compute(op.definition, ins, op.attributes)
        except IndexError as e:
            return str(e)
        except AssertionError:
            return ""
        for n, y in zip(op.outputs, made, strict=True):
            if not np.allclose(y, every[n], rtol=1e-6, atol=1e-6, equal_nan=True):
                return f"%{n} differs"
        return ""

    def _single(self, alone: Filled) -> str | None:
        """What is wrong with a problem of one op in the most general template, None where that has
        no kernel for it."""
        t = self.known[-1]
        given = alone.graph, alone.ops, alone.outputs
        if not t.matches(*given):
            return None
        try:
            launch = t.instantiate(*given, alone.device, t.default(*given, alone.device))
            results = self.maker.alone(alone, launch)
        except LoweringError:
            return None
        return difference(Reference(alone), launch, results)


def replace_outputs(graph: Graph, outputs: Sequence[str]) -> Graph:
    """The graph with other outputs."""
    return Graph(graph.name, graph.inputs, tuple(outputs), graph.ops, graph.blobs)


def steps(launch: Launch) -> int:
    """About how many statements running a launch takes, vectors counting once."""
    return sum(p.items * _steps(p.body) for p in launch.kernel.phases)


def _steps(body: Sequence[Stmt]) -> int:
    total = 0
    for s in body:
        if isinstance(s, For):
            _, lo, hi = s.var.payload
            if s.lo.is_const and s.hi.is_const:
                lo, hi = s.lo.payload, s.hi.payload
            total += max(0, hi - lo) // (s.lanes or s.step) * _steps(s.body) + 1
        elif isinstance(s, If):
            total += max(_steps(s.then), _steps(s.otherwise)) + 1
        else:
            total += 1
    return total
