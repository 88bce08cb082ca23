"""Traces: what Chrome's format asks for, and the times of the profile."""

from __future__ import annotations

import json

import pytest

from .pages import EVIL, profiled, small


def test_events_are_complete_and_lie_end_to_end() -> None:
    exe = small()
    profile = profiled(exe)
    made = json.loads(json.dumps(exe.trace(profile, EVIL), allow_nan=False))
    events = made["traceEvents"]
    for e in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= e.keys()
        assert e["ph"] in "XMC" and e["ts"] >= 0 and isinstance(e["pid"], int)
        assert ("dur" in e) is (e["ph"] == "X")
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    kernels = [e for e in events if e["ph"] == "X" and names[e["pid"], e["tid"]] == "kernels"]
    assert [e["name"] for e in kernels] == [r.kernel for r in profile.rows]
    assert [e["dur"] for e in kernels] == pytest.approx([r.seconds * 1e6 for r in profile.rows])
    at = 0.0
    for e in kernels:
        assert e["ts"] == pytest.approx(at)
        at += e["dur"]
    assert at == pytest.approx(profile.seconds * 1e6)
    alive = [e["args"]["bytes alive"] for e in events if e["ph"] == "C"]
    assert max(alive) == exe.plan.alive_bytes and len(alive) == len(kernels)
    passes = [e for e in events if e.get("cat") == "pass"]
    assert [e["name"] for e in passes] == [s.name for s in exe.stages]
    assert any("8 runs" in name for name in names.values())
