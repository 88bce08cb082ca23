"""Whole models compiled for GPUs: every kernel stays in registers, none is left to the general nest
that should not be, and all of a device has work to do."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.gpu import GpuExecutable
from tilewright.compiler.codegen.cuda.assemble import can_assemble
from tilewright.compiler.codegen.cuda.target import KNOWN
from tilewright.compiler.graph.builder import Value

from .test_architectures import models

pytest.importorskip("numba.cuda", reason="numba-cuda is not there")

NAMES = ("alexnet", "densenet121", "digitnet", "gru_sent", "inception_v1", "inception_v2", "mlp",
         "mobilenet", "resnet50", "segnet", "shufflenet", "squeezenet", "transformer", "vgg19",
         "vgg_cifar", "zfnet512")  # fmt: skip


def check(exe: GpuExecutable) -> None:
    notes = [(k.name, n) for k in exe.kernels for n in k.notes]
    assert not [n for n in notes if not n[1].startswith("chosen by estimates")]
    used = [p.usage for k in exe.kernels for p in k.phases]
    assert all((u is not None) is can_assemble() for u in used)
    assert all(u.registers <= 255 and u.local_bytes == 0 for u in used if u is not None)


def test_a_small_model() -> None:
    rng = np.random.default_rng(1)

    def weights(*dims: int) -> Value:
        made: Value = g.constant(rng.standard_normal(dims).astype(np.float32))
        return made

    g = tw.Graph("small")
    x = g.relu(g.conv(g.input("x", (1, 3, 64, 64)), weights(32, 3, 3, 3), strides=2, pads=1))
    x = g.relu(g.conv(x, weights(32, 1, 3, 3), group=32, pads=1))
    x = g.max_pool(g.conv(x, weights(64, 32, 1, 1)), kernel_shape=3, strides=2, pads=1)
    x = g.reshape(g.global_average_pool(x), shape=(1, 64))
    g.output(g.softmax(g.matmul(x, weights(64, 100)), axis=1), "y")
    exe = tw.compile(g, target="cuda:sm_90")
    check(exe)
    assert {k.template for k in exe.kernels} == {"gpu_tiles", "gpu_strips", "gpu_nest"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", KNOWN)
@pytest.mark.parametrize("name", NAMES)
def test_every_model(name: str, arch: str) -> None:
    try:
        path = models().path(name)
    except ModuleNotFoundError as e:
        pytest.skip(str(e))
    exe = tw.compile(str(path), target=f"cuda:{arch}")
    check(exe)
    attends = sum(k.template == "gpu_attention_tiles" for k in exe.kernels)
    assert attends == (4 if name == "transformer" else 0)
