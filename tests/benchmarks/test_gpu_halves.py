"""The benchmark's models stored in half floats: all of them compile for GPUs, up to their code."""

from __future__ import annotations

from typing import Any

import pytest

from tilewright.compiler.api.compile import analyse
from tilewright.compiler.codegen.cuda.target import KNOWN
from tilewright.ops.types import f32

from .scripts import script
from .test_gpu import gpu_script

NAMES = script("models").NAMES
QUICK = [n if n == "shufflenet" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
SINGLE = ("gru_sent", "segnet")
"""Recurrences and unpooling are computed in float32 by kernels that take no casts."""


@pytest.mark.parametrize("arch", ["sm_90", *(pytest.param(a, marks=pytest.mark.slow)
                                             for a in KNOWN if a != "sm_90")])  # fmt: skip
@pytest.mark.parametrize("batch", [1, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", QUICK)
def test_a_model_of_half_floats(name: str, kind: str, batch: int, arch: str) -> None:
    """What kernels hand on is half floats."""
    onnx, models = pytest.importorskip("onnx"), script("models")
    networks = gpu_script("networks")
    try:
        model = onnx.load(models.path(name))
    except ModuleNotFoundError as e:
        pytest.skip(str(e))
    model = models.with_batch(model, batch) if batch > 1 else model
    half = networks.in_half(model, networks.HALVES[kind])
    made: Any = analyse(half, target=f"cuda:{arch}", tune=False)
    graph = made.graph
    wide = [b for x in made.launches for p, b in zip(x.kernel.params, x.args, strict=True)
            if p.is_written and isinstance(b, str) and graph.type(b).dtype is f32]  # fmt: skip
    assert not wide or name in SINGLE
