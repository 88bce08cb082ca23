"""What a kernel template is.

Correctness (`matches`, `instantiate`) stays apart from performance (`space`, `default`): any config
of the space computes the same function.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from ..errors import LoweringError
from ..graph.ir import Graph, Op
from .device import Device
from .ir import Buffer, Launch, Prepared

Config = dict[str, Any]
Problem = TypeVar("Problem")


class KernelTemplate(Protocol):
    """Makes kernels for the fusion groups that it matches.

    A group is a sequence of ops in order. `outputs` are the blobs that others read. Around an
    anchor (a contraction, say) stand ops that make its operands and ops that consume its result.
    """

    name: str
    version: int

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        """Whether this template can compute the group."""

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Every config worth trying, the default among them."""

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """A good config without tuning."""

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        """The kernel for one config, bound to blobs. The caller fills in `ops` of the launch."""


@runtime_checkable
class Frugal(Protocol):
    """A template whose configs differ in the memory that a launch needs beside its blobs."""

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Configs that need less memory than the default one, the fastest first: less scratch, or
        results in place of operands. They need not be in the space."""


@runtime_checkable
class Marked(Protocol):
    """A template for groups that others compute as well, in another order of additions. It matches
    those that a pass marked for it."""

    def serves(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        """Whether this template can compute the group, marked or not."""


@runtime_checkable
class Estimating(Protocol):
    """A template that says what its configs cost, before any of them is built."""

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """About how long a kernel takes, weights not in any cache, until the last thread is done;
        in multiply-adds of one vector by one core. Configs of one problem compare, and so do
        templates that compute the same one."""


@runtime_checkable
class Objecting(Protocol):
    """A template that says why it leaves a group to others."""

    def objection(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> str:
        """In a few words; "" where it matches."""


@runtime_checkable
class Rival(KernelTemplate, Estimating, Protocol):
    """A template for groups that the others of its family compute as well, none of them always the
    fastest. Which one computes a group without tuning, their estimates say; tuning tries all."""

    family: str


def each_once(found: Sequence[Config]) -> list[Config]:
    """The configs in their order, without those that stood before."""
    return [c for k, c in enumerate(found) if c not in found[:k]]


def falling(found: Iterable[tuple[float, int, Config]]) -> list[Config]:
    """Of configs given as (estimated time, bytes of scratch, config): the fastest, then every one
    with less scratch than all faster ones."""
    kept: list[Config] = []
    least: int | None = None
    for _, size, config in sorted(found, key=lambda f: f[:2]):
        if least is None or size < least:
            kept.append(config)
            least = size
    return kept


def required(problem: Problem | None, kernel: str, ops: Sequence[Op]) -> Problem:
    """The problem that a template found in a group. Raises LoweringError where it found none: the
    group was never matched."""
    if problem is None:
        what = " + ".join(op.operator for op in ops)
        raise LoweringError(f"the {kernel} kernel does not compute {what}")
    return problem


def traffic(
    graph: Graph, params: Sequence[Buffer], args: Sequence[str | Prepared | None]
) -> int:  # fmt: skip
    """Bytes of all that is read and written once; scratch and the gaps of parts are left out."""
    return sum(
        graph.type(a).nbytes if isinstance(a, str) else b.nbytes
        for a, b in zip(args, params, strict=True) if b.role != "scratch"
    )  # fmt: skip
