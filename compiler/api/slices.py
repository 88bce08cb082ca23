"""Bisection of a whole model, and the smallest part of it that shows the same fault."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError, TilewrightError
from ..graph import textfile
from ..graph.evaluate import evaluate, narrow
from ..graph.ir import Blob, Graph, Role
from ..inspect.views import kernel_name
from ..kernels.select import group_of, is_built_in
from ..options import VERSION, Options
from ..runtime.arrays import TensorSpec
from .culprit import Culprit, find_culprit
from .executable import random_input
from .finding import Finding
from .making import Maker
from .suspects import replace_outputs
from .watch import WrongResult

Array = npt.NDArray[Any]

_SCRIPT: Final = '''\
"""A part of a model that a compiler fault shows in.

Written by Tilewright {version}. It exits with 0 if nothing is wrong, and with 1, and a report, if
something is.
"""

import sys
from pathlib import Path

import numpy as np

import tilewright as tw

HERE = Path(__file__).parent
OPTIONS = {options}

if __name__ == "__main__":
    with np.load(HERE / "inputs.npz", allow_pickle=False) as arrays:
        inputs = [arrays[f"input{{k}}"] for k in range(len(arrays.files))]
    found = tw.bisect(HERE / "slice.tw.txt", inputs, **OPTIONS)
    print(found)
    sys.exit(found.is_wrong)
'''


_KEPT: Final = ("numerics", "memory_limit", "threads", "reorder", "inplace")
"""Options that a script is to be run with."""


@dataclass(frozen=True, slots=True)
class Task:
    """What all parts of a bisection are compiled for."""

    maker: Maker
    chosen: Options


def bisected(
    task: Task, graph: Graph, inputs: Any, folder: Path | None
) -> Finding:  # fmt: skip
    """What is wrong with a graph; written to a folder as the smallest part that shows it."""
    feeds = _feeds(graph, inputs)
    culprit, outputs = find_culprit(graph, task.maker, task.chosen, feeds)
    if culprit is None:
        return Finding()
    files = () if folder is None else tuple(map(str, _written(task, graph, feeds, culprit, folder)))
    c, k = culprit.compilation, culprit.launch
    kernel = ""
    if c is not None and k is not None:
        config = " ".join(f"{n}={v}" for n, v in c.launches[k].kernel.config)
        kernel = f"k{k} {kernel_name(c.launches[k])} {config}".rstrip()
    return Finding(culprit.kind, culprit.name, culprit.blob, kernel, culprit.nodes, culprit.fuel,
                   culprit.rewrite, culprit.grounds, tuple(outputs.items()), files)  # fmt: skip


def _feeds(graph: Graph, inputs: Any) -> dict[str, Array]:
    """An array for every input. Raises InputError."""
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(graph.inputs):
            raise InputError(f"{len(inputs)} arrays for {len(graph.inputs)} inputs: "
                             f"{', '.join(graph.inputs)}")  # fmt: skip
        inputs = dict(zip(graph.inputs, inputs, strict=True))
    unknown = [n for n in inputs if n not in graph.inputs]
    if unknown:
        raise InputError(f"there is no input {unknown[0]!r}; the inputs are "
                         f"{', '.join(graph.inputs)}")  # fmt: skip
    feeds = {}
    for n in graph.inputs:
        t = graph.type(n)
        spec = TensorSpec.of(n, t.dims, t.dtype)
        x = np.array(inputs[n]) if n in inputs else random_input(spec)
        if x.shape != spec.shape or x.dtype != spec.dtype:
            raise InputError(f"input {n!r} must have the shape {list(spec.shape)} and the type "
                             f"{spec.dtype}, got {x.dtype}{list(x.shape)}")  # fmt: skip
        feeds[n] = np.ascontiguousarray(x).reshape(x.shape)
    return feeds


# --------------------------------------------------------------------------- parts of a model


def _written(
    task: Task, graph: Graph, feeds: Mapping[str, Array], culprit: Culprit, folder: Path
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    part, given = smallest(task, graph, feeds, culprit)
    files = list(textfile.write(part, folder / "slice.tw.txt"))
    arrays = {f"input{k}": given[n] for k, n in enumerate(part.inputs)}
    np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
    chosen = task.maker.script_options | {n: getattr(task.chosen, n) for n in _KEPT}
    chosen["donate"] = [n for n in task.chosen.donate if n in part.inputs]
    script = folder / "repro.py"
    script.write_text(_SCRIPT.format(version=VERSION, options=ascii(chosen)), encoding="ascii")
    files += [folder / "inputs.npz", script]
    c, k, seen = culprit.compilation, culprit.launch, culprit.seen
    if c is not None and k is not None and isinstance(seen, WrongResult) and is_built_in(
        group_of(c.graph, c.launches[k]).ops
    ):  # fmt: skip
        alone, data = folder / "kernel.py", folder / "kernel.npz"
        alone.write_text(task.maker.script(c, k, data.name), encoding="ascii")
        np.savez(data, allow_pickle=False, **seen.problem.arrays)
        files += [alone, data]
    return files


def smallest(
    task: Task, graph: Graph, feeds: Mapping[str, Array], culprit: Culprit
) -> tuple[Graph, Mapping[str, Array]]:
    """The smallest part tried that has the same culprit, and arrays for its inputs: the nodes to
    blame with more and more of what they are computed from; where no nodes are to blame, as few of
    the first ops as show it, without the first of those. At last the whole graph."""
    every = tuple(o for op in graph.ops for o in op.outputs)
    values = {**feeds, **evaluate(replace_outputs(graph, every), feeds)}

    def given(part: Graph) -> dict[str, Array]:
        return {n: narrow(values[n], graph.type(n).dtype) for n in part.inputs}

    def shows(chosen: Collection[int]) -> bool:
        part = cut(graph, chosen)
        try:
            found, _ = find_culprit(part, task.maker, task.chosen, given(part))
        except TilewrightError:
            return False
        return found is not None and (found.kind, found.name) == (culprit.kind, culprit.name)

    def least(low: int, high: int, shown: Callable[[int], bool]) -> int:
        """The end of a search by halves from `low`, where nothing shows, to `high`, where it
        does."""
        while abs(high - low) > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if shown(middle) else (middle, high)
        return high

    for chosen in around(graph, culprit):
        if shows(chosen):
            part = cut(graph, chosen)
            return part, given(part)
    if culprit.nodes or culprit.blob:
        return graph, feeds
    count = len(graph.ops)
    end = least(0, count, lambda n: shows(range(n)))
    start = least(end, 0, lambda n: shows(range(n, end)))
    if (start, end) == (0, count):
        return graph, feeds
    part = cut(graph, range(start, end))
    return part, given(part)


def around(graph: Graph, culprit: Culprit) -> Iterator[frozenset[int]]:
    """Ops around a fault, by number, each time more than before, and never all."""
    nodes = set(culprit.nodes)
    seeds = {k for k, op in enumerate(graph.ops)
             if nodes.intersection(op.source) or culprit.blob in op.outputs}  # fmt: skip
    at = {o: k for k, op in enumerate(graph.ops) for o in op.outputs}
    chosen, depth = seeds, 1
    while chosen and len(chosen) < len(graph.ops):
        yield frozenset(chosen)
        for _ in range(depth):
            above = {at[n] for k in chosen for n in graph.ops[k].reads if n in at}
            chosen = chosen | above
        depth *= 2
        if all(at.get(n, -1) in chosen for k in chosen for n in graph.ops[k].reads if n in at):
            break
    if chosen and len(chosen) < len(graph.ops):
        yield frozenset(chosen)


def cut(graph: Graph, chosen: Collection[int]) -> Graph:
    """Some ops of a graph as one of its own: what they read of others are its inputs, and what
    others read of them, or nobody, its outputs."""
    ops = tuple(graph.ops[k] for k in sorted(chosen))
    made = {o for op in ops for o in op.outputs}
    read = dict.fromkeys(n for op in ops for n in op.reads)
    inputs = tuple(n for n in read if n not in made and not graph.blobs[n].is_constant)
    inner = {n for op in ops for n in op.reads}
    outside = {n for k, op in enumerate(graph.ops) if k not in chosen for n in op.reads}
    outputs = tuple(o for op in ops for o in op.outputs
                    if o in graph.outputs or o in outside or o not in inner)  # fmt: skip
    blobs = {
        n: Blob(n, graph.type(n), Role.INPUT) if n in inputs else graph.blobs[n]
        for n in dict.fromkeys((*inputs, *read, *(o for op in ops for o in op.outputs)))
    }
    return Graph(graph.name, inputs, outputs, ops, blobs)
