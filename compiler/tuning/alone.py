"""One kernel by itself: built, run in memory of its own, compared with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...autotune.serving import Failed
from ..codegen.cpu.target import CpuTarget
from ..graph.ir import Blob, Graph, Role
from ..inspect.interpret import run_kernel
from ..kernels.ir import Launch
from ..runtime.objects import load
from ..store import Store
from .candidate import Constants, Contender, Sets
from .memory import logical
from .problem import Problem
from .reference import Reference

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Filled(Problem):
    """A problem with given arrays for its inputs and constants (logical, by blob of the problem) in
    place of made-up ones."""

    arrays: Mapping[str, Array]

    @cached_property
    def graph(self) -> Graph:
        bare, held = self.described, frozenset(self.constants)
        blobs = {
            n: Blob(n, b.type, Role.CONSTANT, np.asarray(self.arrays[n])) if n in held else b
            for n, b in bare.blobs.items()
        }
        inputs = tuple(n for n in bare.inputs if n not in held)
        return Graph(bare.name, inputs, bare.outputs, bare.ops, blobs)

    def feeds(self, number: int = 0) -> Mapping[str, Array]:
        return {n: self.arrays[n] for n in self.graph.inputs}


def filled(problem: Problem, arrays: Mapping[str, Array]) -> Filled:
    """The problem with arrays for all its inputs and constants."""
    p = problem
    return Filled(p.described, p.constants, p.device, p.numerics, p.arguments, arrays)


def run_alone(
    problem: Problem, launch: Launch, target: CpuTarget, store: Store
) -> Mapping[str, Array]:  # fmt: skip
    """The results of one run into memory that held NaN before, as logical arrays by blob.

    launch: bound to the blobs of `problem.graph`. Raises LoweringError.
    """
    objects = load((launch.kernel,), target, store)
    constants = Constants(problem.graph).of(launch)
    sets = Sets(problem.graph, problem.feeds())
    made = Contender(problem, launch, objects, constants, sets)
    made.refresh(1)
    made.spoil_scratch()
    made.run(made.address(1))
    return {n: np.array(a) for n, a in made.computed().items()}


def interpreted(problem: Problem, launch: Launch) -> Mapping[str, Array]:
    """The results as the kernel's text says, computed without code generation. As slow as Python.

    Raises KernelError where the kernel does what none may do.
    """
    constants = Constants(problem.graph).of(launch)
    memory = Sets(problem.graph, problem.feeds()).get(0)
    arrays: list[Array | None] = []
    for arg, b in zip(launch.args, launch.kernel.params, strict=True):
        if arg is None or b.role in ("out", "scratch"):
            arrays.append(None)
        elif arg in constants:
            arrays.append(constants[arg].reshape(-1))
        else:
            assert isinstance(arg, str)
            arrays.append(memory[arg])
    with np.errstate(all="ignore"):
        done = run_kernel(launch.kernel, arrays)
    return {
        arg: np.array(logical(flat, problem.graph.type(arg)))
        for arg, b, flat in zip(launch.args, launch.kernel.params, done, strict=True)
        if isinstance(arg, str) and b.role == "out"
    }


def difference(reference: Reference, launch: Launch, results: Mapping[str, Array]) -> str:
    """What is wrong with a launch's results, "" if they are within the bound of its arithmetic."""
    try:
        reference.check(launch, results)
    except Failed as e:
        return e.failure.detail
    return ""
