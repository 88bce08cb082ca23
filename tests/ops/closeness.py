"""How near results have to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def assert_close(got: Array, want: Array, tolerance: float, what: str = "result") -> None:
    """Equal shapes, NaN and infinities in the same places, and elsewhere a difference of at most
    `tolerance` times the largest finite |want|. Integers and booleans must be equal."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if want.dtype.kind != "f":
        wrong = got != want
        assert not wrong.any(), f"{what}: {wrong.sum()} of {wrong.size} differ: {got} != {want}"
        return
    finite = np.isfinite(want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    odd = (~finite | ~np.isfinite(got)) & ~same
    assert not odd.any(), f"{what}: {got[odd][:9]} where {want[odd][:9]} is expected"
    scale = float(np.max(np.abs(want), where=finite, initial=0.0))
    with np.errstate(invalid="ignore"):  # infinities, which are equal by now
        error = float(np.max(np.abs(got - want), where=finite, initial=0.0))
    assert error <= tolerance * scale, f"{what}: off by {error} at a scale of {scale}"
