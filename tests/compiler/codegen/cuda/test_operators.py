"""Every operator, compiled for a GPU and simulated, agrees with its numpy reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tilewright.ops.operator import REGISTRY, Operator
from tilewright.ops.samples import Case
from tilewright.ops.types import TensorType

from ....ops.test_compiled import build, compare
from ....ops.test_declarations import accepted, reference
from .programs import run_graph

QUICK = 400  # elements of the inputs of a sample that any test run may take
MOST = 4000

Sample = tuple[str, Case, tuple[TensorType, ...]]


def size(case: Case) -> int:
    return sum(x.size for x in case.inputs if x is not None)


def quick(op: Operator) -> Iterator[Sample]:
    """The first two small samples in every element type."""
    taken: dict[str, int] = {}
    for where, case, outs in accepted(op):
        kind = where.split()[1]
        if size(case) <= QUICK and taken.get(kind, 0) < 2:
            taken[kind] = taken.get(kind, 0) + 1
            yield where, case, outs


def check(op: Operator, samples: Iterator[Sample]) -> None:
    for seed, (where, case, outs) in enumerate(samples):
        g, feeds = build(op.name, case)
        got = run_graph(g.build(), feeds, seed)
        want = reference(op, list(case.inputs), case.attrs)
        for k, (t, r) in enumerate(zip(outs, want, strict=True)):
            y: Any = got[f"y{k}"]
            assert y.dtype == t.dtype.numpy and y.shape == t.dims, where
            compare(y, np.asarray(r), case.tolerance, f"{where}, output {k}")


RECURRENT = ("rnn", "gru", "lstm", "rnn_scan", "gru_scan", "lstm_scan")  # seconds a sample


@pytest.mark.parametrize("name", sorted(n for n in REGISTRY if n not in RECURRENT))
def test_operators_on_a_simulated_gpu(name: str) -> None:
    check(REGISTRY[name], quick(REGISTRY[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_all_samples_on_a_simulated_gpu(name: str) -> None:
    op = REGISTRY[name]
    check(op, (s for s in accepted(op) if size(s[1]) <= MOST))
