"""The roofline diagram: well-formed, to scale, and safe whatever nodes are called."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from tilewright.compiler.inspect import svg
from tilewright.compiler.inspect.machine import Limits, MemoryLevel
from tilewright.compiler.inspect.profile import Profile, ProfileRow
from tilewright.compiler.inspect.roofline import Axes, draw

NAMESPACE = "{http://www.w3.org/2000/svg}"
LIMITS = Limits(
    2, 100e9,
    (MemoryLevel("L1", 1 << 15, 200e9, 100e9, 200e9), MemoryLevel("DRAM", None, 10e9, 10e9, 10e9)),
)  # fmt: skip
ROW = ProfileRow("conv_1", "conv", "Conv_0", ("conv",), 1e-3, 0.5, 90_000_000, 50_000_000,
                 1_000_000, 5e-4, 1e-4, "DRAM", "DRAM")  # fmt: skip
"""Of a kernel that does 50 of the 90 million operations of its problem."""
MOVER = ProfileRow("nest_1", "nest", "Concat_1", ("concat",), 1e-4, 0.05, 0, 0, 1_000_000, 0.0,
                   1e-4, "DRAM", "DRAM")  # fmt: skip


def drawn(*rows: ProfileRow) -> ET.Element:
    return ET.fromstring(draw(Profile(rows, LIMITS), "net"))


def titles(root: ET.Element) -> list[str]:
    return [e.text or "" for e in root.iter(f"{NAMESPACE}title")]


def test_a_disk_per_kernel_with_what_the_pointer_shows() -> None:
    again = replace(ROW, label="Conv_7", seconds=3e-3, share=0.45)
    root = drawn(ROW, MOVER, again)
    first, second = sorted(titles(root))
    assert first.startswith("conv_1, 2 launches\nConv_0\nConv_7\n")
    assert "95.0% of the time" in first and "25.0 GFLOP/s" in first
    assert second.startswith("nest_1, 1 launch\nConcat_1\n") and "100% of the limit" in second
    words = " ".join(e.text or "" for e in root.iter(f"{NAMESPACE}text"))
    for part in ("net", "100 GFLOP/s", "L1 200 GB/s", "DRAM 10 GB/s", "2 threads", "Conv_0 (x2)"):
        assert part in words


def test_disks_lie_where_the_axes_say() -> None:
    root = drawn(ROW)
    disk = next(e for e in root.iter(f"{NAMESPACE}circle") if len(e))
    roof = next(e for e in root.iter(f"{NAMESPACE}line") if e.get("class") == "roof")
    # 50 of 100 GFLOP/s: log10(2) decades below the roof
    ticks = {e.text: float(e.get("y", 0)) for e in root.iter(f"{NAMESPACE}text")
             if e.get("text-anchor") == "end"}  # fmt: skip
    decade = ticks["10"] - ticks["100"]
    below = float(disk.get("cy", 0)) - float(roof.get("y1", 0))
    assert below == pytest.approx(decade * 0.30103, abs=0.3)


def test_names_of_a_model_stay_words() -> None:
    evil = replace(ROW, label='</title><script>alert("x")</script>&amp;')
    root = drawn(evil)
    assert not list(root.iter(f"{NAMESPACE}script"))
    assert 'alert("x")' in titles(root)[0]


def test_a_program_that_computes_nothing() -> None:
    root = drawn(replace(MOVER, bytes=0, seconds=0.0, memory_seconds=0.0))
    for e in root.iter():
        for name in ("x", "y", "cx", "cy", "r"):
            assert re.fullmatch(r"-?\d+(\.\d)?", e.get(name, "0")), (e.tag, e.attrib)


def test_axes_are_logarithmic() -> None:
    axes = Axes(-1, 3, 0, 4)
    assert axes.x(10) - axes.x(1) == pytest.approx(axes.x(1) - axes.x(0.1))
    assert axes.y(1) > axes.y(10)


def test_elements_escape_their_attributes() -> None:
    made = svg.element("a", title='"<&>"', font_size=1.25, class_="c")
    (root,) = ET.fromstring(f"<r>{made}</r>")
    assert root.attrib == {"title": '"<&>"', "font-size": "1.2", "class": "c"}
