"""A fusion group as a problem for the tuner: all that decides its kernels, and nothing else.

The text of a problem is its identity and all that another process needs to make its kernels:

    tilewright problem 1
    numerics standard
    device vector_bytes=64 registers=32 threads=2 l1_bytes=32768 l2_bytes=1048576 l1_ways=8 halves=0
    constants w1 w2
    arguments x0
    graph group(%x0: f32[1,64,56,56]@1x16, %w1: f32[64,64,3,3], %w2: f32[64]) -> (...) {
      ...
    }

Blobs are numbered in the order in which the group names them, so that equal groups of two models
have one text, and no name of a model is in it. Constants stand for any of their type: they are
inputs of the graph that the line `constants` names. Only what kernels write out, the value of a
constant that is the same everywhere, is part of the problem. A blob that lies in another one has
its strides (`f32[1,32,7,7]@1/96`) and not the blob around it.

Inputs that are arguments of a call, which no kernel has just written, are in no near cache, and the
best kernel is another one than where they are. The line `arguments` names them; without any it is
left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...autotune.task import Candidate
from ...ops.operator import Contraction
from ..errors import LoweringError, TextError
from ..graph.ir import Blob, Graph, Op, Role
from ..graph.storage import aliases, place_in
from ..graph.text import parse as parse_graph
from ..graph.text import to_text
from ..kernels.compose import only_element
from ..kernels.device import Device, GpuDevice
from ..kernels.ir import Kernel, Launch
from ..kernels.select import (
    Group,
    able,
    coded_groups,
    is_built_in,
    live_outputs,
    templates_for,
)
from ..kernels.template import Estimating, KernelTemplate
from ..options import NUMERICS, Numerics
from ..passes.winograd import MARK, marked
from . import values

Array = npt.NDArray[Any]

_HEAD: Final = "tilewright problem 1"
_MOST_HEAD: Final = 200
_MOST_FEATURES: Final = 64
_LARGE: Final = 1e15
_GPU: Final = "gpu"
_DEVICES: Final = {"": Device, _GPU: GpuDevice}
"""By the word that stands before the numbers of a device."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What one kernel has to compute, on which device, and which answers are allowed.

    described: the group alone, with constants that stand for any as inputs; constants: their names.
    arguments: the inputs that come from a call's caller. Equal problems are those with equal texts.
    """

    described: Graph
    constants: tuple[str, ...]
    device: Device
    numerics: Numerics
    arguments: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        """The problem on lines; `parse` reads it."""
        device = " ".join(f"{f.name}={getattr(self.device, f.name)}" for f in fields(self.device))
        device = f"{_GPU} {device}" if isinstance(self.device, GpuDevice) else device
        head = (_HEAD, f"numerics {self.numerics}", f"device {device}",
                " ".join(("constants", *self.constants)))  # fmt: skip
        given = (" ".join(("arguments", *self.arguments)),) if self.arguments else ()
        return "\n".join((*head, *given, to_text(self.described)))

    @cached_property
    def graph(self) -> Graph:
        """The group alone. Its constants have made-up values, the same in every process; those that
        kernels write out have their own."""
        bare, held = self.described, frozenset(self.constants)
        made = {n: values.constant(bare, n, k) for k, n in enumerate(self.constants)}
        return replace(bare, inputs=tuple(n for n in bare.inputs if n not in held),
                       blobs={n: made.get(n, b) for n, b in bare.blobs.items()})  # fmt: skip

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The blobs as they are numbered, which is the order of `select.shape_of`."""
        return tuple(sorted(self.described.blobs, key=lambda n: int(n[1:])))

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Problem) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    # ---------------------------------------------------------------- candidates

    @property
    def ops(self) -> tuple[Op, ...]:
        """The group, in order."""
        return self.graph.ops

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the group's kernel writes."""
        return self.graph.outputs

    def default(self) -> Candidate:
        """The candidate that is used without tuning."""
        first, *_ = self._templates
        return candidate(first, first.default(*self._marked))

    def space(self) -> tuple[Candidate, ...]:
        """Every candidate, the one that is used without tuning first."""
        found = {self.default(): None}
        for template in self._templates:
            found |= {candidate(template, c): None for c in template.space(*self._given)}
        return tuple(found)

    def candidates(self) -> tuple[tuple[Candidate, ...], tuple[float, ...]]:
        """The space; and what the templates' models say of each, in units that compare, or nothing
        where one of them has no model."""
        space = self.space()
        models = {t.name: t for t in self._templates if isinstance(t, Estimating)}
        if len(models) < len(self._templates):
            return space, ()
        return space, tuple(
            models[c.template].estimate(*self._given, dict(c.config)) for c in space
        )

    def instantiate(self, candidate: Candidate) -> Launch:
        """The candidate's kernel, bound to the blobs of `graph`.

        Raises LoweringError for a template, version or config that there is not.
        """
        template = next((t for t in self._templates if t.name == candidate.template), None)
        if template is None or template.version != candidate.version:
            raise LoweringError(f"{candidate}: no kernel template {candidate.template} of version "
                                f"{candidate.version} computes this")  # fmt: skip
        try:
            launch = template.instantiate(*self._given, dict(candidate.config))
        except (LookupError, TypeError, ValueError, ArithmeticError, AssertionError) as e:
            raise LoweringError(f"{candidate}: {type(e).__name__}: {e}") from e
        return replace(launch, ops=tuple(range(len(self.ops))), label=self.label)

    @property
    def _given(self) -> tuple[Graph, tuple[Op, ...], tuple[str, ...], Device]:
        """What templates are asked about."""
        return self.graph, self.ops, self.outputs, self.device

    @cached_property
    def _templates(self) -> tuple[KernelTemplate, ...]:
        """Those that may compute the group, the one that is used without tuning first."""
        known = templates_for(self.device, self.numerics)
        return able(*self._marked, self.numerics, known)

    @cached_property
    def _marked(self) -> tuple[Graph, tuple[Op, ...], tuple[str, ...], Device]:
        """The group as passes leave it, who say which convolutions Winograd's algorithm is for."""
        if self.numerics == "reproducible" or isinstance(self.device, GpuDevice):
            return self._given
        block = self.device.channel_block
        ops = tuple(marked(self.graph, op, block) for op in self.ops)
        return replace(self.graph, ops=ops), ops, self.outputs, self.device

    # ---------------------------------------------------------------- data and descriptions

    def feeds(self, number: int = 0) -> Mapping[str, Array]:
        """Arrays for the graph's inputs, row-major. number: which of several sets of values."""
        first = number * len(self.graph.blobs)
        return {n: values.feed(self.graph, n, first + k) for k, n in enumerate(self.graph.inputs)}

    @cached_property
    def label(self) -> str:
        """The problem in a few words, such as "conv 3x3 + relu f32[1,64,56,56]"."""
        parts = []
        for op in self.ops:
            trait = op.definition.trait(Contraction)
            window = ""
            if trait is not None and trait.kind == "conv":
                window = " " + "x".join(map(str, self.graph.type(op.reads[1]).dims[2:]))
            parts.append(op.operator + window)
        shown = parts if len(parts) <= 4 else [*parts[:3], f"{len(parts) - 3} more"]
        return f"{' + '.join(shown)} {self.graph.type(self.outputs[0])}"

    def features(self, kernel: Kernel | None = None) -> dict[str, float]:
        """Numbers, none below 0, by which near problems are found: extents, windows, work.

        kernel: any that computes this, if there is one already; they agree on the least work.
        """
        made = kernel or self.instantiate(self.default()).kernel
        found: dict[str, float] = {
            "threads": self.device.threads, "flops": made.flops, "bytes": made.bytes
        }  # fmt: skip
        anchor = next((op for op in self.ops if op.has(Contraction)), self.ops[0])
        named = [(f"in{k}", t) for k, t in enumerate(self.graph.input_types(anchor)) if t]
        named += [(f"out{k}", t) for k, t in enumerate(self.graph.output_types(anchor))]
        for name, kind in named:
            found |= {f"{name}.{axis}": size for axis, size in enumerate(kind.dims)}
            found[f"{name}.block"] = kind.layout.block
        for name, value in anchor.attrs:
            numbers = value if isinstance(value, tuple) else (value,)
            if all(type(v) in (int, float) and 0 <= v < _LARGE for v in numbers):
                found |= {f"{name}.{k}": v for k, v in enumerate(numbers)}
        return {k: float(v) for k, v in list(found.items())[:_MOST_FEATURES]}


def candidate(template: KernelTemplate, config: Mapping[str, Any]) -> Candidate:
    """A template's config as the tuner sees it."""
    return Candidate(template.name, template.version, dict(config))


# --------------------------------------------------------------------------- made and read


def problems_of(graph: Graph, device: Device, numerics: Numerics) -> dict[object, Problem]:
    """The problem of every shape of a graph's groups, but of those with operators that users
    declared, as text does not say what these mean.

    Arguments are those that are so in all groups of a shape. On a GPU there are none: a call copies
    them to the device, and so writes them.
    """
    shapes: dict[object, list[Group]] = {}
    for group in coded_groups(graph):
        if is_built_in(group.ops):
            shapes.setdefault(group.shape, []).append(group)
    found = {}
    given = set() if isinstance(device, GpuDevice) else _given(graph)
    for shape, (first, *others) in shapes.items():
        own = {n for k, n in enumerate(first.names)
               if n in given and all(g.names[k] in given for g in others)}  # fmt: skip
        found[shape] = problem_of(graph, first.ops, first.outputs, device, numerics, own)
    return found


def _given(graph: Graph) -> set[str]:
    """The graph's inputs, and what lies in them."""
    shared = aliases(graph)
    return {n for n in (*graph.inputs, *shared) if place_in(shared, n)[0] in graph.inputs}


def problem_of(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str] | None, device: Device,
    numerics: Numerics, arguments: Collection[str] = (),
) -> Problem:  # fmt: skip
    """The problem that one group of a graph is. outputs: its live ones (default: found out).
    arguments: of the blobs that it reads, those that come from a call's caller."""
    outs = live_outputs(graph, ops) if outputs is None else tuple(outputs)
    named: dict[str, str] = {}
    made = {o for op in ops for o in op.outputs}
    blobs: dict[str, Blob] = {}
    inputs: list[str] = []
    held: list[str] = []
    for op in ops:
        for n in (*op.inputs, *op.outputs):
            if n is None or n in named:
                continue
            blob, letter = graph.blobs[n], "x"
            one = only_element(blob)
            if n in made:
                letter = "y"
            elif one is not None:
                letter = "c"
            elif blob.is_constant:
                letter = "w"
            new = named[n] = f"{letter}{len(named)}"
            role = {"y": Role.INTERMEDIATE, "c": Role.CONSTANT}.get(letter, Role.INPUT)
            content = None if one is None else _everywhere(one, blob.type.dims)
            blobs[new] = Blob(new, blob.type, role, content)
            if letter == "x":
                inputs.append(new)
            elif letter == "w":
                held.append(new)
    own = tuple(
        Op(op.operator, tuple(None if n is None else named[n] for n in op.inputs),
           tuple(named[n] for n in op.outputs), _unmarked(op), group=0)
        for op in ops
    )  # fmt: skip
    bare = Graph("group", (*inputs, *held), tuple(named[o] for o in outs), own, blobs)
    given = tuple(new for n, new in named.items() if n in arguments)
    return Problem(bare, tuple(held), device, numerics, given)


def parse(text: str) -> Problem:
    """The problem that a text describes. Raises TextError for what is none."""
    parts = text.split("\n", 4)
    given: list[str] = []
    if len(parts) == 5 and parts[4].startswith("arguments "):
        line, _, parts[4] = parts[4].partition("\n")
        given = line.split()[1:]
    words = [line.split() for line in parts[:4]]
    if len(parts) < 5 or parts[0] != _HEAD or [w[:1] for w in words[1:]] != [
        ["numerics"], ["device"], ["constants"]
    ]:  # fmt: skip
        raise TextError(f"not the text of a problem: it should begin with {_HEAD!r}")
    numerics = words[1][1] if len(words[1]) == 2 else ""
    if numerics not in NUMERICS:
        raise TextError(f"a problem's numerics are one of {', '.join(NUMERICS)}: {parts[1]!r}")
    graph = parse_graph(parts[4])
    held = tuple(words[3][1:])
    if graph.inputs[len(graph.inputs) - len(held) :] != held or len(graph.groups) != 1:
        raise TextError(f"a problem is one group, and its last inputs are its constants: {held}")
    if not set(given) <= set(graph.inputs) - set(held):
        raise TextError(f"a problem's arguments are inputs of its graph: {given}")
    device = _device(words[2][1:])
    return Problem(graph, held, device, numerics, tuple(given))  # type: ignore[arg-type]


def is_for_gpu(text: str) -> bool:
    """Whether a problem's text says that its device is a GPU."""
    return f"\ndevice {_GPU} " in text[:_MOST_HEAD]


def _device(given: Sequence[str]) -> Device:
    kind = _DEVICES[_GPU if given[:1] == [_GPU] else ""]
    numbers = given[1:] if kind is GpuDevice else given
    pairs = dict(word.partition("=")[::2] for word in numbers)
    names = [f.name for f in fields(kind)]
    if set(pairs) != set(names) or not all(v.isdecimal() for v in pairs.values()):
        raise TextError(f"a problem's device has the numbers {', '.join(names)}: {list(given)}")
    return kind(**{name: int(v) for name, v in pairs.items()})


def _everywhere(one: Array, dims: tuple[int, ...]) -> Array:
    """The one value of a constant, not stored more often. All NaNs are one: text has one word."""
    if one.dtype.kind == "f" and np.isnan(one):
        one = np.array(np.nan, one.dtype)
    return np.broadcast_to(one, dims)


def _unmarked(op: Op) -> tuple[tuple[str, Any], ...]:
    """An op's attributes, without what passes suggest to templates."""
    return tuple((k, 0 if k == MARK else v) for k, v in op.attrs)
