"""Templates that compute the same groups on GPUs: all of them are tried, the better estimate is the
default, and never more than one where bits must not depend on sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.alternatives import alternatives
from tilewright.compiler.kernels.device import Device, gpu_device
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.gpu_wgmma import GpuWgmma
from tilewright.compiler.kernels.select import RIVAL_MARGIN, coded_groups, preferred, select
from tilewright.compiler.kernels.template import Objecting, Rival
from tilewright.compiler.options import Numerics
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.tuning.problem import Problem, problem_of

HOPPER, AMPERE = (9, 0), (8, 0)


def dense(m: int, n: int, k: int, kind: str) -> Graph:
    g = tw.Graph("g")
    w = g.constant(np.zeros((k, n), np.float16 if kind == "f16" else np.float32), name="w")
    g.output(g.relu(g.matmul(g.input("x", (m, k), kind), w)), "y")
    return run_pipeline(gpu_pipeline(), g.build())[0]


def problem(graph: Graph, numerics: Numerics, arch: tuple[int, int]) -> Problem:
    return problem_of(graph, graph.ops, graph.outputs, gpu_device(arch), numerics)


@pytest.mark.parametrize(
    ("kind", "numerics", "arch", "expected"),
    [
        ("f16", "standard", HOPPER, {"gpu_wgmma", "gpu_mma", "gpu_tiles"}),
        ("f16", "standard", AMPERE, {"gpu_mma", "gpu_tiles"}),
        ("f16", "reproducible", HOPPER, {"gpu_mma"}),
        ("f16", "reproducible", AMPERE, {"gpu_mma"}),
        ("f32", "reproducible", HOPPER, {"gpu_tiles"}),
        ("f32", "standard", HOPPER, {"gpu_tiles"}),  # nothing is rounded to tf32
        ("f32", "reduced", HOPPER, {"gpu_wgmma", "gpu_mma", "gpu_tiles"}),
    ],
)
@pytest.mark.parametrize("m", [16, 2048])
def test_a_space_is_of_all_templates_that_the_numerics_allow(
    kind: str, numerics: Numerics, arch: tuple[int, int], expected: set[str], m: int
) -> None:
    found = problem(dense(m, 1024, 512, kind), numerics, arch)
    space, estimates = found.candidates()
    assert {c.template for c in space} == expected
    assert len(set(space)) == len(space) == len(estimates)
    assert space[0] == found.default()
    for c in {c.template: c for c in space}.values():
        assert found.instantiate(c).kernel.template == c.template


def grouped(channels: int, groups: int) -> Graph:
    """A 3x3 convolution of so many channels."""
    g = tw.Graph("g")
    w = g.constant(np.ones((channels, channels // groups, 3, 3), np.float16))
    g.output(
        g.conv(g.relu(g.input("x", (1, channels, 28, 28), "f16")), w, group=groups, pads=1), "y"
    )
    return g.build()


@pytest.mark.parametrize(
    ("graph", "template"),
    [
        (dense(4096, 4096, 4096, "f16"), "gpu_wgmma"),  # whole tiles for every multiprocessor
        (dense(16, 4096, 4096, "f16"), "gpu_wgmma"),  # few rows wait for memory, whoever has them
        (dense(64, 64, 8192, "f16"), "gpu_wgmma"),  # one tile, but its sum falls into parts
        (grouped(128, 2), "gpu_wgmma"),
        (grouped(256, 8), "gpu_mma"),  # tiles of 64 columns would be empty for the most part
    ],
    ids=["large", "few rows", "long sums", "large groups", "small groups"],
)
def test_the_better_estimate_is_the_default(graph: Graph, template: str) -> None:
    graph, device = run_pipeline(gpu_pipeline(), graph)[0], gpu_device(HOPPER)
    known = gpu_templates("standard", HOPPER)
    group = next(p for p in coded_groups(graph) if GpuWgmma().matches(graph, p.ops, p.outputs))
    given = graph, group.ops, group.outputs
    chosen, why = preferred(*given, device, "standard", known)
    seconds = {t.name: t.estimate(*given, device, t.default(*given, device))
               for t in known if isinstance(t, Rival) and t.matches(*given)}  # fmt: skip
    assert (
        chosen is not None and chosen.name == template and set(seconds) >= {template, "gpu_tiles"}
    )
    least = min(seconds, key=lambda name: seconds[name])
    if template == "gpu_wgmma":
        assert seconds[template] <= seconds[least] * RIVAL_MARGIN and not why
    else:
        assert least == template and seconds[template] * RIVAL_MARGIN < seconds["gpu_wgmma"]
        assert why.startswith("chosen by estimates: gpu_wgmma ") and "gpu_mma" in why
    (note,) = (x.note for x in select(graph, device, templates=known)
               if x.kernel.template == template)  # fmt: skip
    assert note == why
    (note,) = (x.note for x in select(graph, device, templates=known, numerics="reproducible")
               if x.kernel.template == "gpu_wgmma")  # fmt: skip
    assert note == "", "the first, whatever it takes"


def test_a_program_says_what_its_kernels_were_chosen_by() -> None:
    exe = tw.compile(grouped(256, 8), target="cuda:sm_90")
    (kernel,) = (k for k in exe.kernels if k.template == "gpu_mma")
    (note,) = (n for n in kernel.notes if n.startswith("chosen by estimates"))
    assert "gpu_wgmma" in note


@pytest.mark.parametrize(("kind", "template"), [("f16", "gpu_mma"), ("f32", "gpu_tiles")])
def test_alternatives_need_less_scratch(kind: str, template: str) -> None:
    """Sums in fewer parts, at last in none; no other template then."""
    graph, device = dense(64, 64, 8192, kind), gpu_device(AMPERE)
    (launch,) = select(graph, device, templates=gpu_templates("standard"))
    found = list(alternatives(graph, launch, device, "standard"))
    sizes = [sum(b.nbytes for b in x.kernel.params if b.role == "scratch")
             for x in (launch, *found)]  # fmt: skip
    assert {x.kernel.template for x in (launch, *found)} == {template}
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] == 0
    assert len(sizes) > 3
    assert not list(alternatives(graph, launch, device, "reproducible"))[len(found) :]


def test_processors_have_no_rivals() -> None:
    graph = dense(64, 64, 64, "f32")
    space = problem_of(graph, graph.ops, graph.outputs, Device(64, 32, 1), "standard").space()
    assert {c.template for c in space} == {"gemm"}


# --------------------------------------------------------------------------- what is left out


@pytest.mark.parametrize(
    ("template", "size", "kind", "why"),
    [
        ("gpu_wgmma", (64, 64, 60), "f16", "as matrices: f16[64,60]: steps of 120 bytes are no"),
        ("gpu_wgmma", (4, 64, 64), "f16", "no sum of products of 8 rows and columns"),
        ("gpu_wgmma", (64, 64, 64), "f32", "factors of f32"),
        ("gpu_mma", (4, 64, 64), "f16", "4 rows, 64 columns and 64 terms would leave tiles mostly"),
        ("gpu_mma", (64, 64, 64), "f32", "rounded under numerics='reduced' only"),
    ],
)
def test_templates_say_why_they_leave_a_product_to_others(
    template: str, size: tuple[int, int, int], kind: str, why: str
) -> None:
    graph = dense(*size, kind)
    given = graph, graph.ops, graph.outputs
    known = {t.name: t for t in gpu_templates("standard", HOPPER)}
    found = known[template]
    assert isinstance(found, Objecting) and not found.matches(*given)
    assert why in found.objection(*given)
    allowed = dense(256, 64, 64, "f16")
    assert not found.objection(allowed, allowed.ops, allowed.outputs)


@pytest.mark.parametrize(
    ("x", "w", "attributes", "why"),
    [
        ((1, 63, 9, 9), (64, 63, 3, 3), {"pads": 1}, "63 channels are no multiple of 16 bytes"),
        ((1, 60, 9, 9), (60, 15, 3, 3), {"group": 4}, "15 channels are no multiple of 16 bytes"),
        ((1, 64, 64, 64), (64, 64, 3, 3), {"strides": 5}, "strides of (5, 5"),
    ],
)
def test_templates_say_why_they_leave_a_convolution_to_others(
    x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], why: str
) -> None:
    g = tw.Graph("g")
    g.output(g.conv(g.relu(g.input("x", x, "f16")), g.constant(np.ones(w, np.float16)),
                    **attributes), "y")  # fmt: skip
    graph = run_pipeline(gpu_pipeline(), g.build())[0]
    said = [GpuWgmma().objection(graph, p.ops, p.outputs) for p in coded_groups(graph)]
    assert any(why in s for s in said), said
