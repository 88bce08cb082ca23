"""From a wrong result to the part of the compiler that is at fault.

Three questions, each with an answer of its own. Is a stage's graph wrong? Then the pass before it
is; fuel says which of its rewrites. Is a kernel wrong for what it read? Then `suspects.py` says
whether it is the code, the config, the template, fusion or an operator. Did a kernel find other
bytes than were written? Then it is the memory plan, or whoever allowed the sharing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.types import bf16
from ..errors import GraphError, PlanError
from ..graph.evaluate import evaluate
from ..graph.ir import Graph
from ..inspect.trace import nodes_in, places
from ..inspect.views import Compilation, kernel_name
from ..kernels.device import GpuDevice
from ..kernels.select import group_of, rebound
from ..options import Options
from ..passes.base import Fuel, OptionalPass, Pass, Stage, run_pipeline
from ..passes.place import Place
from ..tuning.reference import AS_PLAIN, FEW, TF32, roundoff
from .making import Maker
from .repro import problem_at
from .suspects import replace_outputs, suspect
from .watch import Watched, WrongMemory, WrongResult, watch

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

SLACK: Final = 8.0
"""How many times as far off as plain arithmetic of the model's precision a whole program may be, in
units of what one kernel may."""
_PACKAGES: Final = {"kernels": "template", "memory": "memory plan", "codegen": "code generation",
                    "passes": "pass", "runtime": "runtime"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Culprit:
    """What is at fault.

    kind: "pass", "memory plan", "in place", "code generation", "config", "template", "fusion",
    "operator", "runtime". name: which of them. blob: the first that is out of bounds, "" if the
    program could not be made. grounds: how that was found, a sentence each. fuel: with so many
    rewrites the result is wrong, with one less it is right; rewrite: the last of them. launch: the
    kernel; nodes: of the model, that it computes. compilation: what was found out with it.
    """

    kind: str
    name: str
    blob: str = ""
    grounds: tuple[str, ...] = ()
    fuel: int | None = None
    rewrite: str = ""
    launch: int | None = None
    nodes: tuple[str, ...] = ()
    compilation: Compilation[Any] | None = None
    seen: WrongResult | WrongMemory | None = None


class Truth:
    """What a graph computes in float64, and how far results may be off."""

    def __init__(self, graph: Graph, feeds: Feeds, rounded: float = 0.0) -> None:
        """rounded: the unit roundoff of factors of float32, where that is not its own."""
        self.graph, self.feeds, self.rounded = graph, feeds, rounded
        self.wide = evaluate(graph, feeds)
        self.plain = evaluate(graph, feeds, wide=False)

    def wrong(self, results: Feeds) -> dict[str, str]:
        """The outputs that are out of bounds, each with what is wrong with it."""
        found = {n: self._wrong(n, results[n]) for n in self.graph.outputs}
        return {n: why for n, why in found.items() if why}

    def _wrong(self, name: str, got: Array) -> str:
        kind, want, plain = self.graph.type(name).dtype, self.wide[name], self.plain[name]
        if not kind.is_float or kind is bf16:  # which is only ever moved
            differs = (got != want) & (got != plain)
            return f"{differs.sum()} of {got.size} elements differ" if differs.any() else ""
        with np.errstate(all="ignore"):
            off, near = (np.abs(np.asarray(x, np.float64) - want) for x in (got, plain))
        usual = np.isfinite(want) & np.isfinite(plain)
        if not np.isfinite(got[usual]).all():
            return f"{(~np.isfinite(got[usual])).sum()} of {got.size} elements are not finite"
        scale = float(np.abs(want[usual]).max(initial=0.0))
        unit = max(roundoff(kind), self.rounded)
        allowed = SLACK * max(AS_PLAIN * float(near[usual].max(initial=0.0)), FEW * unit * scale)
        worst = float(off[usual].max(initial=0.0))
        if worst <= allowed:
            return ""
        return f"off by {worst:.3g} of up to {scale:.3g}, at most {allowed:.3g} is allowed"


def find_culprit(
    graph: Graph, maker: Maker, chosen: Options, feeds: Feeds
) -> tuple[Culprit | None, dict[str, str]]:
    """Who makes a compiled graph compute something else than its reference, None if it does not;
    and the outputs that are wrong, each with what is wrong with it.

    feeds: an array for every input, of the input's type and shape.
    """
    return _Search(graph, maker, chosen, feeds).run()


class _Search:
    def __init__(self, graph: Graph, maker: Maker, chosen: Options, feeds: Feeds) -> None:
        self.graph, self.maker, self.feeds = graph, maker, feeds
        donate = tuple(n for n in chosen.donate if n in graph.inputs)
        self.chosen = replace(chosen, poison=True, dump="", donate=donate)
        reduced = chosen.numerics == "reduced" and isinstance(maker.device, GpuDevice)
        self.truth = Truth(graph, feeds, TF32 if reduced else 0.0)
        self.passes = maker.passes(graph)

    def run(self) -> tuple[Culprit | None, dict[str, str]]:
        try:
            stages = self.stages(self.passes, Fuel(self.chosen.fuel))
        except _Broken as e:
            return self.broken(e), {}
        if self.outputs_of(stages[-1].graph):
            return self.wrong_pass(stages), self.outputs_of(stages[-1].graph)
        try:
            c, found, outputs = self.watched(stages)
        except _Fault as e:
            return self.faulted(e), {}
        except Exception as e:
            return self.failed(e, stages), {}
        wrong = self.truth.wrong(outputs) if outputs else {}
        if found is None and not wrong:
            return None, {}
        if found is None:
            said = "every kernel is right for what it reads, and reads what was written"
            return Culprit("runtime", "outputs", next(iter(wrong)), (said,), compilation=c), wrong
        if isinstance(found, WrongMemory):
            return self.wrong_memory(c, stages, found), wrong
        group = group_of(c.graph, c.launches[found.launch])
        problem = problem_at(c, found.launch, self.maker.device)
        launch = rebound(c.launches[found.launch], group.names, problem.names)
        blamed = suspect(found.problem, launch, self.maker)
        kind: str = blamed.kind
        name, grounds = blamed.name, blamed.grounds
        if kind == "nobody":
            kind, name, more = self.shared(c, found.launch)
            grounds = (*grounds, *more)
        elif kind == "code generation" and self.maker.is_stale(c.launches[found.launch].kernel):
            kind, name = "store", "built code"
            grounds = (*grounds, "built anew, the code is another: `tilewright cache clear`")
        return Culprit(kind, name, found.blob, (found.why, *grounds), None, "", found.launch,
                       nodes_in(c, found.launch), c, found), wrong  # fmt: skip

    # ---------------------------------------------------------------- passes

    def stages(self, passes: Sequence[Pass], fuel: Fuel) -> list[Stage]:
        """The graph as it came in and after each pass. Raises _Broken."""
        out = [Stage("import", self.graph, 0.0, True)]
        for p in passes:
            try:
                _, (stage,) = run_pipeline([p], out[-1].graph, fuel)
            except Exception as e:
                raise _Broken(p, e, fuel) from e
            out.append(stage)
        return out

    def outputs_of(self, graph: Graph) -> dict[str, str]:
        """What is wrong with the outputs of a stage's graph, computed by the references."""
        try:
            return self.truth.wrong(evaluate(graph, self.feeds))
        except (GraphError, ValueError, IndexError, TypeError) as e:
            return {graph.outputs[0]: f"the references refuse the graph: {e}"}

    def broken(self, e: _Broken) -> Culprit:
        """A pass that raises, or leaves a graph that is none."""
        first, rewrite = self.fuel(lambda fuel: self.breaks(e.by, fuel))
        return Culprit("pass", e.by.name, "", (_said(e.cause),), first, rewrite)

    def breaks(self, by: Pass, fuel: Fuel) -> bool:
        try:
            self.stages(self.passes[: self.passes.index(by) + 1], fuel)
        except _Broken:
            return True
        return False

    def wrong_pass(self, stages: Sequence[Stage]) -> Culprit:
        """The pass behind which the references compute something else."""
        low, high = 0, len(stages) - 1  # right at low, wrong at high
        while high - low > 1:
            middle = (low + high) // 2
            if self.outputs_of(stages[middle].graph):
                high = middle
            else:
                low = middle
        before, after = stages[low].graph, stages[high].graph
        blob, why = self.first_difference(before, after)
        passes = self.passes[:high]

        def wrong(fuel: Fuel) -> bool:
            try:
                return bool(self.outputs_of(self.stages(passes, fuel)[-1].graph))
            except _Broken:
                return True

        first, rewrite = (None, "")
        if isinstance(stages[high].by, OptionalPass):
            first, rewrite = self.fuel(wrong)
        nodes = after.producer[blob].source if blob in after.producer else ()
        grounds = (f"the references compute the right outputs before {stages[high].name} and wrong "
                   "ones behind it", why)  # fmt: skip
        return Culprit("pass", stages[high].name, blob, grounds, first, rewrite, None, nodes)

    def first_difference(self, before: Graph, after: Graph) -> tuple[str, str]:
        """The first blob, in the order of the later graph, that both have and that differs."""
        both = [o for op in after.ops for o in op.outputs if o in before.producer]
        old = evaluate(replace_outputs(before, both), self.feeds)
        try:
            new = evaluate(replace_outputs(after, both), self.feeds)
        except (GraphError, ValueError, IndexError, TypeError):
            return "", ""
        for n in both:
            scale = np.abs(old[n][np.isfinite(old[n])]).max(initial=0.0)
            with np.errstate(all="ignore"):
                off = np.abs(old[n].astype(np.float64) - new[n]).max(initial=0.0) if (
                    old[n].shape == new[n].shape) else np.inf  # fmt: skip
            if not off <= 1e-4 * max(scale, 1e-30):
                return n, f"%{n} is off by {off:.3g} of up to {scale:.3g}"
        return after.outputs[0], ""

    def fuel(self, wrong: Callable[[Fuel], bool]) -> tuple[int | None, str]:
        """The least number of rewrites with which it is wrong, and what the last of them is. None
        where it is wrong without any, or nothing is counted."""
        plenty = 1 << 30
        whole = Fuel(plenty)
        if not wrong(whole) or wrong(Fuel(0)):
            return None, ""
        low, high = 0, plenty - (whole.left or 0)
        while high - low > 1:
            middle = (low + high) // 2
            if wrong(Fuel(middle)):
                high = middle
            else:
                low = middle
        last = Fuel(high)
        wrong(last)
        return high, last.last

    # ---------------------------------------------------------------- kernels and memory

    def watched(
        self, stages: Sequence[Stage], chosen: Options | None = None
    ) -> tuple[Compilation[Any], WrongResult | WrongMemory | None, Feeds]:
        """The program of the last stage, what is wrong in a run of it, and its outputs."""
        c, steps = self.maker.made(stages, chosen or self.chosen)
        try:
            found, results = watch(c, steps, self.maker.device, self.feeds)
        except Watched as e:
            raise _Fault(c, e) from e
        return c, found, dict(zip(c.graph.outputs, results, strict=False))

    def is_right(self, stages: Sequence[Stage], **changed: bool) -> bool:
        """Whether a program that is planned otherwise has nothing wrong in it."""
        try:
            return self.watched(stages, replace(self.chosen, **changed))[1] is None  # type: ignore[arg-type]
        except Exception:
            return False

    def is_right_without_places(self) -> bool:
        """Whether nothing is wrong if no blob is a part of another."""
        without = [p for p in self.passes if not isinstance(p, Place)]
        return len(without) < len(self.passes) and self.is_right(self.stages(without, Fuel()))

    def wrong_memory(
        self, c: Compilation[Any], stages: Sequence[Stage], found: WrongMemory
    ) -> Culprit:
        k = found.launch
        held = "it holds" if found.writer is None else f"k{found.writer} wrote"
        name = kernel_name(c.launches[k])
        grounds = [f"k{k} ({name}) does not find in %{found.blob} what {held}"]
        if found.changed is not None and found.given_up:
            grounds.append(f"its memory is taken for free behind k{found.changed}")
        elif found.changed is not None:
            grounds.append(f"k{found.changed} ({kernel_name(c.launches[found.changed])}) writes "
                           "over it")  # fmt: skip
        elif found.writer is not None:
            grounds.append("they look for it in different places")
        kind, name = "memory plan", "sharing"
        if self.is_right_without_places():
            kind, name = "pass", "place"
            grounds.append("without the pass place, nothing is wrong")
        elif self.is_right(stages, inplace=False):
            name = "in place"
            grounds.append("without results in place of operands, nothing is wrong")
        elif self.is_right(stages, reorder=False):
            name = "order"
            grounds.append("in the model's order, nothing is wrong")
        return Culprit(
            kind, name, found.blob, tuple(grounds), None, "", k, nodes_in(c, k), c, found
        )

    def shared(self, c: Compilation[Any], number: int) -> tuple[str, str, tuple[str, ...]]:
        """Why a kernel that is right alone is wrong in its program: parameters that overlap."""
        launch, found = c.launches[number], places(c, number)
        inside = [(k, p) for k, p in enumerate(found) if p.where in ("arena", "scratch")]
        for j, y in inside:
            for i, x in inside:
                apart = y.offset >= x.offset + x.bytes or x.offset >= y.offset + y.bytes
                if i == j or apart or y.role not in ("out", "scratch"):
                    continue
                pair = f"its parameters {y.parameter} and {x.parameter} overlap in the arena"
                name = launch.kernel.template
                if (j, i) in launch.kernel.inplace:
                    return "in place", name, (pair, f"the template {name} says that they may")
                return "memory plan", "sharing", (pair, "the kernel does not allow that")
        said = ("in its program it is wrong, though nothing overlaps: it reads what nobody wrote, "
                "or outside of its blobs")  # fmt: skip
        return "template", launch.kernel.template, (said,)

    # ---------------------------------------------------------------- what cannot be made

    def faulted(self, e: _Fault) -> Culprit:
        """A kernel that lost its device: nothing more can be tried in this process."""
        k, c = e.by.launch, e.compilation
        kernel = c.launches[k].kernel
        grounds = (_said(e.by.cause), f"k{k} ({kernel_name(c.launches[k])}) was running, after all "
                   "before it had done what they should", "its template, its config or its code: "
                   "the device is lost, and so nothing else was tried")  # fmt: skip
        return Culprit("template", kernel.template, "", grounds, None, "", k, nodes_in(c, k), c)

    def failed(self, e: Exception, stages: Sequence[Stage]) -> Culprit:
        """The part that raised while a program was made."""
        if isinstance(e, PlanError):
            if self.is_right_without_places():
                said = "without the pass place, nothing is wrong"
                return Culprit("pass", "place", "", (_said(e), said))
            return Culprit("memory plan", "packer", "", (_said(e),))
        kind, where = "runtime", ""
        for frame in traceback.extract_tb(e.__traceback__):
            parts = Path(frame.filename).parts
            if "compiler" in parts:
                package = parts[len(parts) - 1 - parts[::-1].index("compiler") + 1]
                if package in _PACKAGES:
                    kind, where = _PACKAGES[package], Path(frame.filename).stem
        if kind == "pass":
            kind = "template"
        return Culprit(kind, where or type(e).__name__, "", (_said(e),))


class _Broken(Exception):
    """A pass that failed."""

    def __init__(self, by: Pass, cause: Exception, fuel: Fuel) -> None:
        super().__init__(str(cause))
        self.by, self.cause, self.fuel = by, cause, fuel


class _Fault(Exception):
    """A kernel that took its device with it."""

    def __init__(self, compilation: Compilation[Any], by: Watched) -> None:
        super().__init__(str(by))
        self.compilation, self.by = compilation, by


def _said(e: BaseException) -> str:
    return f"{type(e).__name__}: {e}".splitlines()[0][:300]
