"""`exe.repro`: a kernel of a program as a script of its own."""

from __future__ import annotations

from typing import Any

from ...autotune.task import Candidate
from ..errors import OptionError
from ..inspect.trace import launch_named, nodes_in
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.ir import Launch
from ..kernels.printer import kernel_digest
from ..kernels.select import group_of, is_built_in
from ..tuning.alone_script import script
from ..tuning.problem import Problem, problem_of


def problem_at(c: Compilation[Any], number: int, device: Device) -> Problem:
    """What a launch computes, as a problem of its own."""
    group = group_of(c.graph, c.launches[number])
    return problem_of(c.graph, group.ops, group.outputs, device, c.options.numerics)


def candidate_of(launch: Launch) -> Candidate:
    """What a launch's kernel was made of."""
    kernel = launch.kernel
    return Candidate(kernel.template, kernel.version, dict(kernel.config))


def script_of(
    c: Compilation[Any], kernel: str, device: Device, data: str = "", **more: str
) -> str:  # fmt: skip
    """The script for a kernel ("k12", or its name). data: the file beside it that has its arrays,
    "" for made-up ones. more: as `script` takes it.

    Raises OptionError for an unknown kernel, and for one whose operators a script cannot name.
    """
    number = launch_named(c, kernel)
    launch, nodes = c.launches[number], nodes_in(c, number)
    ops = group_of(c.graph, launch).ops
    if not is_built_in(ops):
        own = ", ".join(dict.fromkeys(op.operator for op in ops if not is_built_in((op,))))
        raise OptionError(
            f"k{number} computes {own}, which this program declared itself: a script cannot know "
            "what that is; it can for built-in operators"
        )
    problem = problem_at(c, number, device)
    return script(problem, candidate_of(launch), kernel_digest(launch.kernel), nodes, data, **more)
