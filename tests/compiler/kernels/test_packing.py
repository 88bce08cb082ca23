"""Constants in the order in which contraction kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.arrays import ALIGNMENT
from tilewright.compiler.graph.ir import Deferred
from tilewright.compiler.kernels import packing
from tilewright.compiler.kernels.conv_group import pack_weights
from tilewright.compiler.kernels.matmul_group import pack_panels
from tilewright.compiler.kernels.recipe import Recipe
from tilewright.compiler.kernels.winograd import pack_transformed

Array = np.ndarray[Any, Any]
rng = np.random.default_rng(0)


@pytest.mark.usefixtures("stage_bytes")
@pytest.mark.parametrize("outs", [16, 20, 40])
@pytest.mark.parametrize(("channels", "block"), [(3, 0), (8, 4), (10, 4), (2, 4)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_every_weight_lies_at_its_step_and_lane(
    outs: int, channels: int, block: int, blocks: int
) -> None:
    lanes, taps = 8, 6
    w = np.arange(1.0, 1 + outs * channels * taps, dtype=np.float32)
    w = w.reshape(outs, channels, 2, 3)
    vectors = -(-outs // lanes)
    packed = pack_weights(w, lanes, blocks, vectors, block)
    assert packed.size == vectors * lanes * channels * taps
    assert packed.ctypes.data % ALIGNMENT == 0
    flat = w.reshape(outs, channels, taps)
    whole = channels // block * block if block else 0
    order = [(b * block + i, t) for b in range(whole // block if block else 0)
             for t in range(taps) for i in range(block)]  # fmt: skip
    order += [(c, t) for t in range(taps) for c in range(whole, channels)]
    at = 0
    for first in range(0, vectors, blocks):
        width = min(blocks, vectors - first) * lanes
        for c, t in order:
            for lane in range(width):
                o = first * lanes + lane
                assert packed[at] == (flat[o, c, t] if o < outs else 0)
                at += 1


@pytest.fixture(params=[64, 1000, packing.STAGE_BYTES])
def stage_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage for a few columns, for some, and for several panels at once."""
    monkeypatch.setattr(packing, "STAGE_BYTES", request.param)


def scaled(w: Array) -> Deferred:
    """Twice the weights, computed when they are asked for."""

    def write(out: Array, where: tuple[slice, ...]) -> None:
        np.multiply(w[where], 2, out=out)

    return Deferred(w.dtype, w.shape, (), write)


@pytest.mark.usefixtures("stage_bytes")
@pytest.mark.parametrize(("outs", "blocks"), [(64, 1), (40, 2), (13, 1), (24, 3)])
@pytest.mark.parametrize(("channels", "block"), [(3, 0), (16, 4), (10, 4)])
def test_weights_that_are_computed_in_parts_are_those_computed_as_a_whole(
    outs: int, blocks: int, channels: int, block: int
) -> None:
    w = rng.standard_normal((outs, channels, 2, 3)).astype(np.float32)
    vectors = -(-outs // 8)
    whole = scaled(w).make()
    np.testing.assert_array_equal(whole, 2 * w)
    want = pack_weights(whole, 8, blocks, vectors, block)
    np.testing.assert_array_equal(pack_weights(scaled(w), 8, blocks, vectors, block), want)
    flat = whole.reshape(outs, channels, 6)
    assert want[0] == flat[0, 0, 0] and want[1] == flat[1, 0, 0]
    assert np.sort(want)[-1] == flat.max() and (want != 0).sum() == (flat != 0).sum()


def test_transformed_weights_that_are_computed_in_parts() -> None:
    w = rng.standard_normal((20, 5, 3, 3)).astype(np.float32)
    options = {"m": 4, "lanes": 8, "blocks": 2, "share": 3, "vectors": 3}
    want = pack_transformed(2 * w, **options)
    np.testing.assert_array_equal(pack_transformed(scaled(w), **options), want)


@pytest.mark.usefixtures("stage_bytes")
@pytest.mark.parametrize("n", [8, 12, 16, 21])
def test_panels_of_a_transposed_matrix_are_those_of_its_copy(n: int) -> None:
    stored = np.arange(float(n * 5), dtype=np.float32).reshape(n, 5)
    strided = stored.T[None]
    packed = pack_panels(strided, 4, 8)
    np.testing.assert_array_equal(packed, pack_panels(np.ascontiguousarray(strided), 4, 8))
    full, rest = divmod(n, 8)
    width = -(-rest // 4) * 4
    want = [stored[g * 8 : g * 8 + 8].T.ravel() for g in range(full)]
    last = np.zeros((5, width), np.float32)
    last[:, :rest] = stored[full * 8 :].T
    np.testing.assert_array_equal(packed, np.concatenate([*want, last.ravel()]))


RECIPES = {
    "conv": (Recipe("conv", tuple({"lanes": 8, "blocks": 2, "vectors": 3, "block": 4}.items())),
             (20, 6, 2, 3)),
    "winograd": (Recipe("winograd", tuple({"m": 2, "lanes": 8, "blocks": 2, "share": 3,
                                           "vectors": 3}.items())), (20, 5, 3, 3)),
    "panels": (Recipe("panels", tuple({"lanes": 4, "width": 8, "k": 5, "n": 21, "steps": (),
                                       "of": 0}.items())), (5, 21)),
    "channels": (Recipe("channels", (("more", 3),)), (13,)),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_packed_into_memory_that_is_given(name: str) -> None:
    recipe, shape = RECIPES[name]
    w = rng.standard_normal(shape).astype(np.float32)
    want = recipe(w).reshape(-1)
    out = np.full(want.size, np.nan, np.float32)
    assert np.shares_memory(recipe(w, out=out), out)
    np.testing.assert_array_equal(out, want)
    for bad in (out[1:], np.zeros(want.size)):
        with pytest.raises(ValueError, match=r"float"):
            recipe(w, out=bad)
