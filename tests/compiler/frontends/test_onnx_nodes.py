"""ONNX's own node tests: what is supported is right, what is not is refused and listed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest

from .onnx_cases import DIFFERENT, REASONS, UNSUPPORTED, NodeCase, all_cases


def surprises(cases: Iterable[NodeCase]) -> tuple[list[str], dict[str, Counter[str]]]:
    """Cases with an outcome that the lists do not foresee, and counts by operator."""
    found: list[str] = []
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        outcome, why = case.outcome()
        counts[case.op_type][outcome] += 1
        if case.op_type in UNSUPPORTED:
            expected = outcome == "refused"
        elif case.name in DIFFERENT:
            expected = outcome == "wrong"
        else:
            expected = outcome == "ok" or (outcome == "refused" and bool(REASONS.search(why)))
        if not expected:
            found.append(f"{case.name}: {outcome} {' '.join(why.split())[:300]}")
    return found, counts


def test_one_case_of_every_operator() -> None:
    chosen: dict[str, NodeCase] = {}
    for case in all_cases():
        if case.op_type != "(expanded)":
            chosen.setdefault(case.op_type, case)
    found, counts = surprises(chosen.values())
    assert not found, "\n".join(found)
    assert sum(c["ok"] for c in counts.values()) >= 140


@pytest.mark.slow
def test_all_cases(capsys: pytest.CaptureFixture[str]) -> None:
    found, counts = surprises(all_cases())
    total: Counter[str] = sum(counts.values(), Counter())
    with capsys.disabled():
        print(f"\nonnx node tests: {dict(total)}")
        for op_type, c in sorted(counts.items()):
            if set(c) != {"ok"}:
                print(f"  {op_type:<28}" + "  ".join(f"{k} {n}" for k, n in sorted(c.items())))
    assert not found, "\n".join(found)
    assert total["ok"] >= 1450
