"""The chart of a memory plan: a box per block, to scale, and safe whatever blobs are called."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from tilewright.compiler.inspect.arena import draw
from tilewright.compiler.memory.buffers import BufferSpec, Step
from tilewright.compiler.memory.donate import plan_donated
from tilewright.compiler.memory.plan import MemoryPlan, plan

NAMESPACE = "{http://www.w3.org/2000/svg}"


def small() -> MemoryPlan:
    steps = [
        Step("load", ("image",), ("a",)),
        Step("conv", ("a",), ("b",), scratch=2048),
        Step("relu", ("b",), ("c",), inplace=(("c", "b"),)),
        Step("store", ("c", "half"), ("probabilities",)),
    ]
    return plan(steps, [BufferSpec("a", 4096), BufferSpec("b", 1024), BufferSpec("c", 1024),
                        BufferSpec("half", 512, "c", 512)])  # fmt: skip


def boxes(made: MemoryPlan, name: str = "net") -> dict[str, ET.Element]:
    """The boxes by the first line of what they show under the pointer."""
    found = {}
    for e in ET.fromstring(draw(made, name)).iter(f"{NAMESPACE}rect"):
        title = e.find(f"{NAMESPACE}title")
        if title is not None:
            found[(title.text or "").splitlines()[0]] = e
    return found


def title(box: ET.Element) -> str:
    return box[0].text or ""


def words(made: MemoryPlan, name: str = "net") -> str:
    root = ET.fromstring(draw(made, name))
    return "\n".join(e.text or "" for e in root.iter(f"{NAMESPACE}text"))


def place(box: ET.Element) -> tuple[float, float, float, float]:
    x, y, w, h = (float(box.get(k, "nan")) for k in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def test_a_box_per_block_that_tells_who_lives_there() -> None:
    made = small()
    found = boxes(made)
    assert found.keys() == {"a", "b", "conv.scratch"}
    assert title(found["b"]).splitlines() == [
        "b", "c", f"1024 bytes at {made.offsets['b']}", "steps 1 to 3: conv ... store",
        "holds", "half",
    ]  # fmt: skip
    assert "steps 1 to 1: conv" in title(found["conv.scratch"])
    colors = {name: box.get("fill") for name, box in found.items()}
    assert len(set(colors.values())) == 3, "a blob, results in place and scratch look different"


def test_boxes_lie_where_the_plan_says() -> None:
    made = small()
    a, b, scratch = (place(boxes(made)[n]) for n in ("a", "b", "conv.scratch"))
    step, byte = (a[2] - a[0]) / 2, (a[3] - a[1]) / 4096
    assert a[0] + step == pytest.approx(b[0], abs=0.2)
    assert b[2] - b[0] == pytest.approx(3 * step, abs=0.2)
    assert scratch[2] - scratch[0] == pytest.approx(step, abs=0.2)
    for name, box, size in (("a", a, 4096), ("b", b, 1024), ("conv.scratch", scratch, 2048)):
        assert box[3] - box[1] == pytest.approx(size * byte, abs=0.2)
        assert a[3] - box[3] == pytest.approx(
            (made.offsets[name] - made.offsets["a"]) * byte, abs=0.2
        )


def test_the_bound_is_marked_and_reached() -> None:
    made = small()
    root = ET.fromstring(draw(made, "net"))
    (alive,) = root.iter(f"{NAMESPACE}polyline")
    corners = [tuple(map(float, c.split(","))) for c in (alive.get("points") or "").split()]
    highest = min(y for _, y in corners)
    (limit,) = (e for e in root.iter(f"{NAMESPACE}line") if e.get("class") == "limit")
    assert highest == pytest.approx(float(limit.get("y1", "nan")), abs=0.2)
    marks = [e for e in root.iter(f"{NAMESPACE}line") if e.get("class") == "bound"]
    x = float(marks[-1].get("x1", "nan"))
    left = [c[0] for c in corners if c[1] == highest]
    assert left[0] < x < left[-1]
    text = words(made)
    assert "optimal" in text and "7.0 KiB alive in step 1 'conv'" in text and "KiB" in text


def test_donated_inputs_stand_above_the_arena() -> None:
    steps = [
        Step("first", ("x",), ("a",)),
        Step("second", ("a",), ("b",)),
        Step("last", ("b",), ()),
    ]
    made = plan_donated(steps, [BufferSpec("a", 640), BufferSpec("b", 640)], {"x": 640})
    found = boxes(made)
    assert found.keys() == {"x", "a", "b"}
    x, a, b = (place(found[n]) for n in "xab")
    assert x[3] < a[1], "a gap lies between"
    assert b[1] == x[1] and b[0] == pytest.approx(x[2], abs=0.2)
    assert b[3] - b[1] == pytest.approx(a[3] - a[1], abs=0.2)
    assert "640 bytes at 0" in title(found["b"])
    assert len({found[n].get("fill") for n in "xa"}) == 2
    twice = plan_donated(
        [*steps[:2], Step("third", ("b", "z"), ("c",)), Step("fourth", ("c",), ("d",))],
        [BufferSpec(n, 640) for n in "abcd"],
        {"x": 640, "z": 640},
    )
    assert len(twice.regions) == 2
    tops = sorted({place(b)[1] for b in boxes(twice).values()})
    assert len(tops) == 3 and tops[0] >= 80, "two inputs and the arena, all on the page"
    assert "donated" in words(made) and "donated" not in words(small())


def test_names_of_a_model_stay_words() -> None:
    evil = '</title><script>alert("x")</script>&amp;\x1b[2J\n\ud800'
    steps = [Step(evil, (), (evil,)), Step("use", (evil,), ())]
    made = plan(steps, [BufferSpec(evil, 64)])
    root = ET.fromstring(draw(made, evil))
    assert not list(root.iter(f"{NAMESPACE}script"))
    (box,) = boxes(made, evil).values()
    assert '</title><script>alert("x")</script>&amp;\\x1b[2J\\n\\ud800' in title(box)
    draw(made, evil).encode()


def test_many_steps_stay_legible() -> None:
    """Boxes of a tenth of a pixel are still drawn, numbers do not run into each other."""
    steps = [Step(str(k), (f"b{k - 1}",), (f"b{k}",)) for k in range(3000)]
    made = plan(steps, [BufferSpec(f"b{k}", 64) for k in range(3000)])
    found = boxes(made)
    assert len(found) == 3000
    assert min(float(b.get("width", "nan")) for b in found.values()) >= 0.5
    root = ET.fromstring(draw(made, "net"))
    at = [float(e.get("x", "nan")) for e in root.iter(f"{NAMESPACE}text")
          if re.fullmatch(r"\d+", e.text or "") and e.get("text-anchor") == "middle"]  # fmt: skip
    assert len(at) > 5 and min(b - a for a, b in pairwise(at)) > 40


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_to_draw(size: int) -> None:
    steps = [Step("s", (), ("a",))] if size else []
    made = plan(steps, [BufferSpec("a", size)] if size else [])
    assert len(boxes(made)) == size
