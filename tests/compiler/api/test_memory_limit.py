"""A memory limit is met by kernels that need less, or refused with the least that can be met."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tests.fuzz.graphs import random_feeds, random_graph
from tilewright.compiler.cli.main import main
from tilewright.compiler.errors import MemoryLimitError
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.memory import plan as plan_module
from tilewright.compiler.memory.packer import Packing, pack

Feeds = dict[str, np.ndarray]


def weights(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def convolutions() -> Graph:
    """3x3 convolutions by Winograd's algorithm, whose scratch is larger than their blobs, one with
    a residual."""
    g = tw.Graph("convolutions")
    h = g.relu(g.conv(g.input("x", (1, 16, 24, 22)), weights(32, 16, 1, 1)))
    h = g.relu(g.conv(h, weights(32, 32, 3, 3), weights(32), pads=1))
    h = g.relu(g.add(h, g.conv(h, weights(32, 32, 3, 3), pads=1)))
    g.output(g.conv(h, weights(16, 32, 1, 1)), "y")
    return g.build()


def attention() -> Graph:
    """Two heads with sheets of scores and packed keys."""
    g = tw.Graph("attention")
    x = g.input("x", (2, 64, 48))
    q, k, v = (g.matmul(x, weights(48, 48)) for _ in range(3))
    scores = g.softmax(g.matmul(q, g.transpose(k, perm=(0, 2, 1))), axis=-1)
    g.output(g.matmul(g.matmul(scores, v), weights(48, 40)), "y")
    return g.build()


def products() -> Graph:
    """Right operands that change and are packed, one of them transposed."""
    g = tw.Graph("products")
    x = g.input("x", (160, 96))
    a, b = g.tanh(g.matmul(x, weights(96, 128))), g.relu(g.matmul(x, weights(96, 128)))
    c = g.tanh(g.matmul(a, g.transpose(b, perm=(1, 0))))
    g.output(g.matmul(c, g.add(b, a)), "y")
    return g.build()


def deep_product() -> Graph:
    """A sum over 1100 terms, whose default adds up in blocks, onto an operand that it may take the
    place of without them."""
    g = tw.Graph("deep_product")
    c = g.tanh(g.matmul(g.input("x", (160, 96)), weights(96, 160)))
    deep = g.tanh(g.matmul(c, weights(160, 1100)))
    g.output(g.softmax(g.add(c, g.matmul(deep, weights(1100, 160))), axis=0), "y")
    return g.build()


NETS: dict[str, Callable[[], Graph]] = {
    "convolutions": convolutions, "attention": attention, "products": products,
    "deep_product": deep_product,
}  # fmt: skip


@cache
def truth(name: str) -> tuple[Graph, Feeds, dict[str, np.ndarray]]:
    graph = NETS[name]() if name in NETS else random_graph(int(name), 25)
    feeds = random_feeds(graph, 3)
    return graph, feeds, evaluate(graph, feeds)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")


def checked(name: str, limit: int | None = None, **options: Any) -> tw.Executable:
    """The program within a limit; its results are right."""
    graph, feeds, wanted = truth(name)
    exe = tw.compile(graph, memory_limit=limit, **options)
    assert limit is None or exe.plan.arena_bytes <= limit
    for n, y in exe.run(feeds).items():
        assert np.abs(y - wanted[n]).max() <= 2e-5 * np.abs(wanted[n]).max()
    return exe


def least(graph: Any, **options: Any) -> int:
    """What the compiler says is the least limit that can be met."""
    with pytest.raises(MemoryLimitError) as caught:
        tw.compile(graph, memory_limit=0, **options)
    found = caught.value.least_bytes
    assert found is not None and f"Raise the limit to {found}," in str(caught.value)
    return found


def changes(exe: tw.Executable) -> list[str]:
    return [n for k in exe.kernels for n in k.notes if n.startswith("memory limit: ")]


SEEDS = [pytest.param(str(n), marks=pytest.mark.slow if n > 3 else ()) for n in range(24)]


@pytest.mark.parametrize("name", [*NETS, *SEEDS])
def test_limits_around_what_is_needed_and_around_the_least(name: str) -> None:
    free = checked(name)
    need = free.plan.arena_bytes
    assert [k.config for k in checked(name, need).kernels] == [k.config for k in free.kernels]
    if not need:  # every blob is an input or an output: any limit can be met
        return
    low = least(truth(name)[0])
    assert low <= need and (name not in NETS or low < need)
    for limit in dict.fromkeys((need - 1, (need + low) // 2, low)):
        if low <= limit < need:
            assert changes(checked(name, limit))
    with pytest.raises(MemoryLimitError):
        tw.compile(truth(name)[0], memory_limit=low - 1)


def test_only_what_needs_too_much_is_changed_and_everybody_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of two layers the first has more alive."""
    g = tw.Graph("two")
    h = g.relu(g.conv(g.input("x", (1, 32, 28, 28)), weights(64, 32, 3, 3), pads=1))
    h = g.max_pool(h, kernel_shape=(2, 2), strides=(2, 2))
    g.output(g.conv(h, weights(32, 64, 3, 3), pads=1), "y")
    free = tw.compile(g)
    algorithms = [k.template for k in free.kernels]
    assert algorithms.count("winograd") == 2
    assert not changes(free)
    with caplog.at_level(logging.INFO, "tilewright"):
        exe = tw.compile(g, memory_limit=free.plan.arena_bytes - 1)
    (note,) = changes(exe)
    assert f"memory limit: {note.removeprefix('memory limit: ')}" in caplog.text
    assert "saves" in note and f"# {note}" in exe.ir("kernels")
    same = [a.config == b.config and a.template == b.template
            for a, b in zip(free.kernels, exe.kernels, strict=True)]  # fmt: skip
    assert same.count(False) == 1 and same.index(False) == algorithms.index("winograd")


def test_leaner_kernels_may_want_another_order() -> None:
    """A convolution's scratch is above all else, whatever the order. Without it a wide product
    should not run while the result of the first softmax waits."""
    g = tw.Graph("orders")
    x, y, z = g.input("x", (1, 48, 28, 28)), g.input("y", (128, 128)), g.input("z", (128, 128))
    g.output(g.global_average_pool(g.conv(x, weights(48, 48, 3, 3), pads=1)), "a")
    early = g.softmax(y, axis=0)
    wide = g.tanh(g.matmul(z, weights(128, 512)))
    g.output(g.softmax(g.matmul(g.matmul(wide, weights(512, 128)), early), axis=0), "b")
    free, low = tw.compile(g), least(g)
    assert low == (128 * 512 + 128 * 128) * 4
    exe = tw.compile(g, memory_limit=low)
    steps = [s.name for s in exe.plan.steps]
    assert exe.plan.arena_bytes == low and steps != [s.name for s in free.plan.steps]
    feeds = random_feeds(g.build(), 1)
    for n, wanted in evaluate(g.build(), feeds).items():
        np.testing.assert_allclose(exe.run(feeds)[n], wanted, 1e-4, 1e-5)


def test_equal_layers_keep_their_own_weights_and_names() -> None:
    g = tw.Graph("blocks")
    h = g.input("x", (1, 32, 20, 20))
    for k in range(3):
        h = g.relu(g.conv(h, weights(32, 32, 3, 3) * (k + 1), pads=1, name=f"layer{k}"))
    g.output(h, "y")
    free, exe = tw.compile(g), tw.compile(g, memory_limit=least(g))
    assert len(changes(exe)) == 3
    assert [k.ops for k in exe.kernels] == [k.ops for k in free.kernels]
    feeds = random_feeds(g.build(), 0)
    wanted = evaluate(g.build(), feeds)["y"]
    assert np.abs(exe.run(feeds)["y"] - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_packing_is_tried_again_with_the_limit_as_its_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a packer that leaves a gap unless it is told what will do."""

    def loose(buffers: Any, capacity: int | None = None, **options: Any) -> Packing:
        found = pack(buffers, capacity, **options)
        return found if capacity else replace(found, height=found.height + 640, optimal=False)

    monkeypatch.setattr(plan_module, "pack", loose)
    free = tw.compile(truth("deep_product")[0])
    assert free.plan.gap_bytes == 640
    exe = checked("deep_product", free.plan.lower_bound_bytes)
    assert exe.plan.optimal and not changes(exe)


@pytest.mark.parametrize("name", ["attention", "products", "deep_product"])
def test_reproducible_programs_have_the_same_bits_under_any_limit(name: str) -> None:
    graph, feeds, _ = truth(name)
    free = tw.compile(graph, numerics="reproducible")
    low = least(graph, numerics="reproducible")
    assert least(graph) <= low < free.plan.arena_bytes
    for limit in (free.plan.arena_bytes - 1, low):
        exe = tw.compile(graph, numerics="reproducible", memory_limit=limit)
        assert [k.template for k in exe.kernels] == [k.template for k in free.kernels]
        for n, y in free.run(feeds).items():
            np.testing.assert_array_equal(exe.run(feeds)[n].view(np.uint32), y.view(np.uint32))


def test_saved_programs_come_back_with_the_kernels_of_their_limit(tmp_path: Path) -> None:
    graph, feeds, _ = truth("convolutions")
    low = least(graph)
    exe = checked("convolutions", low)
    exe.save(tmp_path / "p")
    again = tw.load(tmp_path / "p")
    assert again.stats.built == 0
    assert again.ir("kernels") == exe.ir("kernels") and again.plan.arena_bytes == low
    np.testing.assert_array_equal(again(*feeds.values()), exe(*feeds.values()))
    tw.compile(graph).save(tmp_path / "free")
    assert tw.load(tmp_path / "free", memory_limit=low).ir("kernels") == exe.ir("kernels")
    with pytest.raises(MemoryLimitError, match=f"limit of {low - 1} bytes can't be met"):
        tw.load(tmp_path / "p", memory_limit=low - 1)


def two_convolutions(batch: int | str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes, "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 32, 20, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 32, 20, 20])],
        [numpy_helper.from_array(weights(32, 32, 3, 3), "w"),
         numpy_helper.from_array(weights(32, 32, 3, 3)[::-1].copy(), "v")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_open_programs_meet_the_limit_at_every_shape() -> None:
    small = least(two_convolutions(1))
    exe = tw.compile(two_convolutions("n"), memory_limit=small)
    assert exe(np.zeros((1, 32, 20, 20), np.float32)).shape == (1, 32, 20, 20)
    assert exe.plan.arena_bytes <= small and changes(exe)
    with pytest.raises(MemoryLimitError):
        exe(np.zeros((2, 32, 20, 20), np.float32))


def test_every_command_that_compiles_takes_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, saved = str(tmp_path / "two.onnx"), str(tmp_path / "two.tw")
    onnx.save(two_convolutions(1), model)
    low = least(model)
    for command in (
        ["run", model], ["inspect", model], ["compile", model, "-o", saved],
        ["cache", "explain", model], ["bench", model, "--rounds", "1"], ["run", saved],
    ):  # fmt: skip
        assert main([*command, "--memory-limit", str(low)]) == 0, command
        out = capsys.readouterr().out
        if command[0] == "inspect":
            assert "memory limit: direct_conv instead of winograd saves" in out
        if command[0] == "cache":
            assert "3 of 3 kernels are stored" in out
        assert main([*command, "--memory-limit", str(low - 1)]) == 2
        assert f"Raise the limit to {low}," in capsys.readouterr().err


def test_what_is_said_of_a_hostile_model(golden: Callable[[str, str], None]) -> None:
    g = tw.Graph("net")
    x = g.input("x", (1, 32, 20, 20))
    h = g.relu(x, name="first\x1b[31m\nlayer")
    for _ in range(2):
        h = g.conv(h, weights(32, 32, 3, 3), pads=1, name='"; import os\u202e\n')
    g.output(h, "y")
    with pytest.raises(MemoryLimitError) as caught:
        tw.compile(g, memory_limit="1 KiB", threads=2)
    text = re.sub(r"winograd \d+( to \d+)?,", "winograd N,", str(caught.value))
    golden(text + "\n", "memory_limit.txt")
