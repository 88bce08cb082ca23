"""The page as text: what it holds, and that no name in it can be more than a name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import tilewright as tw
from tilewright.autotune.outcome import Failure, Measurement
from tilewright.autotune.row import Row
from tilewright.autotune.task import Candidate, Key
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.inspect.page.assemble import page, script_json
from tilewright.compiler.inspect.page.facts import Report, facts, packed, texts
from tilewright.compiler.inspect.trace import fusion_of
from tilewright.compiler.inspect.views import cpu_code
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.compiler.text import printable

from .pages import EVIL, deep, profiled, small


@pytest.fixture(scope="module")
def exe() -> Executable:
    return small()


def report(exe: Executable, **given: Any) -> Report:
    c = exe._compilation
    return Report(exe.graph.name, "here", c, cpu_code(c.target), **given)


class Parsed(HTMLParser):
    """Elements with their attributes, and the text in each script, style and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self._at = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag in ("script", "style", "title"):
            self._at = given.get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._at = ""

    def handle_data(self, data: str) -> None:
        if self._at:
            self.inside[self._at] = self.inside.get(self._at, "") + data


def test_names_cannot_break_out(exe: Executable) -> None:
    text = page(report(exe, profile=profiled(exe)))
    found = Parsed(text)
    scripts = [given for tag, given in found.tags if tag == "script"]
    assert [(s.get("type"), s.get("id")) for s in scripts] == [
        ("application/json", "facts"), ("application/json", "texts"), ("module", None),
    ]  # fmt: skip
    assert not any(tag == "img" for tag, _ in found.tags)
    assert found.inside["title"] == f"{printable(EVIL)} - Tilewright"
    shown = json.loads(found.inside["facts"])
    assert shown["name"] == printable(EVIL) and "\u202e" not in shown["name"]
    assert shown["inputs"][0][0] == printable(EVIL + "x")
    assert "{{title}}" in shown["name"]  # what looks like a slot of the page's own is none


def test_the_policy_allows_this_script_and_style_and_no_other(exe: Executable) -> None:
    found = Parsed(page(report(exe)))
    (policy,) = (given["content"] or "" for tag, given in found.tags
                 if given.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    for kind, name in (("script-src", "script"), ("style-src", "style")):
        digest = hashlib.sha256(found.inside[name].encode()).digest()
        assert f"{kind} 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_the_page_needs_nothing_from_outside(exe: Executable) -> None:
    text = page(report(exe))
    elsewhere = {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= elsewhere
    for tag, given in Parsed(text).tags:
        assert "src" not in given, tag
        assert given.get("href", "data:,") == "data:,"


def test_json_in_scripts_has_no_markup_and_says_the_same() -> None:
    value = {"a</script>": ["<!--", "&lt;", "\u2028", "\ud800"], "b": 1.5}
    text = script_json(value)
    assert not set(text) & set("<>&") and text.isascii()
    assert json.loads(text) == value


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_texts_come_packed(exe: Executable) -> None:
    found = texts(report(exe))
    kernels = exe._compilation.launches
    codes = facts(report(exe))["kernels"]
    for launch, shown in zip(kernels, codes, strict=True):
        levels = found["kernels"][shown["code"]]
        assert list(levels) == ["ir", "llvm", "asm"]
        unpacked = {k: zlib.decompress(base64.b64decode(v)).decode() for k, v in levels.items()}
        assert unpacked["ir"] == kernel_text(launch.kernel)
        assert "define" in unpacked["llvm"] and ".text" in unpacked["asm"]
    assert [t is not None for t in found["stages"]] == [s.changed for s in exe.stages]
    assert zlib.decompress(base64.b64decode(packed("µ\ud800"))).decode() == "µ?"


def test_the_graph_has_every_op_once_and_every_flow_of_data(exe: Executable) -> None:
    shown = facts(report(exe))
    blocks, edges = shown["graph"]["blocks"], shown["graph"]["edges"]
    members = [k for kind, _, content, *_ in blocks if kind in ("kernel", "view") for k in content]
    assert sorted(members) == list(range(len(exe.graph.ops)))
    assert sorted(b[1] for b in blocks if b[1] >= 0) == list(range(len(exe.kernels)))
    assert [b[0] for b in blocks].count("view") == 1  # the reshape
    block = {k: at for at, b in enumerate(blocks) if b[0] in ("kernel", "view") for k in b[2]}
    number = {id(op): k for k, op in enumerate(exe.graph.ops)}
    wanted = {
        (block[number[id(writer)]], block[k])
        for k, op in enumerate(exe.graph.ops) for n in op.reads
        if (writer := exe.graph.producer.get(n)) is not None
    }  # fmt: skip
    assert {
        (a, b) for a, b, _ in edges if blocks[a][0] != "input" and blocks[b][0] != "output"
    } == {(a, b) for a, b in wanted if a != b}
    ends = {(blocks[a][0], blocks[b][0]) for a, b, _ in edges}
    assert ("input", "kernel") in ends and ("kernel", "output") in ends
    for a, b, blobs in edges:
        assert blocks[a][3] < blocks[b][3] and blobs


def test_times_and_shares_are_those_of_the_profile(exe: Executable) -> None:
    profile = profiled(exe)
    shown = facts(report(exe, profile=profile))["profile"]
    assert shown["rounds"] == 8
    assert [r["seconds"] for r in shown["rows"]] == [r.seconds for r in profile.rows]
    assert sum(r["share"] for r in shown["rows"]) == pytest.approx(1)
    assert facts(report(exe))["profile"] is None


def row(candidate: Candidate, outcome: Measurement | Failure, **more: Any) -> Row:
    return Row(Key("problem", "device", "standard"), candidate, outcome, **more)


def test_alternatives_stand_in_order_with_what_can_be_told_apart(exe: Executable) -> None:
    kernel = exe._compilation.launches[0].kernel
    runs = Candidate(kernel.template, kernel.version, dict(kernel.config))
    best, tied, far, bad = (Candidate("t", 1, {"n": k}) for k in range(4))
    rows = [
        row(far, Measurement(3e-6, 2.9e-6, 3.1e-6, 9, contaminated=True)),
        row(runs, Measurement(2.5e-6, 2.4e-6, 2.6e-6, 9), is_default=True),
        row(bad, Failure("crash")),
        row(tied, Measurement(2.1e-6, 1.9e-6, 2.2e-6, 9)),
        row(best, Measurement(2.0e-6, 1.9e-6, 2.1e-6, 9)),
    ]
    shown = facts(report(exe, measured={0: rows, 1: rows}))["measured"]
    assert shown["launches"][:2] == [0, 0] and set(shown["launches"][2:]) == {-1}
    (problem,) = shown["problems"]
    assert problem["failed"] == 1
    seconds, behind, tie, marks = zip(*((r[2], r[5], r[6], r[7]) for r in problem["rows"]),
                                      strict=True)  # fmt: skip
    assert seconds == (2.0e-6, 2.1e-6, 2.5e-6, 3e-6)
    assert behind == pytest.approx((0, 0.05, 0.25, 0.5))
    assert tie == (True, True, False, False)
    assert marks == ([], [], ["runs", "default"], ["disturbed"])


def test_kernels_say_why_they_end_where_they_do(exe: Executable) -> None:
    found = fusion_of(exe._compilation)
    assert found is not None
    whys = {(s.blob, s.why) for s in found.seams}
    told = [seam for kernel in facts(report(exe))["kernels"] for seam in kernel["seams"]]
    assert told and {(blob, why) for blob, _, why in told} <= whys


def test_memory_is_that_of_the_plan(exe: Executable) -> None:
    shown = facts(report(exe))["memory"]
    assert shown["arena"] == exe.plan.arena_bytes and len(shown["steps"]) == len(exe.kernels)
    assert max(shown["alive"]) == exe.plan.alive_bytes
    for _, first, last, size, offset, address, names, _ in shown["boxes"]:
        assert 0 <= first <= last < len(shown["steps"])
        assert offset == address and offset + size <= shown["arena"] and names


def test_a_program_for_a_gpu_has_a_page_without_times(tmp_path: Path) -> None:
    g = tw.Graph("gpu")
    g.output(g.relu(g.input("x", (4, 4))), name="y")
    exe: Any = tw.compile(g, target="cuda:sm_90")
    exe.report(tmp_path / "gpu.html", name="on a GPU")
    found = Parsed((tmp_path / "gpu.html").read_text())
    shown, codes = json.loads(found.inside["facts"]), json.loads(found.inside["texts"])
    assert shown["name"] == "on a GPU" and shown["profile"] is None
    assert list(codes["kernels"][0])[:3] == ["ir", "source", "ptx"]


def test_two_thousand_nodes_make_a_small_file() -> None:
    exe = deep(500)
    assert len(exe.stages[0].graph.ops) == 2001
    assert len(page(report(exe, profile=profiled(exe)))) < 2 << 20
