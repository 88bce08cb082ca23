"""The Winograd convolution template against float64 references, and the errors that it promises."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.inspect.interpret import Hints, run_kernel
from tilewright.compiler.kernels import winograd
from tilewright.compiler.kernels.ir import Prepared
from tilewright.compiler.kernels.winograd import Winograd, pack_transformed
from tilewright.compiler.kernels.winograd_transforms import transformed_weights, transforms

from .native import Native, host_device
from .support import AVX2, AVX512, DEVICES, check_group, logical, stored
from .test_conv import conv_graph

WINOGRAD = Winograd()
ROUNDOFF = 2.0**-24  # of float32

CASES: dict[str, dict[str, Any]] = {
    "even": dict(x_shape=(1, 16, 8, 8), w_shape=(32, 16, 3, 3), pads=1, relu=True),
    "no padding": dict(x_shape=(1, 16, 9, 7), w_shape=(16, 16, 3, 3)),
    "channel tails": dict(x_shape=(1, 21, 7, 5), w_shape=(19, 21, 3, 3), pads=1, residual=True),
    "one channel": dict(x_shape=(1, 1, 6, 5), w_shape=(1, 1, 3, 3), pads=1, relu=True),
    "batch": dict(x_shape=(3, 8, 5, 6), w_shape=(16, 8, 3, 3), pads=1, residual=True, relu=True),
    "one place": dict(x_shape=(2, 5, 1, 1), w_shape=(16, 5, 3, 3), pads=1),
    "wide padding": dict(x_shape=(1, 4, 3, 2), w_shape=(16, 4, 3, 3), pads=(5, 0, 2, 4)),
    "row": dict(x_shape=(1, 17, 1, 13), w_shape=(33, 17, 3, 3), pads=1, bias=False),
    "many panels": dict(x_shape=(1, 3, 9, 17), w_shape=(112, 3, 3, 3), pads=1),
}


def winograd_graph(m: int, device: Any = AVX512, **case: Any) -> tuple[Graph, dict[str, Any]]:
    return conv_graph(device=device, winograd=m, **case)


def tolerance(m: int, case: dict[str, Any]) -> float:
    """What `Transforms.error` says, for results of up to 4 standard deviations; check_launch adds
    a part of each result to it."""
    depth = case["w_shape"][1]
    return transforms(m).error(depth) * ROUNDOFF * 4 * np.sqrt(9 * depth)


def test_products_stay_in_the_first_cache_until_they_are_transformed_back() -> None:
    """Where there are enough tiles to choose from."""
    graph, _ = winograd_graph(4, x_shape=(1, 16, 56, 56), w_shape=(64, 16, 3, 3), pads=1)
    chosen = WINOGRAD.default(graph, graph.ops, graph.outputs, AVX512)
    held = 36 * chosen["tiles"] * chosen["vectors"] * AVX512.vector_bytes
    assert AVX512.l1_bytes / 2 < held <= AVX512.l1_bytes


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_configs_agree(name: str, m: int) -> None:
    """The first few configs and, spread over the space, some of the others."""
    case = CASES[name]
    graph, feeds = winograd_graph(m, **case)
    launches = check_group(WINOGRAD, graph, feeds, AVX512, 3, tolerance(m, case))
    space = WINOGRAD.space(graph, graph.ops, graph.outputs, AVX512)
    assert {c["phases"] for c in space} == {1, 3}
    assert all(launch.kernel.flops > 0 for launch in launches)
    images, _, *places = graph.type(graph.outputs[0]).dims
    tiles = images * prod(-(-d // m) for d in places)
    channels, depth = case["w_shape"][:2]
    products = (m + 2) ** 2 * tiles * channels * depth
    assert {launch.kernel.own_flops for launch in launches} == {2 * products}


@pytest.mark.slow
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_every_config_agrees(name: str, m: int) -> None:
    case = CASES[name]
    for device in (AVX512, AVX2):
        check_group(WINOGRAD, *winograd_graph(m, device, **case), device, 0, tolerance(m, case))


@pytest.mark.parametrize("machine", DEVICES)
def test_every_machine(machine: str) -> None:
    device = DEVICES[machine]
    for m, name in ((2, "channel tails"), (4, "batch")):
        case = CASES[name]
        check_group(WINOGRAD, *winograd_graph(m, device, **case), device, 1, tolerance(m, case))


def test_declines() -> None:
    def matches(m: int = 4, **case: Any) -> bool:
        graph, _ = winograd_graph(m, **{**CASES["even"], **case})
        return WINOGRAD.matches(graph, graph.ops, graph.outputs)

    assert matches()
    assert not matches(m=0), "nobody asked for it"
    assert not matches(planar=True), "inputs lie along lanes"
    assert not matches(dtype="float64"), "constants are chosen for float32"


def test_what_transforms_touch_is_asked_for() -> None:
    """All results, and of the inputs those that the next tiles of the item read first."""
    case = dict(x_shape=(1, 32, 16, 16), w_shape=(32, 32, 3, 3), pads=1, bias=False)
    graph, feeds = winograd_graph(4, **case)
    config = {"m": 4, "tiles": 4, "mr": 4, "nb": 2, "vectors": 2, "phases": 1, "items": 1}
    launch = WINOGRAD.instantiate(graph, graph.ops, graph.outputs, AVX512, config)
    x, u, y, *_ = launch.kernel.params
    made = launch.args[1]
    assert isinstance(made, Prepared)
    weights = made.make(graph.blobs[made.blobs[0]].value)
    arrays = [stored(feeds["x"], graph.type("x")), weights, *(None for _ in launch.args[2:])]
    hints: Hints = {}
    run_kernel(launch.kernel, arrays, hints=hints)
    assert {at // 16 for at in hints[y]} == set(range(2 * 256))
    asked = {at // 16 for at in hints[x]}
    # Four tiles are a row of tiles: that from row 3 on is asked for first, but for the columns
    # that lie left of the first tile's last four.
    wanted = {b * 256 + r * 16 + c for b in range(2) for r in range(3, 16) for c in range(1, 16)}
    assert wanted <= asked
    assert not {0, 16, 32} & asked, "the first tiles' own"
    assert u in hints


# --------------------------------------------------------------------------- machine code, errors


def run(graph: Graph, feeds: dict[str, Any], number: int = 0) -> Any:
    """The result of the graph's one group, compiled for this machine with one config."""
    device = host_device()
    config = WINOGRAD.space(graph, graph.ops, graph.outputs, device)[number]
    launch = WINOGRAD.instantiate(graph, graph.ops, graph.outputs, device, config)
    (name,) = graph.outputs
    done = Native(graph, launch)({n: stored(v, graph.type(n)) for n, v in feeds.items()})
    return logical(done[name].reshape(-1), graph.type(name))


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("channels", [1, 3, 16, 130, 512])
def test_typical_error(m: int, channels: int) -> None:
    case = dict(x_shape=(1, channels, 11, 13), w_shape=(32, channels, 3, 3), pads=1, bias=False)
    graph, feeds = winograd_graph(m, host_device(), **case)
    wanted = evaluate(graph, feeds)[graph.outputs[0]]
    error = np.abs(run(graph, feeds) - wanted).max() / np.abs(wanted).max() / ROUNDOFF
    assert error <= transforms(m).error(channels)
    assert error >= transforms(m).error(channels) / 20, "the bound says nothing"


@pytest.mark.parametrize("m", [2, 4])
def test_partial_sums_round_less(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 products in one chain are off by sqrt(512 / 2) of a term's roundoff, in 8 partial sums
    of 64 by sqrt(64 / 2 + 8 / 2). The roundings of the transforms stay as they are."""
    case = dict(x_shape=(1, 512, 12, 12), w_shape=(16, 512, 3, 3), pads=1, bias=False)
    graph, feeds = winograd_graph(m, host_device(), **case)
    wanted = evaluate(graph, feeds)[graph.outputs[0]]
    parts = np.square(run(graph, feeds) - wanted).mean() ** 0.5
    monkeypatch.setattr(winograd, "PARTIAL", 512)
    chain = np.square(run(graph, feeds) - wanted).mean() ** 0.5
    assert (36 / 256) ** 0.5 * chain < parts < 0.6 * chain


def test_noise_is_that_of_the_measured_algorithms() -> None:
    """F(2) rounds less than a direct sum; F(4) at most 3 times as much."""
    assert transforms(2).noise < 0.6 and transforms(4).noise < 3


@pytest.mark.parametrize("m", [2, 4])
def test_worst_error(m: int) -> None:
    """Inputs of very different size: a result may be off by as much as the largest of its tile
    allows, but no more. Every result against its own bound."""
    channels = 19
    case = dict(x_shape=(1, channels, 8, 12), w_shape=(32, channels, 3, 3), pads=1, bias=False)
    graph, feeds = winograd_graph(m, host_device(), **case)
    feeds["x"] *= np.exp2(np.random.default_rng(0).integers(-12, 13, feeds["x"].shape))
    feeds["x"] = feeds["x"].astype(np.float32)
    wanted = evaluate(graph, feeds)[graph.outputs[0]]
    t = transforms(m)
    b, g, a = (np.abs(np.array(x, np.float64)) for x in (t.data, t.weights, t.result))
    x = np.pad(np.abs(feeds["x"][0].astype(np.float64)), ((0, 0), (1, m + 1), (1, m + 1)))
    w = np.abs(graph.blobs[graph.ops[0].reads[1]].value.astype(np.float64))
    u = np.einsum("ki,ocij,lj->klco", g, w, g)
    # roundings on one path: 3 per axis of B, one of U, C sums, 5 per axis of A
    roundings = channels + 2 * 3 + 1 + 2 * 5
    found = run(graph, feeds)
    off = np.abs(found - wanted)[0]
    for top in range(0, 8, m):
        for left in range(0, 12, m):
            tile = x[:, top : top + t.size, left : left + t.size]
            v = np.einsum("ki,cij,lj->klc", b, tile, b)
            y = np.einsum("ik,klo,jl->oij", a, np.einsum("klc,klco->klo", v, u), a)
            part = off[:, top : top + m, left : left + m]
            limit = roundings * ROUNDOFF * y[:, : part.shape[1], : part.shape[2]]
            assert (part <= limit).all()
            most = np.abs(tile).max() * w.sum((1, 2, 3))[:, None, None]
            assert (y <= t.amplification * most).all(), "the stated amplification is too small"


@pytest.mark.parametrize("number", range(0, 12, 3))
def test_machine_code_of_other_configs(number: int) -> None:
    case = dict(x_shape=(2, 20, 9, 10), w_shape=(64, 20, 3, 3), pads=1, relu=True, residual=True)
    graph, feeds = winograd_graph(4, host_device(), **case)
    wanted = evaluate(graph, feeds)[graph.outputs[0]]
    found = run(graph, feeds, number % len(WINOGRAD.space(graph, graph.ops, graph.outputs,
                                                          host_device())))  # fmt: skip
    limit = transforms(4).error(20) * ROUNDOFF * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, 0, limit)


# --------------------------------------------------------------------------- the matrices


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_are_exact(m: int) -> None:
    """In rational numbers, A^T (G w * B^T d) is the convolution; what kernels hold is exact."""
    t = transforms(m)
    for tap in range(3):
        for at in range(t.size):
            for i, row in enumerate(t.result):
                total = sum(a * g[tap] * b[at] for a, g, b in
                            zip(row, t.weights, t.data, strict=True))  # fmt: skip
                assert total == (at == i + tap)
    for entry in (x for matrix in (t.data, t.result) for row in matrix for x in row):
        assert float(np.float32(float(entry))) == entry


@pytest.mark.parametrize("m", [2, 4])
def test_amplification_is_attained(m: int) -> None:
    """By inputs of one size and weights in a single tap."""
    t = transforms(m)
    b, g, a = (np.abs(np.array(x, np.float64)) for x in (t.data, t.weights, t.result))
    most = np.max(a @ (g * b.sum(1, keepdims=True)))  # one axis: results by taps
    assert t.amplification == pytest.approx(most**2)


def test_weights_are_packed_in_the_order_of_reading() -> None:
    w = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    u = transformed_weights(w, 2).astype(np.float32)
    g = np.array(transforms(2).weights, np.float64)
    np.testing.assert_array_equal(
        u.reshape(4, 4, 5, 3),
        np.einsum("ki,ocij,lj->kloc", g, w.astype(np.float64), g).astype(np.float32),
    )
    # one group, with panels of 4 and of 2 channels
    packed = pack_transformed(w, 2, lanes=2, blocks=2, share=3, vectors=3)
    flat = packed.reshape(16, 3 * 6)
    for xi in range(16):
        first, second = flat[xi, :12].reshape(3, 4), flat[xi, 12:].reshape(3, 2)
        np.testing.assert_array_equal(first, u[xi, :4].T)
        np.testing.assert_array_equal(second, np.stack([u[xi, 4], np.zeros(3)], 1))
