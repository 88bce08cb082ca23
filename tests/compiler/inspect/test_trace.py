"""From nodes of a model to kernels and back; where data lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright as tw
from tilewright.compiler.errors import OptionError
from tilewright.compiler.inspect.stages import changes, side_by_side
from tilewright.compiler.inspect.trace import fate, launch_named, nodes_in, places

from ...fuzz.graphs import random_graph


def network() -> tw.Graph:
    """Convolutions with what passes do to their neighbours."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    g = tw.Graph("net")
    x = g.input("x", (1, 16, 8, 8))
    h = g.conv(x, weights(16, 16, 1, 1), name="conv1")
    one, zero = np.ones(16, np.float32), np.zeros(16, np.float32)
    h = g.batch_normalization(h, one, zero, zero, one, name="bn1")
    h = g.relu(h, name="relu1")
    h = g.conv(h, weights(16, 16, 1, 1), name="conv2")
    g.output(g.softmax(g.reshape(h, shape=(16, 64), name="flat"), axis=-1, name="prob"), "y")
    return g


EXE = tw.compile(network())
C = EXE._compilation


@settings(max_examples=8)
@given(seed=st.integers(0, 100_000), ops=st.integers(3, 30))
def test_nodes_and_kernels_name_each_other(seed: int, ops: int) -> None:
    exe = tw.compile(random_graph(seed, ops))
    c = exe._compilation
    for node, numbers in exe.nodes.items():
        assert all(node in nodes_in(c, k) for k in numbers)
        assert node in str(exe.explain(op=node))
    for k in range(len(c.launches)):
        assert all(k in exe.nodes[n] for n in nodes_in(c, k))


def test_a_folded_node_is_followed_to_the_kernel_that_took_it_in() -> None:
    *_, k = EXE.nodes["conv1"]  # the one before brings its input into blocks
    assert EXE.nodes["relu1"] == (k,) and EXE.nodes["bn1"][-1] == k
    steps = fate(C, "bn1")
    assert steps[0].stage == "import" and "batch_normalization" in steps[0].ops[0]
    assert steps[-1].stage == "fuse" and steps[-1].ops[0].startswith("%")
    page = str(EXE.explain(op="bn1"))
    assert f"kernel k{k} direct_conv" in page and "relu1" in page
    assert "only elementwise ops run on a contraction's result in registers" in page


def test_a_view_takes_no_kernel() -> None:
    g = tw.Graph()
    x = g.exp(g.input("x", (2, 6)))
    y = g.reshape(x, shape=(3, 4), name="flat")
    g.output(g.softmax(y, axis=-1), "y")
    exe = tw.compile(g)
    assert exe.nodes["flat"] == ()
    page = str(exe.explain(op="flat"))
    assert "takes no code" in page and "no kernel computes it" in page


def test_a_kernel_is_found_by_number_and_by_name() -> None:
    names = [k.name for k in EXE.kernels]
    for k, name in enumerate(names):
        assert launch_named(C, f"k{k}") == k
        assert names[launch_named(C, name)] == name
        assert names[launch_named(C, name[:-1])] == name


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"op": "conv"}, "no node 'conv'; did you mean 'conv2' or 'conv1'?"),
        ({"kernel": "k99"}, "there is no kernel 'k99'"),
        ({"kernel": ""}, "there is no kernel ''"),
        ({"kernel": "direct_conv"}, "several kernels begin with 'direct_conv'"),
        ({}, "takes either op="),
        ({"op": "conv1", "kernel": "k0"}, "takes either op="),
    ],
)
def test_wrong_names_are_answered_with_right_ones(asked: dict[str, str], why: str) -> None:
    with pytest.raises(OptionError) as e:
        EXE.explain(**asked)
    assert why in str(e.value)


def test_places_are_where_kernels_find_their_data() -> None:
    """Compared with the table of addresses of a call."""
    program = EXE._program
    x = np.zeros((1, 16, 8, 8), np.float32)
    seen: list[list[int]] = []

    def look(k: int, pointers: int) -> None:
        count = len(C.launches[k].args)
        table = (np.ctypeslib.ctypes.c_uint64 * count).from_address(pointers)
        seen.append(list(table))

    program.timed([x], lambda: 0, look)
    arena = None
    for k in range(len(C.launches)):
        for place, address in zip(places(C, k), seen[k], strict=True):
            if place.where in ("arena", "scratch"):
                arena = address - place.offset if arena is None else arena
                assert address == arena + place.offset, place
            if place.where == "input":
                assert address == x.ctypes.data + place.offset
    assert arena is not None


def test_pages_are_data_too() -> None:
    facts = EXE.explain(op="relu1").as_json()
    (kernel,) = json.loads(json.dumps(facts))["kernels"]
    assert [op["operator"] for op in kernel["ops"]] == ["conv", "relu"]
    assert sum(len(line["instructions"]) for line in kernel["lines"]) > 50
    assert {p["where"] for p in kernel["places"]} >= {"arena", "packed constant"}


def test_a_level_of_one_node() -> None:
    asm = EXE.ir("asm", op="conv1")
    assert "vfmadd" in asm or "fmla" in asm or "mulps" in asm
    assert asm.count("parallel item") == len(EXE.nodes["conv1"])
    assert "conv(" in EXE.ir("import", op="conv1") and "relu" not in EXE.ir("import", op="conv1")
    assert "relu" in EXE.ir("fused", kernel=f"k{EXE.nodes['relu1'][0]}")
    assert "arena" in EXE.ir("memory", op="relu1")
    assert EXE.ir("llvm", op="relu1").count("define") == 1
    with pytest.raises(OptionError, match="there is no stage 'sass'"):
        EXE.ir("sass", op="conv1")


def test_a_loaded_program_still_knows_its_kernels(tmp_path: Path) -> None:
    EXE.save(tmp_path / "p.tw")
    page = str(tw.load(tmp_path / "p.tw").explain(op="relu1"))
    assert "direct_conv" in page and "known where it was compiled" in page


def test_changes_are_counted() -> None:
    stages = {s.name: k for k, s in enumerate(EXE.stages)}
    at = stages["fold_scales"]
    said = changes(EXE.stages[at - 1].graph, EXE.stages[at].graph)
    assert "-1 batch_normalization" in said
    fused = changes(EXE.stages[stages["fuse"] - 1].graph, EXE.stages[stages["fuse"]].graph)
    assert "groups" in fused
    assert changes(EXE.graph, EXE.graph) == ""


def test_stages_side_by_side() -> None:
    shown = side_by_side(("a", "b"), ("1\n2\n3\n4\n5\n6\n7\n8\n", "1\n2\n3\n4\n  5\n6\n9\n8\nx\n"))
    assert shown.splitlines() == [
        "a                   b",
        "... 3 lines alike   ...",
        "4                   4",
        "5                     5",
        "6                   6",
        "7                 | 9",
        "8                   8",
        "                  > x",
    ]
    cut = side_by_side(("a", "b"), ("y" * 99, "z" * 99), 60)
    assert max(map(len, cut.splitlines())) <= 60 and "~" in cut
