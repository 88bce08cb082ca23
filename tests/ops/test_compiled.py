"""Every operator, compiled for this machine, agrees with its numpy reference in float64: on its own
samples, in every element type it takes, with a poisoned arena."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.ops.operator import REGISTRY
from tilewright.ops.samples import Case
from tilewright.ops.types import dtype_of

from .test_declarations import accepted, reference

LOW_PRECISION = {"f16": 2e-3, "bf16": 2e-2}


def build(name: str, case: Case) -> tuple[tw.Graph, dict[str, Any]]:
    """A graph with one op; samples say which inputs a model would hold as constants."""
    g = tw.Graph(name)
    values, feeds = [], {}
    for k, x in enumerate(case.inputs):
        if x is None:
            values.append(None)
        elif k in case.constant:
            values.append(g.constant(x, name=f"w{k}"))
        else:
            values.append(g.input(f"x{k}", x.shape, dtype_of(x.dtype)))
            feeds[f"x{k}"] = x
    made = g.op(name, *values, **case.attrs)
    for k, y in enumerate(made if isinstance(made, tuple) else (made,)):
        g.output(y, name=f"y{k}")
    return g, feeds


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_compiled_agrees_with_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    op = REGISTRY[name]
    tried = 0
    for where, case, outs in accepted(op):
        g, feeds = build(name, case)
        exe = tw.compile(g, threads=2 if tried % 2 else 1)
        got = exe.run(feeds)
        want = reference(op, list(case.inputs), case.attrs)
        for k, (t, r) in enumerate(zip(outs, want, strict=True)):
            y = got[f"y{k}"]
            assert y.dtype == t.dtype.numpy and y.shape == t.dims, where
            compare(y, np.asarray(r), case.tolerance, f"{where}, output {k}")
        tried += 1
    assert tried or op.samples is None, f"{name} has samples, but none was compiled"


def compare(y: Any, r: Any, tolerance: float, where: str) -> None:
    """Floats: max |y - r| within tolerance of max |r|, non-finite values in the same places.
    Everything else: equal."""
    if y.dtype.kind != "f":
        bad = np.count_nonzero(y != r.astype(y.dtype))
        assert not bad, f"{where}: {bad} of {y.size} elements differ"
        return
    with np.errstate(all="ignore"):  # what is finite in float64 may overflow the result's type
        fits = r.astype(y.dtype)
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(fits), err_msg=where)
    wild = ~np.isfinite(fits)
    np.testing.assert_array_equal(y[wild], fits[wild], err_msg=where)
    tame = ~wild
    if not tame.any():
        return
    scale = max(np.abs(r[tame]).max(), 1e-30)
    worst = np.abs(y[tame].astype(np.float64) - r[tame]).max() / scale
    allowed = max(tolerance, LOW_PRECISION.get(str(dtype_of(y.dtype)), 0.0))
    assert worst <= allowed, f"{where}: error {worst:.3g} of max |reference|, allowed {allowed:g}"
