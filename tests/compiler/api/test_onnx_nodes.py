"""ONNX's own node tests, compiled for this machine: whatever the importer takes is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import TilewrightError

from ..frontends.onnx_cases import DIFFERENT, NodeCase, all_cases


def outcome(case: NodeCase) -> tuple[str, str]:
    """("ok" | "refused" | "wrong", why), where refused means by the importer."""
    try:
        graph, feeds = case.graph()
    except TilewrightError as e:
        return "refused", str(e)
    try:
        results = tw.compile(graph).run(feeds)
    except Exception as e:  # any error at all is a finding
        return "wrong", f"{type(e).__name__}: {e}"
    for want, (name, got) in zip(case.outputs, results.items(), strict=True):
        assert isinstance(want, np.ndarray)
        if (got.dtype, got.shape) != (want.dtype, want.shape):
            return "wrong", f"{name}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
        rtol = 4e-3 if want.dtype == np.float16 else case.rtol
        try:
            np.testing.assert_allclose(got, want, rtol, max(case.atol, 1e-6))
        except AssertionError as e:
            return "wrong", f"{name}: {e}"
    return "ok", ""


def wrong_ones(cases: Iterable[NodeCase]) -> tuple[list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    found = []
    for case in cases:
        what, why = outcome(case)
        counts[what] += 1
        if what == "wrong" and case.name not in DIFFERENT:
            found.append(f"{case.name}: {' '.join(why.split())[:300]}")
    return found, counts


def test_two_cases_of_every_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last: the plain one, and one with every option."""
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    first: dict[str, NodeCase] = {}
    last: dict[str, NodeCase] = {}
    for case in all_cases():
        if case.op_type != "(expanded)":
            first.setdefault(case.op_type, case)
            last[case.op_type] = case
    found, counts = wrong_ones({c.name: c for c in (*first.values(), *last.values())}.values())
    assert not found, "\n".join(found)
    assert counts["ok"] >= 250, counts


@pytest.mark.slow
def test_all_cases(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    found, counts = wrong_ones(all_cases())
    with capsys.disabled():
        print(f"\nonnx node tests, compiled: {dict(counts)}")
    assert not found, "\n".join(found)
    assert counts["ok"] >= 1450
