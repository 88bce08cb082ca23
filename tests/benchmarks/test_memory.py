"""The benchmark of memory on a plan made by hand."""

from __future__ import annotations

from tilewright.compiler.memory.buffers import BufferSpec, Step
from tilewright.compiler.memory.plan import plan

from .scripts import script

memory, planners = map(script, ("memory", "planners"))


def test_planners_side_by_side() -> None:
    """Every planner's bytes and seconds, and what the plan says of itself."""
    steps = [
        Step("a", (), ("first", "long")),
        Step("b", ("first",), ("second",)),
        Step("c", ("long", "second"), ("third",)),
        Step("d", ("third",), ()),
    ]
    sizes = {"first": 200, "long": 64, "second": 256, "third": 200}
    made = plan(steps, [BufferSpec(name, size) for name, size in sizes.items()])
    found = memory.measure(made, 2)
    assert found["bound_bytes"] == made.alive_bytes == 576
    assert found["planners"].keys() == {*planners.PLANNERS, "ours"}
    assert found["planners"]["ours"]["bytes"] == made.arena_bytes
    assert found["planners"]["unshared"]["bytes"] == made.unshared_bytes == 832
    assert all(x["seconds"] >= 0 for x in found["planners"].values())
    assert found["levers"] == {"sharing": 832 - made.arena_bytes, "in place": 0, "reordering": 0}
    text = memory.line({"name": "net", "processes": {"ncnn": {"error": "broke"}}} | found)
    assert text.startswith("net ") and "unshared 1.444" in text and text.endswith("ncnn broke")
