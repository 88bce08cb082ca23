"""What a benchmark model computes in float64, and how far a contestant's outputs are from that.

    python benchmarks/accuracy.py segnet        makes the truth, says where it is

The truth is the graph as it was imported, run with the operators' numpy references: none of what
is compared takes part in it. It is kept beside the model's file; remove it when a reference
changes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import numpy.typing as npt

from tilewright.compiler.cli.bench import difference, differing, typical
from tilewright.compiler.frontends import onnx as frontend
from tilewright.compiler.graph.evaluate import evaluate

Array = npt.NDArray[Any]


def truth(name: str) -> list[Array]:
    """The outputs of a benchmark model for `models.sample(name)`, one sample."""
    return truth_of(models.path(name), models.sample(name))


def truth_of(file: Path, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs in the model's order: those of the first feeds that it was asked for."""
    kept = file.with_name(f"{file.stem}_float64.npz")
    if not kept.exists():
        graph = frontend.load(file).to_graph()
        found = evaluate(graph, feeds)
        part = kept.with_name(f"{os.getpid()}.{kept.name}")
        np.savez(part, **{f"y{k}": found[n] for k, n in enumerate(graph.outputs)})
        os.replace(part, kept)
    with np.load(kept) as held:
        return [held[f"y{k}"] for k in range(len(held.files))]


def errors(outputs: Sequence[Array], wanted: Sequence[Array]) -> dict[str, float]:
    """Relative to the largest magnitude of an output, the worst of all outputs: the largest, the
    root mean square and the median error. off: the part of the elements that are off by more than a
    thousandth."""
    squares = [
        float(np.sqrt(np.mean(np.square(x.astype(np.float64) - y))) / max(np.abs(y).max(), 1e-30))
        for x, y in zip(outputs, wanted, strict=False) if x.shape == y.shape and x.size
    ]  # fmt: skip
    return {"max": difference(outputs, wanted), "rms": max(squares, default=0.0),
            "typical": typical(outputs, wanted), "off": differing(outputs, wanted)}  # fmt: skip


if __name__ == "__main__":
    for each in sys.argv[1:]:
        truth(each)
        print(models.path(each).with_name(f"{each}_float64.npz"))
