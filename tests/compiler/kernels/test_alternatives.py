"""Kernels that need less memory than the default: which there are, in which order, and that they
compute the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.alternatives import alternatives
from tilewright.compiler.kernels.attention import Attend
from tilewright.compiler.kernels.conv_group import conv_group
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.matmul import Gemm
from tilewright.compiler.kernels.select import select
from tilewright.compiler.kernels.template import falling
from tilewright.compiler.kernels.winograd import Winograd
from tilewright.compiler.kernels.winograd_configs import scratch_elements
from tilewright.compiler.options import Numerics

from .support import AVX512, DEVICES, check_launch
from .test_attention import CASES as ATTENTIONS
from .test_attention import graph_of as attention_of
from .test_matmul import CASES as PRODUCTS
from .test_matmul import Maker
from .test_matmul import graph_of as product_of
from .test_winograd import CASES, winograd_graph

LARGE = dict(x_shape=(1, 64, 56, 56), w_shape=(64, 64, 3, 3), pads=1)
SMALL = dict(x_shape=(1, 256, 4, 4), w_shape=(64, 256, 3, 3), pads=1)


def scratch(launch: Launch) -> int:
    return sum(b.nbytes for b in launch.kernel.params if b.role == "scratch")


def test_falling_keeps_what_is_faster_or_smaller_than_all_else() -> None:
    found = [(3.0, 5, {"n": 0}), (1.0, 9, {"n": 1}), (2.0, 9, {"n": 2}), (4.0, 6, {"n": 3}),
             (5.0, 1, {"n": 4}), (1.0, 12, {"n": 5})]  # fmt: skip
    assert [c["n"] for c in falling(found)] == [1, 0, 4]
    assert falling([]) == []


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", [LARGE, SMALL, CASES["channel tails"], CASES["batch"]])
def test_winograd_knows_its_scratch_and_its_lean_configs_have_less(
    case: dict[str, Any], m: int, machine: str
) -> None:
    device = DEVICES[machine]
    graph, _ = winograd_graph(m, device, **case)
    problem = graph, graph.ops, graph.outputs
    p = conv_group(*problem)
    assert p is not None
    lean = Winograd().lean(*problem, device)
    sizes = []
    for config in [Winograd().default(*problem, device), *lean]:
        sizes.append(scratch(Winograd().instantiate(*problem, device, config)))
        assert sizes[-1] == 4 * scratch_elements(p, device, config)
    assert sizes == sorted(set(sizes), reverse=True)
    assert lean or case is not LARGE
    assert not lean or case is not SMALL, "a direct sum is as fast"


def launch_of(graph: Graph) -> Launch:
    (launch,) = select(graph, AVX512)
    return launch


def one_group(graph: Graph) -> Graph:
    """All ops as one fusion group, as `select` wants them."""
    return replace(graph, ops=tuple(replace(op, group=0) for op in graph.ops))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_lean_attention_agrees_and_ends_with_one_row_of_scores(name: str) -> None:
    graph, feeds = attention_of(ATTENTIONS[name])
    problem = graph, graph.ops, graph.outputs
    lean = Attend().lean(*problem, AVX512)
    default = Attend().default(*problem, AVX512)
    assert default not in lean and len({str(c) for c in lean}) == len(lean)
    launches = [Attend().instantiate(*problem, AVX512, c) for c in (default, *lean)]
    for launch in launches:
        check_launch(graph, launch, feeds)
    last = dict(launches[-1].kernel.config)
    assert (last["items"], last["mr"], last["pack"]) == (1, 1, "item")
    assert scratch(launches[-1]) == min(map(scratch, launches))


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_items_that_pack_keys_and_values_agree(name: str, items: int) -> None:
    graph, feeds = attention_of(ATTENTIONS[name])
    problem = graph, graph.ops, graph.outputs
    config = Attend().default(*problem, AVX512) | {"pack": "item", "items": items, "mr": 2}
    check_launch(graph, Attend().instantiate(*problem, AVX512, config), feeds)


@pytest.mark.parametrize("order", ["n", "m"])
@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("name", PRODUCTS)
def test_items_that_pack_panels_agree(name: str, items: int, order: str) -> None:
    graph, feeds = product_of(PRODUCTS[name])
    problem = graph, graph.ops, graph.outputs
    config = Gemm().default(*problem, AVX512) | {"pack": "item", "items": items, "order": order}
    launch = Gemm().instantiate(*problem, AVX512, config)
    check_launch(graph, launch, feeds)
    packed = Gemm().instantiate(*problem, AVX512, config | {"pack": False})
    if items == 1:
        assert scratch(launch) <= scratch(packed)


def test_lean_products_pack_nothing_and_share_what_blocks_of_k_keep_apart() -> None:
    def build(t: Maker) -> Any:
        return t.input(130, 40) + t.g.tanh(t.input(130, 1030) @ t.input(1030, 40))

    graph, _ = product_of(build)
    problem = graph, graph.ops, graph.outputs
    default = Gemm().default(*problem, AVX512)
    assert default["kc"] and default["pack"]
    lean = Gemm().lean(*problem, AVX512)
    assert [(bool(c["kc"]), c["pack"]) for c in lean[:3]] == [
        (False, True), (True, False), (False, "item")
    ]  # fmt: skip
    launches = [Gemm().instantiate(*problem, AVX512, c) for c in (default, *lean[:3])]
    assert [scratch(x) > 0 for x in launches] == [True, True, False, False]
    assert [len(x.kernel.inplace) for x in launches] == [0, 1, 0, 1]


def templates(graph: Graph, numerics: Numerics = "standard") -> list[str]:
    launch = launch_of(graph)
    found = list(alternatives(graph, launch, AVX512, numerics))
    assert all((x.ops, x.label) == (launch.ops, launch.label) for x in found)
    return [launch.kernel.template, *(x.kernel.template for x in found)]


def test_other_templates_come_last_and_none_behind_one_without_scratch() -> None:
    graph, _ = winograd_graph(4, **LARGE)
    names = templates(one_group(graph))
    assert names == ["winograd"] * (len(names) - 1) + ["direct_conv"] and len(names) > 3
    assert templates(one_group(winograd_graph(0, **LARGE)[0])) == ["direct_conv"]
    graph, _ = attention_of(ATTENTIONS["many_rows"])
    names = templates(one_group(graph))
    assert names == ["attention"] * (len(names) - 1) + ["nest"] and len(names) > 3


def test_reproducible_programs_keep_to_one_template() -> None:
    graph, _ = attention_of(ATTENTIONS["many_rows"])
    assert set(templates(one_group(graph), "reproducible")) == {"attention"}


def test_alternatives_are_made_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = one_group(winograd_graph(4, **LARGE)[0])
    launch, made, real = launch_of(graph), [], Winograd.instantiate

    def counted(self: Winograd, *problem: Any) -> Launch:
        made.append(problem)
        return real(self, *problem)

    monkeypatch.setattr(Winograd, "instantiate", counted)
    found = alternatives(graph, launch, AVX512, "standard")
    assert not made
    next(found)
    assert len(made) == 1


def test_the_default_is_an_alternative_to_any_other_config() -> None:
    graph = one_group(winograd_graph(4, **LARGE)[0])
    problem = graph, graph.ops, graph.outputs, AVX512
    default, other = Winograd().default(*problem), Winograd().space(*problem)[-1]
    assert default != other
    launch = replace(Winograd().instantiate(*problem, other), ops=tuple(range(len(graph.ops))))
    found = [dict(x.kernel.config) for x in alternatives(graph, launch, AVX512, "standard")]
    assert found[0] == default
    plain = alternatives(graph, launch_of(graph), AVX512, "standard")
    assert dict(next(plain).kernel.config) != default
