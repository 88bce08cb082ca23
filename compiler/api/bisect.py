"""`tw.bisect`: which part of the compiler makes a model compute something wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy.typing as npt

from ..codegen.cuda.target import cuda_target, is_cuda
from ..options import Asked, Options, check_donated, options
from ..runtime.cuda_device import capability
from .deferred import Shapes
from .finding import Finding
from .source import cpu_target, read_closed

if TYPE_CHECKING:
    from .making import Maker

Array = npt.NDArray[Any]


def bisect(
    source: Any,
    inputs: Mapping[str, Array] | Sequence[Array] | None = None,
    *,
    target: str = "cpu",
    shapes: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    **asked: Unpack[Asked],
) -> Finding:
    """Compare a compiled model with the float64 reference, and find out what is to blame where they
    differ.

    Every pass's graph is computed by the references; every kernel is compared with the reference of
    its own ops on what it read; what it read is compared with what was written. So the first blob
    out of bounds is the one where an error is made, not where it shows. Then the pass and its
    rewrite, or the memory plan, or the kernel's code, config, template or fusion is named, by the
    first change that mends the result.

    source, target, shapes, outputs; numerics, memory_limit, threads, reorder, inplace, donate: as
        for `tw.compile`. A program for a GPU is run on the device of its target.
    inputs: arrays by name or in order, made up where none is given.
    folder: where a reproduction is written if something is wrong: the smallest part of the model
        found that shows it, its inputs, and a script; and a script of the kernel alone.

    Nothing stays behind: no setting is changed, nothing goes into the store. Raises as `tw.compile`
    does for a bad model or bad arguments, and InputError for inputs that do not fit.
    """
    from .slices import Task, bisected

    chosen = options(**asked)
    maker = _maker(target, chosen)
    graph = read_closed(source, shapes, outputs)
    check_donated(chosen.donate, graph.inputs)
    return bisected(Task(maker, chosen), graph, inputs or {}, None if folder is None
                    else Path(folder))  # fmt: skip


def _maker(target: str, chosen: Options) -> Maker:
    if is_cuda(target):
        from .gpu_making import GpuMaker

        return GpuMaker(cuda_target(target, capability), chosen)
    from .making import CpuMaker

    return CpuMaker(cpu_target(target), chosen)
